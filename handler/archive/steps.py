"""Archives that were asked for over HTTP, a step at a time: plan, submit what has room, end, cancel.

A step is taken again and again, in AWS by the scheduled sweep and whenever a container has ended, on one machine by a
thread of the server. It holds no machine while pictures are made. Where it goes on is not written down anywhere: which
parts are closed a listing says, and which jobs there are their ids. So a step that is killed, or taken twice at once,
does no harm.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import core
from handler import batch, jobs, options
from handler.archive import document, estimation, listing, order, part, planning, report, submission
from handler.archive.document import Picture, Plan
from handler.archive.order import Order, OrderState
from handler.archive.spool import Spool, open_spool
from handler.archive.submission import Interrupted
from handler.jobs import Job, utc_now
from handler.settings import Settings
from handler.storage import NotFound, Storage

log = logging.getLogger(__name__)

#: How often planning is begun before the archive is given up: it does not end in the time that a step has.
TRIES = 4


@dataclass(frozen=True)
class Outlook:
    """What a listed archive will take.

    Attributes:
        seen: what a sample of headers says.
        rate: seconds that a megapixel takes.
        megapixels: of all pictures.
        forecast: time and money.
        seconds: that one picture takes.
    """

    seen: estimation.Sample
    rate: float
    megapixels: float
    forecast: estimation.Forecast
    seconds: Callable[[Picture], float]


def outlook(
    storage: Storage,
    settings: Settings,
    spool: Spool,
    chosen: core.Options,
    *,
    here: bool,
    at_once: int,
    rate: float = 0.0,
    hour: float = estimation.MACHINE_HOUR,
) -> Outlook:
    """Sample headers of what was listed, and work out what all of it takes.

    Args:
        storage: where the pictures are.
        settings: of the service.
        spool: what was listed.
        chosen: options of the work.
        here: on this machine, which costs nothing extra; else in containers.
        at_once: containers at work.
        rate: seconds a megapixel takes; 0 for what is known of it.
        hour: US dollars for an hour of a machine.

    Raises:
        storage.Unavailable: the store fails.
    """
    seen = estimation.sample(storage, settings, spool.sample(estimation.SAMPLE), chosen)
    rate = rate or (seen.seconds_here if here else estimation.CONTAINER_RATE)

    def seconds(picture: Picture) -> float:
        return seen.megapixels(picture) * rate + estimation.PICTURE_SECONDS

    megapixels = sum(seen.megapixels(picture) for picture in spool.pictures())
    parts = sum(1 for _ in planning.group(spool.pictures(), seconds))
    forecast = estimation.forecast(
        spool.totals()[0], parts, megapixels, rate=rate, at_once=at_once, hour=0 if here else hour
    )
    return Outlook(seen, rate, megapixels, forecast, seconds)


def advance_all(
    storage: Storage, settings: Settings, start: Callable[[Job], object], *, stop: Callable[[], bool] = lambda: False
) -> Counter[str]:
    """Bring every order that has not ended a step further.

    Args:
        storage: where orders, plans and jobs are.
        settings: of the service.
        start: has a queued job done.
        stop: asked between two steps of any size.

    Returns:
        How many were `seen`, and how many of them failed to be brought further (`errors`): the next call does it.
    """
    counts: Counter[str] = Counter()
    for found in order.open_orders(storage, utc_now() - timedelta(days=settings.job_ttl_days)):
        if stop():
            break
        counts["seen"] += 1
        try:
            advance(storage, settings, found.id, start, stop=stop)
        except Exception:
            log.exception("archive %s could not be brought further", found.id)
            counts["errors"] += 1
    return counts


def advance(
    storage: Storage,
    settings: Settings,
    id: str,
    start: Callable[[Job], object],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Order:
    """Bring an order a step further; arguments as of `advance_all`.

    Raises:
        storage.NotFound: no such order.
        storage.Unavailable, botocore.exceptions.ClientError: the store or Batch fails; a later step goes on.
    """
    now = order.get(storage, id)
    with suppress(Interrupted):
        if now.state is OrderState.PLANNING:
            now = _plan(storage, settings, now, stop)
        if now.state is OrderState.RUNNING:
            now = _submit(storage, settings, now, start, stop)
        if now.state is OrderState.CANCELLING:
            now = _cancel(storage, now)
    return now


def _plan(storage: Storage, settings: Settings, now: Order, stop: Callable[[], bool]) -> Order:
    """List, sample, and write the plan, unless only an estimate was asked for."""

    def begin(now: Order) -> Order:
        if now.tries >= TRIES:
            return _failed(now, "there are too many pictures to be listed at once: ask for a part of them")
        return now.model_copy(update={"tries": now.tries + 1})

    now = order.change(storage, now.id, begin)
    if now.state is not OrderState.PLANNING:
        return now
    at_once = places(settings)
    try:
        chosen = options.parse(now.options, settings)
        with open_spool() as spool:
            over = planning.fill(spool, _until(stop, listing.list_prefix(storage, now.source)), listing.is_picture)
            if not spool.totals()[0]:
                raise core.OptionsError(f"there are no pictures under {now.source}")
            found = outlook(storage, settings, spool, chosen, here=not settings.has_batch, at_once=at_once)
            plan = planning.read(storage, now.id)
            written = plan[0] if plan else None
            if written is None and not now.estimate_only:
                written = planning.write(
                    storage, now.id, spool, found.seconds,
                    source=now.source, target=now.target, template=now.names, asked=now.options, options=chosen,
                )  # fmt: skip
    except core.OptionsError as error:
        message = str(error)
        return order.change(storage, now.id, lambda now: _failed(now, message))
    forecast = found.forecast
    estimate = order.Forecast(
        megapixels=round(found.megapixels, 1), seconds=round(forecast.seconds, 1), hours=round(forecast.hours, 2),
        cost=round(forecast.machine + forecast.requests, 2) if settings.has_batch else None,
        passed_over=over, unreadable=len(found.seen.unreadable),
    )  # fmt: skip

    def planned(now: Order) -> Order:
        counts = {"pictures": forecast.pictures, "parts": forecast.parts, "estimate": estimate, "tries": 0}
        if written is not None:
            counts["pictures"] = sum(round.pictures + round.refused for round in written.rounds)
            counts["parts"] = written.parts
        if now.state is OrderState.PLANNING:
            counts["state"] = OrderState.RUNNING if written is not None else OrderState.PLANNED
            if written is None and not now.estimate_only:  # asked to go on meanwhile
                counts["state"] = OrderState.PLANNING
        return now.model_copy(update=counts)

    return order.change(storage, now.id, planned)


def _submit(
    storage: Storage, settings: Settings, now: Order, start: Callable[[Job], object], stop: Callable[[], bool]
) -> Order:
    """Start jobs while fewer than so many are at work; once all parts are closed, end."""
    plan = _plan_of(storage, now)
    standing = submission.submit_some(storage, settings, plan, start, at_once=places(settings), stop=stop)
    if standing.closed == standing.parts:
        return _end(storage, now, plan, OrderState.SUCCEEDED)
    return order.change(storage, now.id, lambda now: now.model_copy(update={"parts_done": standing.closed}))


def _cancel(storage: Storage, now: Order) -> Order:
    """End the jobs at work, and close their parts; what is made stays, and is in the manifest."""
    found = planning.read(storage, now.id)
    if found is None:
        return order.change(storage, now.id, lambda now: now.model_copy(update={"state": OrderState.CANCELLED}))
    for key in submission.open_parts(storage, found[0]):
        job = submission.last_job(storage, key)
        if job is None:  # parts are begun in their order: no later one is
            break
        if not job.state.final:
            with suppress(jobs.IllegalTransition):
                job = jobs.cancel(storage, job.id)
            if job.batch_job_id:
                batch.terminate_batch(job)
        part.give_up(storage, key, "cancelled", "the archive was cancelled")
    return _end(storage, now, found[0], OrderState.CANCELLED)


def _end(storage: Storage, now: Order, plan: Plan, state: OrderState) -> Order:
    """Write the manifest, and say that it has ended; where it was cancelled meanwhile, that goes first."""
    with open_spool() as spool:
        report.gather(storage, plan, spool)
        report.write_manifest(storage, plan, spool)
        every, failed = spool.count_rows(), spool.count_rows(failed=True)
    closed = now.parts if state is OrderState.SUCCEEDED else now.parts_done
    news = {"state": state, "parts_done": closed, "done": every - failed, "failed": failed}
    return order.change(storage, now.id, lambda now: now.model_copy(update=news))


def _failed(now: Order, message: str) -> Order:
    """The order as failed; one that is being cancelled goes on with that."""
    if now.state is not OrderState.PLANNING:
        return now
    return now.model_copy(update={"state": OrderState.FAILED, "error": message})


def _plan_of(storage: Storage, now: Order) -> Plan:
    found = planning.read(storage, now.id)
    if found is None:
        raise NotFound(f"the plan of archive {now.id} is gone")
    return found[0]


def _until(stop: Callable[[], bool], pictures: Iterator[Picture]) -> Iterator[Picture]:
    for picture in pictures:
        if stop():
            raise Interrupted
        yield picture


def places(settings: Settings) -> int:
    """Jobs of one archive that are at work at the same time."""
    return settings.archive_at_once if settings.has_batch else settings.max_concurrency


def archive_of(job: Job) -> str:
    """The id of the archive that a job makes a part of; empty for another job."""
    return job.input.key.split("/")[1] if job.pictures and job.input.key.startswith(document.PREFIX) else ""


def submit(storage: Storage, settings: Settings) -> Callable[[Job], object]:
    """What starts a job on AWS Batch, for `advance`."""
    return partial(batch.submit, storage, settings)
