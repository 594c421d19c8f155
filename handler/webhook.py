"""Tell a URL, once, that a job has reached its final state; never delay or fail the job for it.

A call is a POST of JSON with three headers of ours:

    X-Upscale-Job: <job id>
    X-Upscale-Timestamp: <seconds since 1970>
    X-Upscale-Signature: sha256=<hex of HMAC-SHA256(secret, timestamp + "." + body)>

The receiver computes the signature over the bytes that it got (see `verify`), compares in constant time and refuses
timestamps that are minutes old. Any 2xx answer is a delivery.

The address is the client's choice, so it is treated as an attack: only http and https; every address that the name
resolves to must be a public one; and the connection goes to the very address that was checked, so that a name server
which answers differently the second time gains nothing. The same holds for each redirect. Proxies named by the
environment are not used: they would resolve the name again.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pydantic import JsonValue

from handler.jobs import Clock, Job, WebhookState, change, utc_now
from handler.storage import NotFound, Storage, StorageError

log = logging.getLogger(__name__)

MAX_REDIRECTS = 3
#: Bytes of an answer that are read; what it says does not matter.
MAX_ANSWER = 64 * 1024
#: HTTP statuses after which trying again may help, besides 5xx.
PASSING = frozenset({408, 425, 429})

#: Gives the IP addresses of a host name and port; may raise OSError.
Resolver = Callable[[str, int], Sequence[str]]


class Refused(Exception):
    """The URL, or where it leads, is not called: wrong scheme, or an address that is not public."""


@dataclass(frozen=True)
class DeliveryOutcome:
    """How a delivery ended.

    Attributes:
        delivered: whether a 2xx answer came.
        status: of the last answer, None without one.
        attempts: how often it was tried; a redirect does not count.
        error: one line, empty when delivered.
    """

    delivered: bool
    status: int | None
    attempts: int
    error: str = ""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name by the system's resolver, which has time limits of its own. Raises: OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address is one that everybody on the Internet can reach, by IANA's registries of special ones."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.sixtofour:  # 2002::/16 leads to the IPv4 address within
            return is_public(str(ip.sixtofour))
        if ip.is_site_local:
            return False
    elif ip in ipaddress.IPv4Network("192.0.0.0/24"):  # of which Python 3.11 knows only parts
        return False
    # Python's versions differ in what is_global covers, so everything else that is special is said too. IPv4-mapped and
    # NAT64 addresses count as reserved.
    special = ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not ip.is_unspecified


def check_url(url: str, *, allow_private: bool = False) -> str:
    """The URL, if it is one that can be called at all; does not resolve the name. For refusing a request early.

    Raises:
        Refused: not http or https, no host, a user name in it, or an address (not a name) that is not public.
    """
    parts = _split(url)
    if not allow_private:
        with suppress(ValueError):  # a name
            if not is_public(_host(parts)):
                raise Refused("a webhook must not go to a private address")
    return url


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of X-Upscale-Signature."""
    return "sha256=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def verify(secret: str, timestamp: str, body: bytes, signature: str, *, now: float, tolerance: float = 300) -> bool:
    """What a receiver does: whether the signature is right and the timestamp is at most `tolerance` seconds off.

    Args:
        secret: shared with the service.
        timestamp: X-Upscale-Timestamp.
        body: as received.
        signature: X-Upscale-Signature.
        now: seconds since 1970.
        tolerance: seconds.
    """
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp)) > tolerance:
        return False
    return hmac.compare_digest(sign(secret, int(timestamp), body).encode(), signature.encode())


def deliver(
    url: str,
    payload: Mapping[str, JsonValue],
    secret: str,
    *,
    allow_private: bool = False,
    headers: Mapping[str, str] | None = None,
    attempts: int = 4,
    timeout: float = 5.0,
    backoff: float = 1.0,
    resolve: Resolver = resolve,
    sleep: Callable[[float], None] = time.sleep,
) -> DeliveryOutcome:
    """POST the payload; try again on 408, 425, 429, 5xx and network errors. Never raises for what the other side does.

    Args:
        url: http or https.
        payload: sent as JSON.
        secret: key of the signature; empty: no signature header.
        allow_private: do not check addresses (tests, home networks).
        headers: sent too.
        attempts: how often at most.
        timeout: seconds for one attempt with its redirects, to connect and until the answer is read.
        backoff: seconds before the second attempt, then four times as long each time.
        resolve: names to addresses.
        sleep: waits.
    """
    body = json.dumps(payload, separators=(",", ":")).encode()
    status: int | None = None
    error = ""
    for attempt in range(1, attempts + 1):
        if attempt > 1:
            sleep(backoff * 4 ** (attempt - 2))
        timestamp = int(time.time())
        sent = {"Content-Type": "application/json", "User-Agent": "serverless-upscaler", **(headers or {})}
        sent["X-Upscale-Timestamp"] = str(timestamp)
        if secret:
            sent["X-Upscale-Signature"] = sign(secret, timestamp, body)
        try:
            status = _post(url, body, sent, time.monotonic() + timeout, resolve, allow_private)
        except Refused as refused:
            return DeliveryOutcome(False, None, attempt, str(refused))
        except (OSError, http.client.HTTPException) as failure:
            status, error = None, f"no answer: {type(failure).__name__}"
            continue
        if 200 <= status < 300:
            return DeliveryOutcome(True, status, attempt)
        error = f"the answer was {status}"
        if status < 500 and status not in PASSING:
            return DeliveryOutcome(False, status, attempt, error)
    return DeliveryOutcome(False, status, attempts, error)


def once(
    storage: Storage,
    id: str,
    secret: str,
    *,
    payload: Callable[[Job], Mapping[str, JsonValue]] = Job.public,
    allow_private: bool = False,
    clock: Clock = utc_now,
    deliver: Callable[..., DeliveryOutcome] = deliver,
) -> DeliveryOutcome | None:
    """Deliver a final job's webhook unless somebody has begun to; safe to call from anywhere, any number of times.

    The beginning is marked on the job by compare-and-swap, then the call is made, then its outcome is written. A
    process that dies in between leaves "sending": the call is made at most once, and not certainly once.

    Gives None where there is nothing to do: no webhook, not final, begun already, or no such job.

    Args:
        storage: where the job is.
        id: of the job.
        secret: key of the signature.
        payload: what to send of the job.
        allow_private: as in `deliver`.
        clock: gives the time.
        deliver: makes the call; `functools.partial(deliver, attempts=1)` for a caller in a hurry.

    Raises:
        InvalidId, storage.Unavailable.
    """

    def begin(job: Job) -> Job:
        if not job.state.final or job.webhook is None or job.webhook.state is not WebhookState.WAITING:
            raise _NothingToSend
        return _with_webhook(job, state=WebhookState.SENDING)

    try:
        job = change(storage, id, begin, clock=clock)
    except (_NothingToSend, NotFound):
        return None
    if job.webhook is None:  # for the type checker: begin() has seen it
        return None
    outcome = deliver(job.webhook.url, payload(job), secret, allow_private=allow_private, headers={"X-Upscale-Job": id})
    if not outcome.delivered:
        log.warning("webhook of job %s not delivered: %s", id, outcome.error)
    news = {
        "state": WebhookState.DELIVERED if outcome.delivered else WebhookState.FAILED,
        "attempts": outcome.attempts,
        "status": outcome.status,
        "error": outcome.error,
        "at": clock(),
    }
    try:
        change(storage, id, lambda job: _with_webhook(job, **news), clock=clock)
    except StorageError:  # the call was made; what is lost is only the note of it
        log.warning("outcome of the webhook of job %s not written", id, exc_info=True)
    return outcome


def in_background(storage: Storage, id: str, secret: str, *, allow_private: bool = False) -> threading.Thread:
    """`once` in a daemon thread, which is given back; what goes wrong in it is logged."""

    def run() -> None:
        try:
            once(storage, id, secret, allow_private=allow_private)
        except Exception:
            log.exception("webhook of job %s", id)

    thread = threading.Thread(target=run, name=f"webhook-{id}", daemon=True)
    thread.start()
    return thread


class _NothingToSend(Exception):
    """Ends a change that would change nothing."""


def _with_webhook(job: Job, **news: object) -> Job:
    webhook = job.webhook.model_copy(update=news) if job.webhook else None
    return job.model_copy(update={"webhook": webhook})


def _split(url: str) -> SplitResult:
    """The parts of a URL that may be called. Raises: Refused."""
    if len(url) > 2048 or any(c.isspace() or not c.isprintable() for c in url):
        raise Refused("a webhook's URL has at most 2048 characters, and no blanks")
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not _host(parts) or parts.port == 0:
            raise Refused("a webhook's URL begins with http:// or https:// and a host")
    except ValueError:  # of the port, the brackets, or the name
        raise Refused("a webhook's URL begins with http:// or https:// and a host") from None
    if "@" in parts.netloc:
        raise Refused("a webhook's URL holds no user name and no password")
    return parts


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").encode("idna").decode()


def _post(
    url: str, body: bytes, headers: Mapping[str, str], deadline: float, resolve: Resolver, allow_private: bool
) -> int:
    """One attempt, redirects followed with the same POST; the last status. Raises: Refused, OSError, HTTPException."""
    for _ in range(MAX_REDIRECTS + 1):
        status, location = _request(_split(url), body, headers, deadline, resolve, allow_private)
        if status not in (301, 302, 307, 308) or not location:
            return status
        target = urljoin(url, location)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise Refused("a redirect leads from https to something else")
        url = target
    raise Refused(f"more than {MAX_REDIRECTS} redirects")


def _request(
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    deadline: float,
    resolve: Resolver,
    allow_private: bool,
) -> tuple[int, str | None]:
    """One request; its status and Location. Raises: Refused, OSError, HTTPException."""
    host = _host(parts)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = resolve(host, port)
    except UnicodeError:
        raise Refused("a webhook's URL names no possible host") from None
    if not allow_private and not all(is_public(address) for address in addresses):
        raise Refused("a webhook must not go to a private address")

    raw = _connect(addresses, port, deadline)
    # The timeout of a socket is for one read; a server that sends a byte now and then would hold us for ever. The
    # timer ends the connection itself, through a second handle, so that TLS notices nothing but an end.
    handle = raw.dup()
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [handle])
    timer.daemon = True
    timer.start()
    try:
        if parts.scheme == "https":
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
        connection = http.client.HTTPConnection(host, port)
        connection.auto_open = False  # it must not connect by itself, to an address that nobody checked
        connection.sock = raw
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
        connection.request("POST", path + query, body, {"Host": _host_header(parts), "Connection": "close", **headers})
        answer = connection.getresponse()
        _left(deadline)  # an end that the timer made looks like the end of the headers
        with answer, suppress(OSError, http.client.HTTPException):  # the status is known: the rest is courtesy
            answer.read(MAX_ANSWER)
        return answer.status, answer.getheader("Location")
    finally:
        timer.cancel()
        handle.close()
        raw.close()


def _connect(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers. Raises: OSError."""
    failure = OSError("the name has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except OSError as error:
            failure = error
    raise failure


def _left(deadline: float) -> float:
    """Seconds until then. Raises: TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _host_header(parts: SplitResult) -> str:
    host = _host(parts)
    name = f"[{host}]" if ":" in host else host
    return name if parts.port is None else f"{name}:{parts.port}"
