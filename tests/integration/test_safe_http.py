"""Which addresses are called, and which are not: servers that hold us, redirects, addresses, TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from handler import safe_http
from handler.safe_http import Refused, check_url, is_public
from handler.webhook import DeliveryOutcome, deliver, verify
from tests.integration.receiver import Receiver
from tests.integration.work import PATIENCE

SECRET = "secret"


def call(url: str, secret: str = SECRET, **kwargs: Any) -> DeliveryOutcome:
    """Deliver without pauses, private addresses allowed unless said otherwise."""
    return deliver(
        url, {"id": "1", "name": "été"}, secret, **{"allow_private": True, "sleep": lambda _: None, **kwargs}
    )


def test_a_server_that_hangs(patience: threading.Event) -> None:
    with Receiver(lambda _: patience.wait(PATIENCE)) as server:
        outcome = call(server.url, attempts=2, timeout=0.2)
    assert not outcome.delivered
    assert (outcome.status, outcome.attempts) == (None, 2)
    assert not patience.is_set(), "we hung up, not the server"


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + b"HTTP/1.1 200"]
)
def test_a_server_that_sends_a_byte_now_and_then(patience: threading.Event, start: bytes) -> None:
    # Each byte comes within any time-out for a single read.
    to_the_end: list[bool] = []  # after ten seconds

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        for _ in range(500):
            handler.wfile.write(b"x")
            if patience.wait(0.02):
                return
        handler.wfile.write(b"\r\n\r\n")
        to_the_end.append(True)

    with Receiver(drip) as server:
        outcome = call(server.url, attempts=1, timeout=0.3)
    assert not outcome.delivered
    assert not to_the_end, "we hung up, not the server"


def test_a_very_long_answer() -> None:
    hung_up = threading.Event()

    def pour(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(200):
                handler.wfile.write(b"x" * (1 << 20))
        except OSError:
            hung_up.set()

    with Receiver(pour) as server:
        assert call(server.url, timeout=PATIENCE).delivered
        assert hung_up.wait(PATIENCE), "the first bytes are enough"


def test_a_status_counts_although_its_body_never_comes(patience: threading.Event) -> None:
    def promise(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        patience.wait(PATIENCE)

    with Receiver(promise) as server:
        assert call(server.url, timeout=2) == DeliveryOutcome(True, 200, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_followed_with_the_same_call(status: int) -> None:
    with Receiver() as target, Receiver((status, {"Location": target.url})) as server:
        assert call(server.url) == DeliveryOutcome(True, 204, 1)
    [(method, path, headers, body)] = target.requests
    assert (method, path) == ("POST", "/hook?a=b")
    assert headers["Host"] == f"127.0.0.1:{target.port}"
    assert verify(SECRET, headers["X-Upscale-Timestamp"], body, headers["X-Upscale-Signature"], now=time.time())


def test_relative_redirects() -> None:
    with Receiver((307, {"Location": "../there"}), 200) as server:
        assert call(server.url).delivered
    assert [path for _, path, _, _ in server.requests] == ["/hook?a=b", "/there"]


def test_redirects_end() -> None:
    with Receiver((307, {"Location": "/again"})) as server:
        outcome = call(server.url)
    assert (outcome.delivered, outcome.attempts) == (False, 1)
    assert outcome.error == "more than 3 redirects"
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "target", ["ftp://example.com/", "file:///etc/passwd", "gopher://x/", "http://u:p@x/", "http://x:0/", "http://["]
)
def test_redirects_to_what_is_not_called(target: str) -> None:
    with Receiver((307, {"Location": target})) as server:
        outcome = call(server.url)
    assert not outcome.delivered
    assert "URL" in outcome.error


# Addresses

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001:db8::1",
    "2001::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700::1111", "2002:101:101::"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"connected to {args}")

    monkeypatch.setattr("socket.create_connection", refuse)


@pytest.mark.usefixtures("no_connections")
@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "fd00:ec2::254", "fe80::1%eth0"]
)
def test_names_of_private_addresses(address: str) -> None:
    for addresses in ([address], ["1.1.1.1", address], [address, "1.1.1.1"]):
        outcome = call("http://hook.example/", allow_private=False, resolve=lambda *_, found=addresses: found)
        assert outcome == DeliveryOutcome(False, None, 1, "the URL leads to a private address")


@pytest.mark.usefixtures("no_connections")
@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:7f00:1]", "0", "localhost."]
)
def test_spellings_of_this_machine(host: str) -> None:
    """By the system's resolver."""
    outcome = call(f"http://{host}/", allow_private=False, attempts=1)
    assert not outcome.delivered
    # Some resolvers do not know all of these spellings.
    assert outcome.error in ("the URL leads to a private address", "no answer: gaierror")


@pytest.fixture
def one_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 play a public address, and 127.0.0.2 the private network behind."""
    monkeypatch.setattr(safe_http, "is_public", lambda address: address == "127.0.0.1")


NAMES = {"public.example": "127.0.0.1", "private.example": "127.0.0.2"}


@pytest.mark.usefixtures("one_is_public")
@pytest.mark.parametrize("host", ["127.0.0.2", "private.example"])
def test_redirects_to_private_addresses(host: str) -> None:
    with Receiver(address="127.0.0.2") as inside:
        location = {"Location": f"http://{host}:{inside.port}/"}
        with Receiver((307, location)) as first, Receiver((307, {"Location": first.url})) as outside:
            outcome = call(
                f"http://public.example:{outside.port}/",
                allow_private=False,
                resolve=lambda host, _: [NAMES.get(host, host)],
            )
        assert len(outside.requests) == len(first.requests) == 1
    assert outcome == DeliveryOutcome(False, None, 1, "the URL leads to a private address")
    assert inside.requests == []


@pytest.mark.usefixtures("one_is_public")
def test_a_name_that_changes_its_address() -> None:
    """The second look-up, which a connection by name would make, would lead to the private one."""
    with Receiver() as outside:
        answers = iter([["127.0.0.1"], ["127.0.0.2"]])
        outcome = call(
            f"http://rebinding.example:{outside.port}/", allow_private=False, resolve=lambda *_: next(answers)
        )
    assert outcome.delivered
    assert outside.requests[0][2]["Host"] == f"rebinding.example:{outside.port}"
    assert next(answers) == ["127.0.0.2"], "the name was looked up once"


def test_the_next_address_where_one_does_not_answer() -> None:
    with Receiver() as server:
        outcome = call(f"http://two.example:{server.port}/", resolve=lambda *_: ["127.0.0.3", "127.0.0.1"])
    assert outcome == DeliveryOutcome(True, 204, 1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:word@example.com/",
        "http://good.example\\@evil.example/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://[::1/",
        "http://a..b/",
        "http://" + "x" * 64 + ".example/",
        "http://example.com/\r\nX-Injected: 1",
        "http://example.com/a b",
        "http://example.com/\0",
        "http://example.com/" + "x" * 2048,
        "http://127.0.0.1/",
        "http://[::1]:80/",
        "https://169.254.169.254/latest/meta-data",
    ],
    ids=lambda url: ascii(url[:40]),
)
def test_urls_that_are_refused_at_once(url: str) -> None:
    with pytest.raises(Refused):
        check_url(url)


def test_urls_that_are_taken() -> None:
    for url in ("http://example.com", "https://été.example:8443/ü?q=1#x", "HTTPS://EXAMPLE.com/", "http://1.1.1.1/"):
        assert check_url(url) == url
    assert check_url("http://127.0.0.1/", allow_private=True)


@contextmanager
def certificate(folder: Path, name: str) -> Iterator[ssl.SSLContext]:
    """A server's TLS context for a self-signed certificate of this name, in `folder`/cert.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    yield context


def test_tls_is_for_the_name_and_not_for_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    with certificate(tmp_path, "hook.example") as context, Receiver(context=context) as server:
        context.sni_callback = lambda _, name, __: asked.append(name)

        def tls(name: str) -> DeliveryOutcome:
            return call(f"https://{name}:{server.port}/", resolve=lambda *_: ["127.0.0.1"], attempts=1)

        assert tls("hook.example").error == "no answer: SSLCertVerificationError", "an unknown authority"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert tls("hook.example") == DeliveryOutcome(True, 204, 1)
        assert tls("other.example").error == "no answer: SSLCertVerificationError"
    assert asked == ["hook.example", "hook.example", "other.example"]
    assert [headers["Host"] for _, _, headers, _ in server.requests] == [f"hook.example:{server.port}"]


def test_tls_is_not_left_by_a_redirect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with certificate(tmp_path, "hook.example") as context, Receiver() as plain:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with Receiver((307, {"Location": plain.url}), context=context) as server:
            outcome = call(f"https://hook.example:{server.port}/", resolve=lambda *_: ["127.0.0.1"])
    assert outcome.error == "a redirect leads from https to something else"
    assert plain.requests == []


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_that_does_not_even_shake_hands(tls: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = call(f"http{'s' if tls else ''}://127.0.0.1:{silent.getsockname()[1]}/", attempts=1, timeout=0.2)
    assert not outcome.delivered
