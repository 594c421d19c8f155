"""A list of any length outside of memory: SQLite in a temporary file, which vanishes with the process."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple

from handler.archive.document import Picture, Row


class Spool:
    """Pictures by their sources, keys of results that are taken, and rows by their sources; the later row wins."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.execute("CREATE TABLE pictures (source TEXT PRIMARY KEY, etag TEXT, size INTEGER)")
        self._db.execute("CREATE TABLE targets (target TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute(
            "CREATE TABLE rows "
            "(source TEXT PRIMARY KEY, result TEXT, model TEXT, seconds REAL, error TEXT, message TEXT)"
        )

    def add(self, picture: Picture) -> bool:
        """Keep a picture; False where its source is there already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?)", (picture.source, picture.etag, picture.size)
        )
        return done.rowcount == 1

    def pictures(self) -> Iterator[Picture]:
        """All of them.

        Yields:
            Each, in the order in which they came.
        """
        for source, etag, size in self._db.execute("SELECT source, etag, size FROM pictures ORDER BY rowid"):
            yield Picture(source, etag, size)

    def sample(self, count: int) -> list[Picture]:
        """So many of them, at random."""
        rows = self._db.execute("SELECT source, etag, size FROM pictures ORDER BY random() LIMIT ?", (count,))
        return [Picture(*row) for row in rows]

    def totals(self) -> tuple[int, int]:
        """How many pictures, and how many bytes."""
        count, size = self._db.execute("SELECT count(*), coalesce(sum(size), 0) FROM pictures").fetchone()
        return count, size

    def take(self, target: str) -> bool:
        """Reserve the key of a result; False where it is taken."""
        return self._db.execute("INSERT OR IGNORE INTO targets VALUES (?)", (target,)).rowcount == 1

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Keep what came of pictures, in place of what was said of them before."""
        self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)", map(astuple, rows))

    def rows(self, *, failed: bool = False) -> Iterator[Row]:
        """What came of pictures.

        Args:
            failed: only those with an error.

        Yields:
            Each, in the order of their sources.
        """
        only = "WHERE error != ''" if failed else ""
        for row in self._db.execute(f"SELECT * FROM rows {only} ORDER BY source"):  # noqa: S608 - a constant
            yield Row(*row)

    def count_rows(self, *, failed: bool = False) -> int:
        """How many of them."""
        only = "WHERE error != ''" if failed else ""
        [count] = self._db.execute(f"SELECT count(*) FROM rows {only}").fetchone()  # noqa: S608 - a constant
        return int(count)


@contextmanager
def open_spool() -> Iterator[Spool]:
    """An empty one.

    Yields:
        It, until the block is left.
    """
    with closing(
        sqlite3.connect("", isolation_level=None)
    ) as connection:  # "": a file without a name, once it is large
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("BEGIN")
        yield Spool(connection)
