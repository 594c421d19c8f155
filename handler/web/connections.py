"""Connections that hold the server up without using it: limits of time and number, below ASGI.

A client that sends half a request and then nothing costs a file descriptor, as long as it likes: so the head of a
request has to be there in time, its body has to arrive at some pace, and its answer has to be fetched at some pace.
When there are too many connections all the same, the one that has waited longest without a request is closed for the
new one. (Slowloris; RFC 9112 section 9.5 leaves time-outs to the server.)
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import threading
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from handler.settings import Settings

log = logging.getLogger(__name__)

#: Seconds until the head of a request has to be there: from the connection on, and from the answer before.
HEAD_SECONDS = 10.0
#: Seconds in which at least `PACE_BYTES` of a body have to arrive, and those of an answer have to be fetched.
PACE_SECONDS = 30.0
PACE_BYTES = 32 * 1024
#: Connections at the same time, where the system allows as many descriptors.
CONNECTIONS = 512
#: Descriptors for each: the connection, an upload on disk, and what works on it.
_DESCRIPTORS = 3


@cache
def limit() -> int:
    """Connections at the same time: `CONNECTIONS`, or fewer where the process may not have enough descriptors.

    The first call raises the process's soft limit of descriptors as far as that helps.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _DESCRIPTORS * CONNECTIONS
    if soft < wanted or soft == resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(CONNECTIONS, soft // (2 * _DESCRIPTORS)))


def backlog() -> int:
    """Connections that the system holds until they are accepted, which asyncio does with all of them at once."""
    return max(8, limit() // 4)


def configure(app: ASGIApp, settings: Settings, grace_seconds: int) -> uvicorn.Config:
    """How the server of local mode runs the application.

    Args:
        app: the application.
        settings: TRUSTED_PROXIES.
        grace_seconds: for answers that are on their way when the server is stopped.
    """
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        backlog=backlog(),
        # A header that anybody can send must not choose whom the rate limit counts.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,  # handler.web.guard logs requests, with their ids
        server_header=False,
        timeout_graceful_shutdown=grace_seconds,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which says at once that it was asked to stop, and not only when the last answer is out.

    Args:
        config: as for uvicorn.
        stopping: called in a thread.
    """

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM."""
        super().handle_exit(sig, frame)
        threading.Thread(target=self._stopping, name="stopping").start()  # it takes locks, a handler must not


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with these limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._received = self._seen = 0
        self._sacrificed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, and start the clock."""
        super().connection_made(transport)
        # asyncio does this only for sockets that name their protocol, which those of a listener made by Python do not;
        # without it, the last piece of an answer waits some 40 ms until the client has confirmed the one before.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arm(HEAD_SECONDS)
        if len(self.connections) > limit():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count; with a new request, another clock runs."""
        self._received += len(data)
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and not self._idle:
            self._arm(PACE_SECONDS)

    def on_response_complete(self) -> None:
        """The next request may come; or, where the connection ends, what was written has to be fetched."""
        super().on_response_complete()
        if self._idle:
            self._arm(PACE_SECONDS if self.transport.is_closing() else HEAD_SECONDS)

    def pause_writing(self) -> None:
        """The client does not fetch as fast as we send."""
        super().pause_writing()
        self._arm(PACE_SECONDS)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._seen = self._received
        self._timer = self.loop.call_later(seconds, self._check)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        if self.transport.is_closing():
            # Closing waits until what was written is fetched.
            self.transport.abort()
            return
        if self._idle:
            self._end(b"the request did not arrive in time")
        elif self.cycle.more_body and not self.flow.read_paused and self._received - self._seen < PACE_BYTES:
            self._end(b"the body did not arrive in time")
        elif self.flow.write_paused:
            self.transport.abort()
        elif self.cycle.more_body:
            self._arm(PACE_SECONDS)

    def _end(self, why: bytes) -> None:
        if self._idle and not self._received:
            self.transport.abort()  # nobody has asked anything
            return
        if self._idle or not self.cycle.response_started:
            head = (
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: %d"
            )
            self.transport.write(head % len(why) + b"\r\n\r\n" + why)
        self.transport.close()
        self._timer = self.loop.call_later(PACE_SECONDS, self.transport.abort)

    @property
    def _waits(self) -> bool:
        """Whether it is the client's turn: to ask, to send its body, or to fetch what it asked for."""
        return self._idle or self.cycle.more_body or self.flow.write_paused

    @property
    def _rank(self) -> tuple[bool, float]:
        """Who goes first when there are too many: who has waited longest without a request, then the slowest body."""
        if self._idle:
            return False, self._timer.when() if self._timer else 0.0
        return True, self._received - self._seen

    def _make_room(self) -> None:
        """Close some of the connections that are of least use; requests that are being worked on stay."""
        # One that was closed is there until the loop comes to it, and many connections may come before that.
        others = [one for one in self.connections if isinstance(one, GuardedProtocol) and not one._sacrificed]
        if len(others) <= limit():
            return
        unused = sorted((one for one in others if one._waits and one is not self), key=lambda one: one._rank)
        ended = unused[: max(1, limit() // 8)] or [self]
        for one in ended:
            one._sacrificed = True
            one.transport.abort()
        log.warning("%d connections: the %d of least use are closed", len(others), len(ended))
