"""Whose turn it is: the short before the long, and nobody forever.

By highest response ratio (Hansen 1971): the time that somebody has waited, against the time that their own work takes.
A short picture soon has a high ratio; a long one gets there too, after a few times its own work. What one client has
waiting shares a place: a thousand jobs of one are not before the single job of another.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: No picture takes less: the form, a process that decodes, the answer. Seconds.
LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Turn:
    """Somebody who waits.

    Attributes:
        name: of the work.
        client: whose it is.
        seconds: of estimated work.
        since: when it came, by `time.monotonic`.
    """

    name: str
    client: str
    seconds: float
    since: float

    def ratio(self, now: float) -> float:
        """Seconds waited for each second of work."""
        return (now - self.since) / max(self.seconds, LEAST_SECONDS)


def first(waiting: Sequence[Turn], now: float, at_most: float = math.inf) -> Turn | None:
    """Whose turn it is among those with at most so many seconds of work; None when there is nobody."""
    of_client = Counter(turn.client for turn in waiting)
    return max(
        (turn for turn in waiting if turn.seconds <= at_most),
        key=lambda turn: turn.ratio(now) / of_client[turn.client],
        default=None,
    )


def seconds_until_room(queued: Sequence[Turn], client: str, seconds: float, *, in_all: float, places: int) -> float:
    """How long somebody should stay away: 0 where there is room for so much more work.

    One client may queue half of what is queued in all, and whoever has nothing queued may always queue one picture
    unless the others have filled it.

    Args:
        queued: all that wait or are worked on.
        client: who asks.
        seconds: of their work.
        in_all: seconds of work that may be queued.
        places: how many are worked on at the same time.
    """
    total = sum(max(turn.seconds, LEAST_SECONDS) for turn in queued)
    own = sum(max(turn.seconds, LEAST_SECONDS) for turn in queued if turn.client == client)
    too_much = max(
        total + seconds - in_all if total else 0.0,
        own + seconds - in_all / 2 if own else 0.0,
    )
    # What is too much has to be worked off; none of it is before the shortest is done.
    return max(0.0, too_much) / places


class TurnQueue:
    """Names of work in the order of their turns, for threads. A name that is put twice is there once."""

    def __init__(self) -> None:
        self._waiting: dict[str, Turn] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, turn: Turn) -> None:
        """Have somebody wait."""
        with self._changed:
            self._waiting.setdefault(turn.name, turn)
            self._changed.notify_all()

    def get(self, clock: Callable[[], float], at_most: float = math.inf) -> Turn | None:
        """Whose turn it is among those with at most so many seconds of work; None once it is closed."""
        with self._changed:
            while not self._closed:
                if (turn := first(list(self._waiting.values()), clock(), at_most)) is not None:
                    del self._waiting[turn.name]
                    return turn
                self._changed.wait()
            return None

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def all(self) -> list[Turn]:
        """All that wait."""
        with self._changed:
            return list(self._waiting.values())

    def close(self) -> None:
        """Nobody's turn comes any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
