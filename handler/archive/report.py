"""What came of an archive: the manifest, and the failures."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from handler.archive import document
from handler.archive.document import Plan
from handler.archive.spool import Spool
from handler.storage import NotFound, Storage
from handler.workspace import workspace

COLUMNS = ("source", "result", "model", "seconds", "error", "message")


def gather(storage: Storage, plan: Plan, spool: Spool) -> None:
    """Put what came of every picture into the spool; a later round counts for more than an earlier one."""
    for round in plan.rounds:
        keys = [document.refused_key(plan.id, round.name)] if round.refused else []
        for key in keys:
            spool.put_rows(document.load_rows(storage.get(key)[0]))
        for part in plan.part_keys(round):
            try:
                spool.put_rows(document.load_rows(storage.get(document.done_key(part))[0]))
            except NotFound:  # not closed yet
                continue


def write_manifest(storage: Storage, plan: Plan, spool: Spool) -> str:
    """Write the manifest, a CSV with a header, in place of that of an earlier call; its key."""
    key = document.manifest_key(plan.id)
    with workspace() as folder:
        path = folder / "manifest.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(COLUMNS)
            for row in spool.rows():
                out.writerow((row.source, row.result, row.model, row.seconds, row.error, row.message))
        storage.upload(path, key, "text/csv")
    return key


def failures(spool: Spool, most: int) -> Iterator[str]:
    """Lines about pictures that failed, at most so many of them.

    Yields:
        Each, without control characters.
    """
    for number, row in enumerate(spool.rows(failed=True)):
        if number == most:
            yield f"... and {spool.count_rows(failed=True) - most:,} more, in the manifest"
            return
        yield printable(f"{row.source}: {row.error}: {row.message}")


def printable(text: str) -> str:
    """The text with what a terminal would obey written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
