"""Tell a URL, once, that a job has reached its final state; never delay or fail the job for it.

A call is a POST of JSON with three headers of ours:

    X-Upscale-Job: <job id>
    X-Upscale-Timestamp: <seconds since 1970>
    X-Upscale-Signature: sha256=<hex of HMAC-SHA256(secret, timestamp + "." + body)>

The receiver computes the signature over the bytes that it got (see `verify`), compares in constant time and refuses
timestamps that are minutes old. Any 2xx answer is a delivery.

The address is the client's choice, so it is treated as an attack: only http and https; every address that the name
resolves to must be a public one; and the connection goes to the very address that was checked, so that a name server
which answers differently the second time gains nothing. The same holds for each redirect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from handler.jobs import Clock, Job, utc_now
from handler.storage import Storage

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
        attempts: requests made, redirects not counted.
        error: one line, empty when delivered.
    """

    delivered: bool
    status: int | None
    attempts: int
    error: str = ""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name by the system's resolver. Raises: OSError."""
    raise NotImplementedError


def check_url(url: str) -> str:
    """The URL, if it is one that can be called at all; does not resolve the name. For refusing a request early.

    Raises:
        Refused: not http or https, no host, a user name in it, or an address (not a name) that is not public.
    """
    raise NotImplementedError


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of X-Upscale-Signature."""
    raise NotImplementedError


def verify(secret: str, timestamp: str, body: bytes, signature: str, *, now: float, tolerance: float = 300) -> bool:
    """What a receiver does: whether the signature is right and the timestamp is at most `tolerance` seconds off."""
    raise NotImplementedError


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
        attempts: requests at most, redirects (3 at most each time) not counted.
        timeout: seconds for one request with its redirects, from name resolution to the last byte.
        backoff: seconds before the second attempt, then four times as long each time.
        resolve: names to addresses.
        sleep: waits.
    """
    raise NotImplementedError


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
    """
    raise NotImplementedError


def in_background(storage: Storage, id: str, secret: str, *, allow_private: bool = False) -> threading.Thread:
    """`once` in a daemon thread, which is given back; what goes wrong in it is logged."""
    raise NotImplementedError
