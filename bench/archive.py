"""What an archive of 100,000 pictures asks of the store and of memory: python -m bench.archive

The store is in memory, its sources are made up as they are asked for, and the network does nothing: what is left is
the program. Requests are counted as S3 would charge them. The second half of the table is the same archive, killed
half-way and started again; a result that was made twice would end the run.
"""

from __future__ import annotations

import argparse
import io
import resource
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

import core
from handler.archive import __main__ as command
from handler.settings import Settings
from handler.storage import JSON, Changed, Exists, NotFound, ObjectInfo, UploadLink

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process ends here: nothing that handles errors sees it."""


class MadeTwice(BaseException):
    """What must not happen; no worker may take it for the fault of a picture."""


class MemoryStorage:
    """A store in memory that counts requests; for one thread that writes, beside the one that keeps a lease."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str, str, Mapping[str, str]]] = {}
        self.requests: Counter[str] = Counter()
        self._writes = 0

    def _find(self, key: str) -> tuple[bytes, str, str, Mapping[str, str]]:
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"nothing is stored under {key!r}") from None

    def _keep(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str] | None = None) -> str:
        self._writes += 1
        etag = f'"{self._writes}"'
        self.objects[key] = zlib.compress(data, 1), etag, content_type, metadata or {}
        return etag

    def get(self, key: str) -> tuple[bytes, str]:
        """See `Storage`."""
        self.requests["GET"] += 1
        data, etag, *_ = self._find(key)
        return zlib.decompress(data), etag

    def read_range(self, key: str, start: int, length: int, etag: str = "") -> bytes:
        """See `Storage`."""
        data, now = self.get(key)
        if etag not in ("", now):
            raise Changed(f"{key!r} has changed")
        return data[start : start + length]

    def download(self, key: str, path: Path) -> None:
        """See `Storage`."""
        path.write_bytes(self.get(key)[0])

    def download_version(self, key: str, path: Path, etag: str) -> None:
        """See `Storage`."""
        data, now = self.get(key)
        if etag not in ("", now):
            raise Changed(f"{key!r} has changed")
        path.write_bytes(data)

    def put(self, key: str, data: bytes, content_type: str) -> str:
        """See `Storage`."""
        self.requests["PUT"] += 1
        return self._keep(key, data, content_type)

    def upload(self, path: Path, key: str, content_type: str) -> None:
        """See `Storage`."""
        self.put(key, path.read_bytes(), content_type)

    def create(self, key: str, data: bytes, content_type: str = JSON) -> str:
        """See `Storage`."""
        self.requests["PUT"] += 1
        if key in self.objects:
            raise Exists(f"{key!r} exists already")
        return self._keep(key, data, content_type)

    def create_file(self, path: Path, key: str, content_type: str, metadata: Mapping[str, str]) -> None:
        """See `Storage`."""
        self.create(key, path.read_bytes(), content_type)
        self._keep(key, path.read_bytes(), content_type, metadata)

    def swap(self, key: str, data: bytes, etag: str, content_type: str = JSON) -> str:
        """See `Storage`."""
        self.requests["PUT"] += 1
        if key not in self.objects or self.objects[key][1] != etag:
            raise Changed(f"{key!r} has changed")
        return self._keep(key, data, content_type)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        self.requests["DELETE"] += 1
        self.objects.pop(key, None)

    def head(self, key: str) -> ObjectInfo:
        """See `Storage`."""
        self.requests["HEAD"] += 1
        data, etag, content_type, metadata = self._find(key)
        return ObjectInfo(key, len(data), etag, NOW, content_type, metadata)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Storage`."""
        found = sorted(key for key in self.objects if key.startswith(prefix))
        self.requests["LIST"] += 1 + len(found) // 1000
        for key in found:
            data, etag, *_ = self.objects[key]
            yield ObjectInfo(key, len(data), etag, NOW)

    def upload_link(self, key: str, content_type: str, max_bytes: int, seconds: int) -> UploadLink:
        """See `Storage`."""
        raise NotImplementedError

    def download_link(self, key: str, filename: str, seconds: int) -> str:
        """See `Storage`."""
        raise NotImplementedError

    def sweep(self, older_than: datetime) -> int:  # noqa: ARG002 - nothing expires
        """See `Storage`."""
        return 0


class Scans(MemoryStorage):
    """Made-up sources, all the same picture; of results only their metadata is kept.

    Args:
        count: of sources.
        kill_at: ends the process after so many results.
    """

    def __init__(self, count: int, kill_at: int) -> None:
        super().__init__()
        self.count, self.kill_at = count, kill_at
        self.results: dict[int, Mapping[str, str]] = {}
        stream = io.BytesIO()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, "PNG")
        self.picture = zlib.compress(stream.getvalue())

    def _find(self, key: str) -> tuple[bytes, str, str, Mapping[str, str]]:
        if key.startswith("scans/"):
            return self.picture, '"1"', "image/png", {}
        if key.startswith("out/") and hash(key) in self.results:
            return b"", '"1"', "image/png", self.results[hash(key)]
        return super()._find(key)

    def create_file(self, path: Path, key: str, content_type: str, metadata: Mapping[str, str]) -> None:  # noqa: ARG002
        """See `Storage`."""
        self.requests["PUT"] += 1
        if hash(key) in self.results:
            raise MadeTwice(key)
        path.stat()
        self.results[hash(key)] = metadata
        if len(self.results) == self.kill_at:
            raise Killed

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Storage`."""
        if prefix != "scans/":
            yield from super().list(prefix)
            return
        self.requests["LIST"] += self.count // 1000
        for number in range(self.count):
            yield ObjectInfo(f"scans/box {number // 1000}/scan {number:06}.png", 30_000_000, '"1"', NOW)


def copy(source: Path, _options: core.Options, *, output: Path, **_: Any) -> core.Result:
    """The network that does nothing."""
    shutil.copyfile(source, output)
    return core.Result(
        data=None, format="png", media_type="image/png", width=8, height=8, model="none", degraded=False, reason="",
        device="cpu", dtype="none", tiles=1, seconds=0.0, load_seconds=0.0, notes=(), frames=1,
    )  # fmt: skip


def run(store: Scans, settings: Settings, rate: float) -> tuple[float, float, float]:
    """One call of the command: wall seconds, processor seconds, and peak memory of the process, MB."""
    given = command.parser().parse_args(["scans", "out", "--here", "--rate", str(rate)])
    start, before = time.perf_counter(), time.process_time()
    nothing_shown = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with mock.patch.object(core, "upscale", copy), nothing_shown[0], nothing_shown[1], suppress(Killed):
        command.run(store, settings, given, lambda: False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return time.perf_counter() - start, time.process_time() - before, peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=0.5, help="seconds of a made-up megapixel: how large parts are")
    given = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"peak memory before: {before:.0f} MB")
    heads = [
        "",
        "results",
        "wall, s",
        "CPU, s",
        "peak MB",
        "GET",
        "HEAD",
        "PUT",
        "LIST",
        "DELETE",
        "requests a picture",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # Nobody takes a lease over here but the second run, which then need not wait long.
        # Decoding is as in a container of AWS, in the same process; the store is not asked for by the bucket's name.
        settings = Settings(data_dir=Path(folder), bucket="simulated", lease_seconds=2)
        for kill_at in (-1, given.pictures // 2):
            store = Scans(given.pictures, kill_at)
            names = ["in one run"] if kill_at < 0 else ["killed half-way", "and started again"]
            done = 0
            for name in names:
                store.requests.clear()
                wall, cpu, peak = run(store, settings, given.rate)
                made, done = len(store.results) - done, len(store.results)
                counts = [store.requests[kind] for kind in ("GET", "HEAD", "PUT", "LIST", "DELETE")]
                cells = [name, f"{made:,}", f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.0f}", *(f"{n:,}" for n in counts)]
                print(f"| {' | '.join(cells)} | {sum(counts) / max(1, made):.2f} |", flush=True)
            assert done == given.pictures, "a picture is missing"


if __name__ == "__main__":
    main()
