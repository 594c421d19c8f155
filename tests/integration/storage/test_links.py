"""Links: what they allow, and until when."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from handler.names import content_disposition
from handler.storage import (
    InvalidKey,
    LinkRefused,
    LocalStorage,
    S3Storage,
    Storage,
    UploadLink,
)
from tests.integration.storage.support import unique


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
