"""What both stores promise, tried on a directory, on an S3 that checks signatures, and on moto."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from werkzeug.http import parse_options_header

from handler.names import content_disposition, file_name
from handler.storage import (
    Changed,
    Exists,
    InvalidKey,
    LinkRefused,
    LocalStorage,
    NotFound,
    S3Storage,
    Storage,
    Unavailable,
    UploadLink,
    check_key,
)
from tests.integration.together import Together

KEYS = [
    "uploads/1/a+b %.jpg",
    "uploads/1/été/фото 1.png",
    "uploads/1/%2e%2e/%00",
    "uploads/1/" + "ф" * 100 + ".png",
    "uploads/1/" + "n" * 255,
    "uploads/1/.hidden/..two",
    "uploads/1/" + "n" * 200 + "..",
    "uploads/1/" + "n" * 200 + "../x",
    "uploads/1/😀 'quoted' \"&<>?#;=.jpg",
]
BAD_KEYS = ["", "/etc/passwd", "a//b", "a/", "../x", "a/../../x", "a/./b", ".", "..", "nul\0", "\ud800", "é" * 513]


def fresh(storage: Storage) -> Storage:
    """The same store as somebody else sees it, in a state that can be sent to another process."""
    if isinstance(storage, S3Storage):
        return S3Storage(storage.bucket, endpoint_url=storage.endpoint_url)
    assert isinstance(storage, LocalStorage)
    return LocalStorage(storage.root)


def unique(name: str) -> str:
    """A key that no other test uses: buckets are shared."""
    return f"jobs/{os.urandom(8).hex()}/{name}"


# Objects


def test_put_get_head_list_delete(storage: Storage) -> None:
    key = unique("a")
    etag = storage.put(key, b"one", "image/webp")
    assert storage.get(key) == (b"one", etag)
    info = storage.head(key)
    assert (info.key, info.size, info.etag, info.content_type) == (key, 3, etag, "image/webp")
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)
    assert [(found.key, found.size, found.etag) for found in storage.list(key[:-1])] == [(key, 3, etag)]

    assert storage.put(key, b"other", "image/png") != etag
    assert storage.get(key)[0] == b"other"
    assert storage.head(key).content_type == "image/png"

    storage.delete(key)
    storage.delete(key)
    assert list(storage.list(key)) == []


def test_what_is_missing(storage: Storage, tmp_path: Path) -> None:
    for key in (unique("missing"), "nothing"):
        with pytest.raises(NotFound):
            storage.get(key)
        with pytest.raises(NotFound):
            storage.head(key)
        with pytest.raises(NotFound):
            storage.read_range(key, 0, 10)
        with pytest.raises(NotFound):
            storage.download(key, tmp_path / "target")
        with pytest.raises(Changed):
            storage.swap(key, b"", '"etag"')
        storage.delete(key)
        assert list(storage.list(key)) == []
    assert not [path for path in tmp_path.iterdir() if path.is_file()], "a failed download leaves no file"


@pytest.mark.parametrize("key", KEYS)
def test_any_name(storage: Storage, key: str) -> None:
    etag = storage.put(key, key.encode(), "text/plain")
    try:
        assert storage.get(key) == (key.encode(), etag)
        assert storage.head(key).key == key
        assert [found.key for found in storage.list(key)] == [key]
        assert [found.key for found in storage.list(key[:-1]) if found.key == key] == [key]
    finally:
        storage.delete(key)


@pytest.mark.parametrize("key", BAD_KEYS, ids=[ascii(key[:20]) for key in BAD_KEYS])
def test_bad_names(storage: Storage, key: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.read_range(key, 0, 1),
        lambda: storage.download(key, tmp_path / "target"),
        lambda: storage.put(key, b"", "text/plain"),
        lambda: storage.upload(file, key, "text/plain"),
        lambda: storage.create(key, b""),
        lambda: storage.swap(key, b"", '"x"'),
        lambda: storage.delete(key),
        lambda: storage.head(key),
        lambda: storage.upload_link(key, "text/plain", 1, 60),
        lambda: storage.download_link(key, "x", 60),
    ]
    for call in calls:
        with pytest.raises(InvalidKey):
            call()


def test_ranges(storage: Storage) -> None:
    key = unique("digits")
    storage.put(key, b"0123456789", "text/plain")
    assert storage.read_range(key, 0, 4) == b"0123"
    assert storage.read_range(key, 8, 100) == b"89"
    assert storage.read_range(key, 10, 1) == b""
    assert storage.read_range(key, 99, 1) == b""
    assert storage.read_range(key, 3, 0) == b""
    storage.put(key, b"", "text/plain")
    assert storage.read_range(key, 0, 10) == b""
    assert storage.get(key)[0] == b""


def test_large_files_in_parts(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 17)  # over boto3's 8 MB a part
    key = unique("large.png")
    storage.upload(source, key, "image/png")
    info = storage.head(key)
    assert (info.size, info.content_type) == (17 << 20, "image/png")
    target.write_bytes(b"old")
    storage.download(key, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source", "target"]
    storage.delete(key)


def test_listing_is_by_text_not_by_folder(storage: Storage) -> None:
    base = unique("")
    for name in ("a/1", "a/2", "ab/1", "b"):
        storage.put(base + name, b"", "text/plain")
    assert {found.key for found in storage.list(base + "a")} == {base + "a/1", base + "a/2", base + "ab/1"}
    assert {found.key for found in storage.list(base + "a/")} == {base + "a/1", base + "a/2"}
    assert {found.key for found in storage.list(base)} == {base + name for name in ("a/1", "a/2", "ab/1", "b")}


# Whole listings of more than a page (1000 objects) are slow to make on a server, so they are tried on moto only.
def test_listing_goes_over_pages(moto_bucket: tuple[str, str]) -> None:
    store = S3Storage(moto_bucket[1], endpoint_url=moto_bucket[0])
    store.client.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=3)
    )
    base = unique("")
    for number in range(10):
        store.put(f"{base}{number}", b"", "text/plain")
    assert len({found.key for found in store.list(base)}) == 10


# Conditional writes


def test_create_and_swap(storage: Storage) -> None:
    key = unique("a.json")
    first = storage.create(key, b"1")
    assert storage.head(key).content_type == "application/json"
    with pytest.raises(Exists):
        storage.create(key, b"2")
    second = storage.swap(key, b"2", first)
    assert storage.get(key) == (b"2", second)
    with pytest.raises(Changed):
        storage.swap(key, b"3", first)
    assert storage.get(key) == (b"2", second)
    third = storage.swap(key, b"longer", second)
    storage.delete(key)
    with pytest.raises(Changed):
        storage.swap(key, b"3", third)
    storage.create(key, b"again")
    assert storage.get(key)[0] == b"again"


def create_once(number: int, storage: Storage, keys: list[str]) -> list[bool]:
    won = []
    for key in keys:
        try:
            storage.create(key, f"{number}".encode())
            won.append(True)
        except Exists:
            won.append(False)
    return won


def count_up(number: int, storage: Storage, key: str, times: int) -> int:
    """Add one, `times` times; gives how often somebody came between."""
    beaten = 0
    for _ in range(times):
        while True:
            data, etag = storage.get(key)
            try:
                storage.swap(key, b"%d" % (int(data) + 1), etag)
                break
            except Changed:
                beaten += 1
    return beaten


@pytest.fixture
def atomic(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store whose conditional writes are one step."""
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and writes in two steps, so a race on it proves nothing")
    return storage


def test_one_creator_wins(atomic: Storage, four: Together) -> None:
    keys = [unique(f"{number}") for number in range(25)]
    won = four(create_once, fresh(atomic), keys)
    for place, key in enumerate(keys):
        winners = [number for number in range(4) if won[number][place]]
        assert len(winners) == 1
        assert atomic.get(key)[0] == f"{winners[0]}".encode()


def test_no_swap_is_lost(atomic: Storage, four: Together) -> None:
    key = unique("counter")
    atomic.create(key, b"0")
    beaten = four(count_up, fresh(atomic), key, 25)
    assert atomic.get(key)[0] == b"100"
    assert sum(beaten) > 0, "nobody came between anybody: this was no race"


# Links


def send(storage: Storage, link: UploadLink, data: bytes, fields: dict[str, str] | None = None) -> bool:
    """Use an upload link as a client does; whether the store took the file."""
    fields = link.fields if fields is None else fields
    if isinstance(storage, LocalStorage):
        token = parse_qs(urlsplit(link.url).query)["token"][0]
        file = storage.root / ".tmp" / "received"
        file.write_bytes(data)
        try:
            storage.accept(token, file, fields["Content-Type"])
        except LinkRefused:
            return False
        return True
    answer = httpx.post(link.url, data=fields, files={"file": ("name.png", data, fields["Content-Type"])})
    assert answer.status_code in (200, 201, 204, 400, 403), answer.text
    return answer.is_success


def fetch(storage: Storage, url: str) -> tuple[int, bytes, str]:
    """Use a download link: status, body and Content-Disposition."""
    if not isinstance(storage, LocalStorage):
        answer = httpx.get(url)
        return answer.status_code, answer.content, answer.headers.get("Content-Disposition", "")
    try:
        grant = storage.grant(parse_qs(urlsplit(url).query)["token"][0], "download")
    except LinkRefused:
        return 403, b"", ""
    return 200, storage.path(grant.key).read_bytes(), content_disposition(grant.filename)


@pytest.fixture
def linked(storage: Storage, request: pytest.FixtureRequest) -> Storage:
    """A store that checks its links."""
    if "moto" in request.node.name:
        pytest.skip("moto does not check presigned requests; SeaweedFS, in the same tests, does")
    return storage


@pytest.mark.parametrize("name", ["photo.png", "a+b %.png", "été фото.png"])
def test_upload_link(storage: Storage, name: str) -> None:
    key = unique(name)
    link = storage.upload_link(key, "image/png", 10, 60)
    assert (link.method, link.max_bytes) == ("POST", 10)
    assert timedelta(seconds=50) < link.expires - datetime.now(UTC) <= timedelta(seconds=60)
    assert send(storage, link, b"0123456789")
    assert storage.get(key)[0] == b"0123456789"
    assert storage.head(key).content_type == "image/png"


def test_upload_link_refuses_other_sizes(linked: Storage) -> None:
    key = unique("a.png")
    link = linked.upload_link(key, "image/png", 10, 60)
    assert not send(linked, link, b"0123456789a")
    assert not send(linked, link, b"")
    assert not list(linked.list(key))
    assert send(linked, link, b"0123456789"), "it was the size, and nothing else"


def test_upload_link_refuses_other_types(linked: Storage) -> None:
    key = unique("a.png")
    link = linked.upload_link(key, "image/png", 10, 60)
    assert not send(linked, link, b"0", {**link.fields, "Content-Type": "text/html"})
    assert not list(linked.list(key))
    assert send(linked, link, b"0"), "it was the type, and nothing else"


def test_upload_link_refuses_other_keys(linked: Storage) -> None:
    mine, yours = unique("mine.png"), unique("yours.png")
    link, other = (linked.upload_link(key, "image/png", 10, 60) for key in (mine, yours))
    if isinstance(linked, LocalStorage):
        (payload, _), (_, signature) = (urlsplit(url).query.split(".") for url in (link.url, other.url))
        forged = UploadLink(
            f"{link.url.partition('?')[0]}?{payload}.{signature}", "POST", link.fields, 10, link.expires
        )
        assert not send(linked, forged, b"0")
    else:
        assert not send(linked, link, b"0", {**link.fields, "key": yours})
        signature = "x-amz-signature"
        assert not send(linked, link, b"0", {**link.fields, signature: other.fields[signature]})
        assert not send(linked, link, b"0", {k: v for k, v in link.fields.items() if k not in ("policy", signature)})
    assert not list(linked.list(mine))
    assert not list(linked.list(yours))


def test_download_link(storage: Storage) -> None:
    key = unique("a+b %.png")
    storage.put(key, b"picture", "image/png")
    url = storage.download_link(key, 'été "1".png', 60)
    if isinstance(storage, LocalStorage):
        assert url.startswith("/storage/download?token=")
    status, body, disposition = fetch(storage, url)
    assert (status, body) == (200, b"picture")
    assert disposition == "attachment; filename=\"_t_ _1_.png\"; filename*=UTF-8''%C3%A9t%C3%A9%20%221%22.png"


def test_download_link_refuses_other_keys(linked: Storage) -> None:
    mine, yours = unique("mine"), unique("your")
    for key in (mine, yours):
        linked.put(key, b"secret", "text/plain")
    url, other = (linked.download_link(key, "x", 60) for key in (mine, yours))
    assert fetch(linked, url)[0] == 200
    if isinstance(linked, LocalStorage):
        assert fetch(linked, other.split(".")[0] + "." + url.split(".")[1])[0] == 403
        assert fetch(linked, url + "x")[0] == 403
    else:
        assert fetch(linked, url.replace(mine, yours))[0] == 403
        assert fetch(linked, url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))[0] == 403
        assert fetch(linked, url.partition("?")[0])[0] == 403


def test_links_expire(linked: Storage, tmp_path: Path) -> None:
    key = unique("a.png")
    linked.put(key, b"old", "image/png")
    if isinstance(linked, LocalStorage):
        now = [1_000_000.0]
        linked = LocalStorage(linked.root, clock=lambda: now[0])
    upload, download = linked.upload_link(key, "image/png", 10, 1), linked.download_link(key, "x", 1)
    if isinstance(linked, LocalStorage):
        assert fetch(linked, download)[0] == 200
        now[0] += 1
    else:
        time.sleep(2.1)
    assert not send(linked, upload, b"new")
    assert fetch(linked, download)[0] == 403
    assert linked.get(key)[0] == b"old"


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize(
    ("bucket", "start"),
    [
        ("pictures", "https://pictures.s3.eu-west-1.amazonaws.com/"),
        ("my.pictures", "https://s3.eu-west-1.amazonaws.com/my.pictures"),
    ],
)
def test_links_to_aws_lead_to_the_region(bucket: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    store = S3Storage(bucket)
    assert store.upload_link("uploads/1/a", "image/png", 1, 60).url.startswith(start)
    assert store.download_link("results/1/a", "a", 60).startswith(start)


def test_a_placeholder_in_a_key_opens_no_other_key(storage: Storage) -> None:
    # For a key that ends so, boto3 signs for every key with the part before it.
    if isinstance(storage, S3Storage):
        with pytest.raises(InvalidKey):
            storage.upload_link("uploads/1/${filename}", "image/png", 10, 60)


# Names


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.sets(TEXT, min_size=1, max_size=4))
@example(keys={".tmp", ".locks/00", ".secret", ".types/a"})
@example(keys={"a+", "a%2B", "a%252B"})
@example(keys={"a" * 200, "a" * 201, "a" * 400, "a" * 401})
def test_any_names_in_a_directory(tmp_path: Path, keys: set[str]) -> None:
    store = LocalStorage(tmp_path / os.urandom(8).hex())
    kept = set()
    for key in keys:
        try:
            store.put(key, key.encode(), "text/plain")
            kept.add(key)
        except InvalidKey:
            folder = any(other.startswith(key + "/") or key.startswith(other + "/") for other in keys)
            bad = any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key
            assert folder or bad
    assert {found.key for found in store.list("")} == kept
    for key in kept:
        assert store.get(key)[0] == key.encode()
        assert store.path(key).resolve().is_relative_to(store.root.resolve())
        assert all(len(os.fsencode(part)) <= 255 for part in store.path(key).parts)
    for key in kept:
        store.delete(key)
    assert not list(store.list(""))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_any_names_on_a_server(seaweedfs_bucket: tuple[str, str], name: str) -> None:
    store = S3Storage(seaweedfs_bucket[1], endpoint_url=seaweedfs_bucket[0])
    key = f"names/{os.urandom(4).hex()}/{file_name(name)}"
    store.put(key, b"1", "text/plain")
    assert store.get(key)[0] == b"1"
    assert [found.key for found in store.list(key)] == [key]
    assert httpx.get(store.download_link(key, name, 60)).content == b"1"


@settings(deadline=None)
@given(raw=st.one_of(st.text(), st.text(st.sampled_from("./\\ aé\n\ud800😀"), max_size=250)))
@example(raw="../../x")
@example(raw="C:\\photos\\x.jpg")
@example(raw="x" * 10_000 + ".jpeg")
@example(raw="x." + "y" * 10_000)
@example(raw="é" * 300 + ".png")
def test_file_name_is_safe(raw: str) -> None:
    name = file_name(raw)
    assert 1 <= len(name.encode()) <= 200
    assert not re.search(r"[/\\\0-\x1f\x7f]", name)
    assert name.strip(". ") != ""
    check_key(f"uploads/1/{name}")
    assert file_name(name) == name


def test_file_name_keeps_what_it_can() -> None:
    assert file_name("../../x") == "x"
    assert file_name("C:\\photos\\été 1.jpg") == "été 1.jpg"
    assert file_name("..") == file_name("") == file_name("\n") == "image"
    assert file_name("x" * 300 + ".jpeg") == "x" * 195 + ".jpeg"


@given(raw=st.text())
def test_content_disposition_is_one_header_line(raw: str) -> None:
    header = content_disposition(raw)
    assert re.fullmatch(r"[ -~]+", header)
    assert parse_options_header(header) == ("attachment", {"filename": file_name(raw)})


# A store that fails


class Script:
    """An HTTP server that gives prepared answers (status, body), the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes], short: int = 0, hang: bool = False) -> None:
        self.requests = 0
        release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def answer(handler) -> None:  # noqa: N805
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                status, body = answers[min(self.requests, len(answers) - 1)]
                self.requests += 1
                if hang:
                    release.wait(30)
                    return
                cut = short if self.requests == 1 else 0
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(body)))
                handler.send_header("ETag", '"e"')
                handler.send_header("Connection", "close")
                handler.end_headers()
                handler.wfile.write(body[: len(body) - cut])

            do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(handler, *_: object) -> None:  # noqa: N805
                pass

        self._release = release
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Script:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their growing pauses."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


@pytest.mark.usefixtures("aws_environment", "no_pauses")
class TestAStoreThatFails:
    def test_it_is_asked_again(self) -> None:
        with Script((503, error("SlowDown")), (500, error("InternalError")), (200, b"data")) as server:
            store = S3Storage("bucket", endpoint_url=server.endpoint)
            assert store.get("key") == (b"data", '"e"')
            assert server.requests == 3

    def test_not_for_ever(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(b"x")
        with Script((503, error("SlowDown"))) as server:
            store = S3Storage("bucket", endpoint_url=server.endpoint, attempts=2)
            calls: list[Callable[[], object]] = [
                lambda: store.get("key"),
                lambda: store.put("key", b"", "text/plain"),
                lambda: store.create("key", b""),
                lambda: store.swap("key", b"", '"e"'),
                lambda: store.head("key"),
                lambda: store.delete("key"),
                lambda: list(store.list("key")),
                lambda: store.upload(file, "key", "text/plain"),
                lambda: store.download("key", tmp_path / "target"),
            ]
            for count, call in enumerate(calls, 1):
                with pytest.raises(Unavailable):
                    call()
                assert server.requests == 2 * count

    def test_denied_is_not_missing(self) -> None:
        with Script((403, error("AccessDenied"))) as server, pytest.raises(Unavailable, match="AccessDenied"):
            S3Storage("bucket", endpoint_url=server.endpoint).get("key")

    def test_silence(self) -> None:
        with Script((200, b""), hang=True) as server, pytest.raises(Unavailable):
            S3Storage("bucket", endpoint_url=server.endpoint, attempts=2, timeout=0.2).get("key")
        assert server.requests == 2

    def test_nobody_there(self) -> None:
        with pytest.raises(Unavailable):
            S3Storage("bucket", endpoint_url="http://127.0.0.1:1", attempts=2).get("key")

    def test_an_answer_cut_short_is_read_again(self) -> None:
        with Script((200, b"all of it"), short=3) as server:
            assert S3Storage("bucket", endpoint_url=server.endpoint).get("key")[0] == b"all of it"
            assert server.requests == 2

    def test_two_writers_at_once(self) -> None:
        # S3 says 409 while another conditional write is under way; asked again, it knows who won.
        with Script((409, error("ConditionalRequestConflict")), (412, error("PreconditionFailed"))) as server:
            store = S3Storage("bucket", endpoint_url=server.endpoint)
            with pytest.raises(Exists):
                store.create("key", b"")
            assert server.requests == 2


# The directory


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from handler.storage import LocalStorage

store = LocalStorage(Path(sys.argv[1]))
while True:
    for letter in b"ab":
        store.put("victim", bytes([letter]) * 3_000_000, "text/plain")
    Path(sys.argv[2]).touch()
"""


def test_a_killed_writer_leaves_nothing_half_done(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    for pause in (0.0, 0.003, 0.007, 0.011):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, store.root, tmp_path / "ready"], cwd=Path(__file__).parents[2]
        )
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            data, _ = store.get("victim") if list(store.list("victim")) else (b"a" * 3_000_000, "")
            assert len(data) == 3_000_000 and len(set(data)) == 1, "a reader never sees half a write"  # noqa: PT018
            time.sleep(0.01)
        store.sweep(datetime.min.replace(tzinfo=UTC))
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        data, etag = store.get("victim")
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
        store.swap("victim", data, etag)  # its lock is free
        store.sweep(datetime.min.replace(tzinfo=UTC))
        assert list((store.root / ".tmp").iterdir()) == []


def test_sweep_removes_what_is_old(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    old, new = store.root / "results" / "1" / "old", "results/2/new"
    store.put("results/1/old", b"", "x/old")
    store.put(new, b"", "x/new")
    os.utime(old, (1000, 1000))
    assert store.sweep(datetime.now(UTC) - timedelta(days=7)) == 1
    assert [found.key for found in store.list("")] == [new]
    assert not old.parent.exists()
    assert [path.name for path in (store.root / ".types").rglob("*") if path.is_file()] == ["new"]


def test_sweep_leaves_living_writers_alone(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path / "store")
    (store.root / ".tmp" / "dead").write_bytes(b"left by a killed process")
    with store._temporary() as file:
        store.sweep(datetime.now(UTC))
        assert [path.name for path in (store.root / ".tmp").iterdir()] == [Path(file.name).name]
    assert list((store.root / ".tmp").iterdir()) == []


def sign_one(number: int, root: Path) -> str:
    return LocalStorage(root, clock=lambda: 0.0).download_link("key", "name", 60)


def test_processes_agree_on_the_signing_key(tmp_path: Path, four: Together) -> None:
    assert len(set(four(sign_one, tmp_path))) == 1
    assert (tmp_path / ".secret").stat().st_mode & 0o777 == 0o600


def test_etags_differ_also_within_a_tick_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    store = LocalStorage(tmp_path)
    seen = [store.create("key", b"0")]
    for number in range(50):
        seen.append(store.swap("key", b"%d" % (number % 10), seen[-1]))
    assert len(set(seen)) == len(seen)


def test_object_and_folder_at_once_is_refused(tmp_path: Path) -> None:
    store = LocalStorage(tmp_path)
    store.put("a", b"object", "text/plain")
    with pytest.raises(InvalidKey):
        store.put("a/b", b"", "text/plain")
    store.put("c/d", b"", "text/plain")
    with pytest.raises(InvalidKey):
        store.create("c", b"")
    assert store.get("a")[0] == b"object"
    for missing in ("a/b", "c"):
        with pytest.raises(NotFound):
            store.get(missing)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStorage(tmp_path)
    store.put("key", b"old", "text/plain")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        store.put("key", b"new", "text/plain")
    assert store.get("key")[0] == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


@pytest.fixture(autouse=True)
def no_temporary_files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Whatever a test did, no store keeps temporary files of finished calls."""
    yield
    left = [path for path in tmp_path.glob("store/.tmp/*") if path.name != "received"]
    assert left == []
