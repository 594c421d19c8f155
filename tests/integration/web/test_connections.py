"""Clients that hold connections without using them (Slowloris), against the server as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from handler.web import connections
from handler.web.app import build
from tests.integration.web.support import PNG, local, served, serving
from tests.integration.work import PATIENCE

HALF = b"POST /upscale HTTP/1.1\r\nHost: a\r\nX-Half: "
FORM = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99999\r\n\r\n"
HEAD = b"POST /upscale HTTP/1.1\r\nHost: a\r\n" + FORM


@contextlib.contextmanager
def slow_clients(client: httpx.Client, count: int, what: bytes) -> Iterator[list[socket.socket]]:
    host, port = client.base_url.host, client.base_url.port
    assert port
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((host, port), timeout=PATIENCE))
            one.sendall(what)
            found.append(one)
        yield found


def ends(one: socket.socket) -> bytes:
    """What the server says at last."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := one.recv(4096):
            said += piece
    return said


@pytest.mark.parametrize("what", [HALF, HEAD, b""])
def test_slow_requests_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "PACE_SECONDS", 0.5)
    with served(local(tmp_path), **guarded()) as client, slow_clients(client, 3, what) as slow:
        for one in slow:
            said = ends(one)
            assert said.startswith(b"HTTP/1.1 408 ") if what else said == b""
        monkeypatch.setattr(connections, "HEAD_SECONDS", PATIENCE)
        monkeypatch.setattr(connections, "PACE_SECONDS", PATIENCE)
        assert client.post("/upscale", files={"file": ("a.png", PNG)}).status_code == 200


@pytest.mark.parametrize("what", [HALF, HEAD])
def test_hundreds_of_slow_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: bytes) -> None:
    """More than there are places: those who ask something get an answer at once."""
    monkeypatch.setattr(connections, "limit", lambda: 40)
    monkeypatch.setattr(connections, "HEAD_SECONDS", PATIENCE)
    monkeypatch.setattr(connections, "PACE_SECONDS", PATIENCE)
    with served(local(tmp_path), **guarded()) as client, slow_clients(client, 300, what):
        for _ in range(5):  # before the first of the others is ended
            assert httpx.get(client.base_url.join("/health"), timeout=PATIENCE, trust_env=False).status_code == 200
        assert client.post("/upscale", files={"file": ("a.png", PNG)}).status_code == 200


def test_many_that_come_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few were chosen again for each that came before the loop had closed them: connections grew on."""
    monkeypatch.setattr(connections, "limit", lambda: 8)
    open_now: set[object] = set()
    most = 0

    class Counted(connections.GuardedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            nonlocal most
            open_now.add(self)
            super().connection_made(transport)
            most = max(most, len([one for one in open_now if not one._sacrificed]))  # type: ignore[attr-defined]

        def connection_lost(self, exc: Exception | None) -> None:
            open_now.discard(self)
            super().connection_lost(exc)

    with served(local(tmp_path), http=Counted, backlog=64) as client, slow_clients(client, 60, HALF):
        assert httpx.get(client.base_url.join("/health"), timeout=PATIENCE, trust_env=False).status_code == 200
    assert 8 <= most <= 9


def test_a_body_that_comes_in_pieces_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PACE_SECONDS", 2.0)
    monkeypatch.setattr(connections, "PACE_BYTES", 1)
    boundary, tail = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n', b"\r\n--x--\r\n"
    pieces = [boundary, *(PNG[at : at + 40] for at in range(0, len(PNG), 40)), tail]

    def body() -> Iterator[bytes]:
        for piece in pieces[:8]:
            yield piece
            time.sleep(0.3)  # a machine that is busy may make more of it, and all together are longer than the pace
        yield b"".join(pieces[8:])

    with served(local(tmp_path), **guarded()) as client:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert client.post("/upscale", content=body(), headers=headers).status_code == 200


def test_the_last_piece_of_an_answer_does_not_wait(tmp_path: Path) -> None:
    """Without TCP_NODELAY each picture took 40 ms longer: its last piece waited until the first was confirmed."""
    found = []

    class Noted(connections.GuardedProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            found.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with served(local(tmp_path), http=Noted) as client:
        client.get("/health")
    assert found
    assert all(found)


@pytest.mark.parametrize(
    ("trusted", "asked", "counted"),
    [
        ("", ["198.51.100.1", "198.51.100.2"], [200, 429]),  # from whom nobody trusts: it is one client
        ("127.0.0.1", ["198.51.100.1", "198.51.100.2", "198.51.100.1"], [200, 200, 429]),
        # A chain: what the last proxy that is trusted was given by, whatever its client claims of others.
        ("127.0.0.1", ["203.0.113.9, 198.51.100.1", "203.0.113.8, 198.51.100.1"], [200, 429]),
        (
            "127.0.0.1, 10.0.0.0/8",
            ["198.51.100.1, 10.1.2.3", "198.51.100.2, 10.1.2.3", "x, 198.51.100.2"],
            [200, 200, 429],
        ),
        ("127.0.0.1", ["", "198.51.100.1"], [200, 200]),
    ],
)
def test_whom_the_rate_limit_counts(tmp_path: Path, trusted: str, asked: list[str], counted: list[int]) -> None:
    """Issue 16: X-Forwarded-For from this machine went around the limit."""
    settings = local(tmp_path, rate_limit="1/hour", trusted_proxies=trusted)
    app = build(settings)
    with serving(app, connections.configure(app, settings, 1)) as client:
        for forwarded, code in zip(asked, counted, strict=True):
            headers = {"x-forwarded-for": forwarded, "forwarded": "for=192.0.2.7", "x-real-ip": "192.0.2.8"}
            answer = client.post("/estimate", json={"width": 10, "height": 10}, headers=headers)
            assert answer.status_code == code, forwarded


def guarded() -> dict[str, Any]:
    return {
        "http": connections.GuardedProtocol,
        "backlog": 128,
    }  # where more wait than that, the system tries again after a second


@pytest.mark.parametrize("target", [b"http://a/health", b"HTTPS://a:8000/health?x=1", b"http://a"])
def test_a_request_line_as_to_a_proxy(client: httpx.Client, target: bytes) -> None:
    """Servers have to understand it (RFC 9112, 3.2.2)."""
    asked = b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with slow_clients(client, 1, asked) as [one]:
        assert ends(one).startswith(b"HTTP/1.1 200 OK\r\n")
