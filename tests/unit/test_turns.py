"""Whose turn it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handler.turns import LEAST_SECONDS, Turn, TurnQueue, first, seconds_until_room


def test_the_short_come_first_and_the_long_not_last_forever() -> None:
    long, short = Turn("long", "a", 60, 0), Turn("short", "b", 0.5, 10)
    assert first([long, short], 11) is short
    late = Turn("late", "b", 0.5, 299.9)
    assert first([long, late], 300) is long, "it has waited five times its own work"
    assert first([], 0) is None
    assert first([long], 100, at_most=10) is None


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20), st.floats(0.1, 10))
def test_nobody_starves(works: list[float], short: float) -> None:
    """One place, and a short picture that comes again whenever one is done: everybody is done all the same, after a
    wait of no more than what is ahead and a few times their own work."""
    waiting = [Turn(str(number), "a", seconds, 0.0) for number, seconds in enumerate(works)]
    now, bound = 0.0, 2 * sum(works) + 20 * max(works) + 20 * short
    newcomer = Turn("new", "b", short, now)
    while waiting:
        turn = first([*waiting, newcomer], now)
        assert turn is not None
        now += max(turn.seconds, LEAST_SECONDS)
        if turn is newcomer:
            newcomer = Turn("new", "b", short, now)
        else:
            waiting.remove(turn)
        assert now < 10 * bound


def test_a_storm_of_one_client_is_not_before_the_one_job_of_another() -> None:
    waiting = [Turn(str(number), "a", 30, 0.0) for number in range(100)]
    mine = Turn("mine", "b", 30, 10.0)
    assert first([*waiting, mine], 10.0) is not mine, "somebody who has just come waits, too"
    assert first([*waiting, mine], 30.0) is mine
    assert first([*waiting, Turn("long", "b", 600, 10.0)], 1000.0) == Turn("long", "b", 600, 10.0)


def test_room() -> None:
    queued = [Turn("1", "a", 30, 0), Turn("2", "b", 60, 0)]
    assert seconds_until_room(queued, "c", 10, in_all=100, places=1) == 0
    assert seconds_until_room(queued, "c", 30, in_all=100, places=1) == 20
    assert seconds_until_room(queued, "c", 30, in_all=100, places=2) == 10
    assert seconds_until_room(queued, "b", 10, in_all=100, places=1) == 20, "one client has half of it"
    assert seconds_until_room([], "c", 1000, in_all=100, places=1) == 0, "one picture always"


def test_a_queue_for_threads() -> None:
    queue = TurnQueue()
    for turn in (Turn("long", "", 60, 0), Turn("short", "", 1, 0), Turn("short", "", 1, 0)):
        queue.put(turn)
    assert "long" in queue
    names = [turn.name for turn in (queue.get(lambda: 5.0), queue.get(lambda: 5.0)) if turn]
    assert names == ["short", "long"]
    queue.close()
    assert queue.get(lambda: 0.0) is None
