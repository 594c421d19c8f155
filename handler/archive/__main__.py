"""Many pictures at once: python -m handler.archive SOURCE TARGET

0   every picture is done
1   some failed: they are printed, and in the manifest; --redo tries them again
2   wrong use
75  stopped, or the store or Batch did not answer: the same command goes on
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from pydantic import JsonValue, ValidationError

import core
from handler import batch, options
from handler.archive import document, estimation, listing, planning, report, steps, submission, targets
from handler.archive.document import Picture, Plan
from handler.archive.part import run_part
from handler.archive.spool import Spool, open_spool
from handler.archive.submission import Standing
from handler.jobs import Backend, Job
from handler.settings import Settings, get_settings
from handler.storage import Changed, InvalidKey, NotFound, Storage, StorageError, open_storage

DONE, FAILED, USAGE, AGAIN = 0, 1, 2, 75
#: Seconds between two looks at jobs in flight: here only at such as another process has.
POLL_HERE, POLL_BATCH = 1.0, 15.0
#: Failures printed; the manifest has all.
SHOWN = 50


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m handler.archive",
        description="Make every picture under a prefix larger, under another prefix. The same command again goes on.",
    )
    found.add_argument("source", help="prefix in the store, or a list of keys: .csv, .csv.gz or an inventory's .json")
    found.add_argument("target", help="prefix for results, such as results or upscaled/2026")
    found.add_argument("--estimate", action="store_true", help="say what it will take, and make nothing")
    found.add_argument("--redo", action="store_true", help="try the pictures again that failed")
    found.add_argument("--here", action="store_true", help="work in this process, also where there is AWS Batch")
    found.add_argument("--at-once", type=int, default=20, metavar="N", help="jobs in flight at most (20)")
    found.add_argument("--names", default=targets.TEMPLATE, metavar="TEMPLATE", help="of results (%(default)s)")
    found.add_argument("--run", default="", metavar="NAME", help="a new name lists the source anew")
    found.add_argument("--columns", default=",".join(listing.COLUMNS), help="of a CSV without a header (%(default)s)")
    found.add_argument("--rate", type=float, metavar="S", help="seconds a megapixel takes, for the estimate and parts")
    found.add_argument("--hour", type=float, default=estimation.MACHINE_HOUR, metavar="USD", help="of a machine")
    for name in ("scale", "quality", "width", "height"):
        found.add_argument(f"--{name}", type=float if name == "scale" else int)
    found.add_argument("--model")
    found.add_argument("--format")
    for name in ("exact", "strip", "drop-gps", "keep-size", "pyramid"):
        found.add_argument(f"--{name}", action="store_true")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit code.
    """
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        settings = get_settings()
        return run(open_storage(settings), settings, given, stopped.is_set)
    except ValidationError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except (core.OptionsError, InvalidKey, NotFound) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except submission.Interrupted:
        print("stopped: the same command goes on", file=sys.stderr)
        return AGAIN
    except StorageError as error:
        print(f"error: {error}: the same command goes on", file=sys.stderr)
        return AGAIN


def run(storage: Storage, settings: Settings, given: argparse.Namespace, stop: Callable[[], bool]) -> int:
    """What `main` does once store and settings are there.

    Raises:
        core.OptionsError, storage.StorageError, submission.Interrupted.
    """
    source = given.source if listing.is_list(given.source) else given.source.strip("/") + "/"
    target = given.target.strip("/") + "/"
    targets.check_prefixes("" if listing.is_list(source) else source, target)
    names = (
        "model",
        "format",
        "scale",
        "quality",
        "width",
        "height",
        "exact",
        "strip",
        "drop_gps",
        "keep_size",
        "pyramid",
    )
    asked: dict[str, JsonValue] = {
        name: value for name in names if (value := getattr(given, name)) not in (None, False)
    }
    chosen = options.parse(asked, settings)
    template = targets.check_template(given.names)
    if given.at_once < 1:
        raise core.OptionsError("--at-once is 1 or more")
    here = given.here or not settings.has_batch
    id = document.archive_id(settings.bucket, source, target, template, asked, given.run)

    with open_spool() as spool:
        plan = planning.read(storage, id)
        if plan is None or given.estimate:
            seconds = _forecast(storage, settings, spool, source, chosen, given, here)
            if given.estimate:
                return DONE
            found = planning.write(
                storage, id, spool, seconds,
                source=source, target=target, template=template, asked=asked, options=chosen,
            )  # fmt: skip
        else:
            found = _resumed(storage, plan, given)
    print(f"archive {id}", flush=True)
    submission.submit_all(
        storage,
        settings,
        found,
        _starter(storage, settings, here, stop),
        at_once=1 if here else given.at_once,
        poll_seconds=POLL_HERE if here else POLL_BATCH,
        stop=stop,
        report=_progress,
    )
    return _end(storage, settings, found)


def _forecast(
    storage: Storage,
    settings: Settings,
    spool: Spool,
    source: str,
    chosen: core.Options,
    given: argparse.Namespace,
    here: bool,
) -> Callable[[Picture], float]:
    """List, sample, and say what it will take; the seconds of a picture."""
    if listing.is_list(source):
        columns = [name.strip().lower() for name in given.columns.split(",")]
        listed = listing.read_list(storage, source, settings.bucket, columns)
    else:
        listed = listing.list_prefix(storage, source)
    over = planning.fill(spool, listed, listing.is_picture)
    count, size = spool.totals()
    if over:
        print("passed over: " + ", ".join(f"{n:,} x {report.printable(name)}" for name, n in sorted(over.items())))
    if not count:
        raise core.OptionsError(f"there are no pictures under {source}")
    found = steps.outlook(
        storage,
        settings,
        spool,
        chosen,
        here=here,
        at_once=1 if here else given.at_once,
        rate=given.rate or 0.0,
        hour=given.hour,
    )
    for line in found.seen.unreadable:
        print(f"in the sample: {report.printable(line)}")
    print(f"{size / 1e9:,.1f} GB in, {found.megapixels * found.seen.enlarged:,.0f} megapixels out")
    print(estimation.describe(found.forecast, here=here, rate=found.rate), flush=True)
    return found.seconds


def _resumed(storage: Storage, plan: tuple[Plan, str], given: argparse.Namespace) -> Plan:
    """The plan that is there, with a round more for failures where that was asked for."""
    found, etag = plan
    print(f"going on with what was planned on {found.created:%Y-%m-%d %H:%M} UTC (--run NAME lists the source anew)")
    if not given.redo:
        return found
    with open_spool() as spool:
        report.gather(storage, found, spool)
        if not spool.count_rows(failed=True):
            return found
        try:
            return planning.again(storage, found, etag, spool, lambda _: planning.PART_SECONDS / 50)
        except Changed:
            raise core.OptionsError("the same archive is being redone by another call: let that one end") from None


def _starter(storage: Storage, settings: Settings, here: bool, stop: Callable[[], bool]) -> Callable[[Job], object]:
    """What has a queued job done."""
    if not here:
        return lambda job: batch.submit(storage, settings, job)
    name = f"archive {os.uname().nodename} {os.getpid()}"
    return lambda job: run_part(storage, settings, job.id, backend=Backend.BATCH, worker=name, stop=stop)


def _progress(now: Standing) -> None:
    print(f"{now.closed:,} of {now.parts:,} jobs done, {now.running} at work", file=sys.stderr, flush=True)


def _end(storage: Storage, settings: Settings, plan: Plan) -> int:
    """Write the manifest, print the failures; the exit code."""
    with open_spool() as spool:
        report.gather(storage, plan, spool)
        key = report.write_manifest(storage, plan, spool)
        every, failed = spool.count_rows(), spool.count_rows(failed=True)
        for line in report.failures(spool, SHOWN):
            print(f"failed: {line}", file=sys.stderr)
    print(f"{every - failed:,} of {every:,} pictures done; manifest: {key}")
    if plan.target.startswith("results/"):
        print(f"what lies under results/ expires after {settings.job_ttl_days} days: copy it, or take another prefix")
    if failed:
        print(f"{failed:,} failed: the same command with --redo tries them again")
    return FAILED if failed else DONE


if __name__ == "__main__":
    sys.exit(main())
