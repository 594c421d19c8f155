"""A plan: the pictures in parts, each with the key of its result, written so that it is there whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pydantic import JsonValue

import core
from handler.archive import document, targets
from handler.archive.document import CONTENT_TYPE, Picture, Plan, Round, Row
from handler.archive.spool import Spool
from handler.jobs import utc_now
from handler.storage import JSON, Changed, Exists, InvalidKey, NotFound, Storage, check_key

#: Pictures of a part at most: its list and its rows are held in memory.
MOST_PICTURES = 1000
#: Seconds of work in a part: long beside the start of a container, short beside what a Spot machine lives.
PART_SECONDS = 600.0


def read(storage: Storage, id: str) -> tuple[Plan, str] | None:
    """A plan and its ETag, None where there is none."""
    try:
        data, etag = storage.get(document.plan_key(id))
    except NotFound:
        return None
    return Plan.model_validate_json(data), etag


def fill(spool: Spool, pictures: Iterable[Picture], is_picture: Callable[[str], bool]) -> dict[str, int]:
    """Put what was listed into the spool.

    Returns:
        What was passed over: how many by their endings, and how many were listed twice.
    """
    over: dict[str, int] = {}
    for picture in pictures:
        try:
            picture.source.encode()
        except UnicodeEncodeError:  # a file that somebody put into the directory of local mode
            name = "names that are no Unicode"
        else:
            if is_picture(picture.source):
                name = "" if spool.add(picture) else "listed twice"
            else:
                name = targets.ending_of(picture.source) or "no ending"
        if name:
            over[name] = over.get(name, 0) + 1
    return over


def group(pictures: Iterable[Picture], seconds: Callable[[Picture], float]) -> Iterator[list[Picture]]:
    """Cut a list into parts of about `PART_SECONDS`, so that small pictures share a container.

    Yields:
        Each part, never empty, in order.
    """
    part: list[Picture] = []
    taken = 0.0
    for picture in pictures:
        more = seconds(picture)
        if part and (len(part) >= MOST_PICTURES or taken + more > PART_SECONDS):
            yield part
            part, taken = [], 0.0
        part.append(picture)
        taken += more
    if part:
        yield part


def write(
    storage: Storage,
    id: str,
    spool: Spool,
    seconds: Callable[[Picture], float],
    *,
    source: str,
    target: str,
    template: str,
    asked: dict[str, JsonValue],
    options: core.Options,
) -> Plan:
    """Write the plan of what is in the spool.

    The parts come first, in a folder of a fresh name, and the plan last: what a killed call leaves is no plan, and of
    two calls at once the first one's plan counts for both.

    Args:
        storage: where to.
        id: of the archive.
        spool: what was listed.
        seconds: that a picture takes.
        source: prefix of the pictures, or the name of the list.
        target: prefix of the results.
        template: of their names.
        asked: options as they were asked for.
        options: the same, complete.
    """
    below = "" if not source.endswith("/") else source
    refused: list[Row] = []

    def named() -> Iterator[Picture]:
        for picture in spool.pictures():
            try:
                keys = targets.target_keys(picture.source, below, target, template, options)
                yield replace(picture, target=next(key for key in keys if spool.take(key)))
            except InvalidKey as error:
                refused.append(Row(picture.source, error="bad_key", message=f"no key for its result: {error}"))

    round = _write_round(storage, id, group(named(), seconds), refused)
    plan = Plan(
        id=id, source=source, target=target, template=template, options=asked, created=utc_now(), rounds=[round]
    )
    try:
        storage.create(document.plan_key(id), plan.model_dump_json().encode())
    except Exists:
        _discard(storage, id, round)
        found = read(storage, id)
        if found is None:
            raise
        return found[0]
    return plan


def again(storage: Storage, plan: Plan, etag: str, spool: Spool, seconds: Callable[[Picture], float]) -> Plan:
    """A plan with one round more, for the pictures that failed, as they are now.

    Args:
        storage: where the plan is.
        plan: as it is.
        etag: of the plan.
        spool: its rows are those of all rounds before.
        seconds: that a picture takes.

    Raises:
        storage.Changed: somebody else changed the plan meanwhile: read it again.
    """
    wanted = {row.source for row in spool.rows(failed=True)}
    refused: list[Row] = []

    def failed() -> Iterator[Picture]:
        for key in (key for round in plan.rounds for key in plan.part_keys(round)):
            for picture in document.load_pictures(storage.get(key)[0]):
                if picture.source in wanted:
                    wanted.discard(picture.source)  # in a later round it has the same key for its result
                    yield _fresh(storage, picture)

    round = _write_round(storage, plan.id, group(failed(), seconds), refused)
    if not round.parts:
        return plan
    new = plan.model_copy(update={"rounds": [*plan.rounds, round]})
    try:
        storage.swap(document.plan_key(plan.id), new.model_dump_json().encode(), etag, JSON)
    except Changed:
        _discard(storage, plan.id, round)
        raise
    return new


def _fresh(storage: Storage, picture: Picture) -> Picture:
    """The picture as it lies there now, where that can be asked."""
    try:
        found = storage.head(check_key(picture.source))
    except (InvalidKey, NotFound):
        return picture
    return replace(picture, etag=found.etag, size=found.size)


def _write_round(storage: Storage, id: str, parts: Iterable[list[Picture]], refused: list[Row]) -> Round:
    name, number, pictures = uuid.uuid4().hex[:12], 0, 0
    for number, part in enumerate(parts, 1):
        pictures += len(part)
        storage.create(document.part_key(id, name, number), document.dump_lines(part), CONTENT_TYPE)
    if refused:  # complete now that the parts were drawn
        storage.create(document.refused_key(id, name), document.dump_lines(refused), CONTENT_TYPE)
    return Round(name=name, parts=number, pictures=pictures, refused=len(refused))


def _discard(storage: Storage, id: str, round: Round) -> None:
    """Delete the parts of a round that no plan names."""
    for found in storage.list(document.round_prefix(id, round.name)):
        storage.delete(found.key)
