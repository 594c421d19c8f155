"""A store that fails: requests are repeated, and errors become ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from handler.storage import (
    Exists,
    S3Storage,
    Unavailable,
)
from tests.integration.work import PATIENCE, wait_for


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
                    release.wait(PATIENCE)
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
        with Script((200, b""), hang=True) as server:
            with pytest.raises(Unavailable):
                S3Storage("bucket", endpoint_url=server.endpoint, attempts=2, timeout=0.2).get("key")
            wait_for(lambda: server.requests == 2, "the second request to be seen")

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
