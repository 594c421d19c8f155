"""Places to work for requests that wait for their answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect

from handler import turns
from handler.turns import Turn
from handler.web.problems import Problem

#: Requests at most that wait or are worked on, however short they are: each has its upload on disk.
REQUESTS = 256
#: Seconds of estimated work that may have a place besides the others, so that it does not wait for long work.
EXPRESS_SECONDS = 1.0


async def _never() -> bool:
    return False


class ConcurrencyLimiter:
    """At most so many at work, the others by their turns; who would wait too long is sent away with a time to return.

    Args:
        working: pictures worked on at the same time.
        seconds: of estimated work that may wait, divided by `working`.
        express: places besides, for work of at most `EXPRESS_SECONDS`.
    """

    def __init__(self, working: int, seconds: float, express: int = 1) -> None:
        self._working = working
        self._seconds = seconds * working
        self._express = express
        self._waiting: dict[Turn, asyncio.Future[bool]] = {}
        self._running: dict[Turn, bool] = {}  # and whether in an express place
        self._number = 0
        self._slowness = 1.0  # seconds taken for each one estimated, of the last pictures

    @property
    def idle(self) -> bool:
        """Whether nobody works or waits."""
        return not self._running and not self._waiting

    def check(self, client: str = "", seconds: float = turns.LEAST_SECONDS) -> None:
        """For refusing before a body is read, too.

        Raises:
            Problem (busy).
        """
        queued = [*self._running, *self._waiting]
        wait = turns.seconds_until_room(queued, client, seconds, in_all=self._seconds, places=self._working)
        if len(queued) >= REQUESTS:
            wait = max(wait, min(turn.seconds for turn in queued))
        elif not wait:
            return
        rounded = max(1, math.ceil(wait * self._slowness))
        raise Problem("busy", f"too much work at the moment: try again in {rounded} s", {"Retry-After": str(rounded)})

    @asynccontextmanager
    async def enter(
        self, seconds: float, client: str = "", gone: Callable[[], Awaitable[bool]] = _never
    ) -> AsyncIterator[None]:
        """Wait for a place to work that is estimated to take so long.

        Args:
            seconds: of estimated work.
            client: whose work it is.
            gone: whether the client is; asked while it waits.

        Raises:
            Problem (busy).
            ClientDisconnect: the client is gone, and so is its turn.
        """
        self.check(client, seconds)
        self._number += 1
        turn = Turn(str(self._number), client, max(seconds, turns.LEAST_SECONDS), time.monotonic())
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = place
        try:
            self._fill()
            while not place.done():
                await asyncio.wait({place}, timeout=0.5)
                if not place.done() and await gone():
                    raise ClientDisconnect
            start = time.monotonic()
            yield
            taken = min(10.0, (time.monotonic() - start) / turn.seconds)
            self._slowness += 0.1 * (taken - self._slowness)
        finally:
            self._waiting.pop(turn, None)
            self._running.pop(turn, None)
            self._fill()

    def _fill(self) -> None:
        """Give the places that are free to those whose turn it is."""
        while self._waiting:
            express = sum(self._running.values())
            ordinary = len(self._running) - express < self._working
            if not ordinary and express >= self._express:
                return
            at_most = math.inf if ordinary else EXPRESS_SECONDS
            turn = turns.first(list(self._waiting), time.monotonic(), at_most)
            if turn is None:
                return
            self._running[turn] = not ordinary
            self._waiting.pop(turn).set_result(True)
