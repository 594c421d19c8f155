"""What an archive will take, before it runs: pixels from a sample of headers, time and money from rates.

Prices are those of us-east-1 as of 2025, in US dollars: list price, verify before relying on it. Spot's price changes
by the minute; `SPOT_SHARE` is an assumption (`aws ec2 describe-spot-price-history` says what it is).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import core
from core import models
from handler.archive.document import Picture
from handler.remote_file import probe
from handler.settings import Settings
from handler.storage import Storage, StorageError

PRICES_OF = "2025, us-east-1"
#: A g5.xlarge on demand, an hour.
MACHINE_HOUR = 1.006
#: What Spot costs of that: an assumption.
SPOT_SHARE = 0.5
#: A request of S3 that writes or lists, and one that reads.
WRITE_REQUEST, READ_REQUEST = 5e-6, 4e-7
#: A GB stored for a month.
STORED_GB_MONTH = 0.023

#: Seconds that a megapixel of input takes in a container: an assumption until it was measured on the machine used.
CONTAINER_RATE = 0.5
#: Seconds of a picture that do not depend on its size: three requests of S3, in the region.
PICTURE_SECONDS = 0.3
#: Seconds from the start of a container to its first picture: an assumption.
START_SECONDS = 30.0
#: Requests for a picture: its result's key is looked at, the source is read, the result is written.
READS, WRITES = 2, 1
#: Requests for a part: the list, its job, claim and end, rows every `part.FLUSH_SECONDS`; without the lease's.
PART_READS, PART_WRITES = 12, 10
#: Of a part, for each minute that it takes: the lease is renewed, the job looked at, rows are written.
MINUTE_READS, MINUTE_WRITES = 35, 7

SAMPLE = 24


@dataclass(frozen=True)
class Sample:
    """What a few headers say of all.

    Attributes:
        megapixels_per_byte: by ending, in lower case.
        seconds_here: that a megapixel takes on this machine, by the core's estimate.
        enlarged: pixels of a result for each of its input.
        unreadable: of the sample, with the reasons.
        seen: how many headers were read.
    """

    megapixels_per_byte: dict[str, float]
    seconds_here: float
    enlarged: float
    unreadable: tuple[str, ...]
    seen: int

    def megapixels(self, picture: Picture) -> float:
        """Of one picture, by its size and ending; where nothing is known, those of an average photo."""
        every = self.megapixels_per_byte
        if not every:
            return 12.0
        rate = every.get(PurePosixPath(picture.source).suffix.lower()) or statistics.median(every.values())
        # A list may say nothing of sizes.
        return picture.size * rate if picture.size else 12.0


@dataclass(frozen=True)
class Forecast:
    """What an archive will take.

    Attributes:
        pictures: how many.
        parts: jobs.
        megapixels: of all inputs.
        seconds: of work in all.
        hours: from start to end with so many containers at once.
        machine: US dollars for the machines on demand; nothing for work on this one.
        spot: the same on Spot.
        reads: requests of S3 that read.
        writes: requests of S3 that write or list.
        requests: US dollars for them.
    """

    pictures: int
    parts: int
    megapixels: float
    seconds: float
    hours: float
    machine: float
    spot: float
    reads: int
    writes: int
    requests: float


def sample(storage: Storage, settings: Settings, pictures: Sequence[Picture], options: core.Options) -> Sample:
    """Read the headers of a few pictures.

    Raises:
        storage.Unavailable: the store fails.
    """
    rates: dict[str, list[float]] = {}
    seconds, enlarged, unreadable = [], [], []
    for picture in pictures:
        try:
            header = probe(storage, picture.source, settings)
            megapixels = header.width * header.height * header.frames / 1e6
            width, height = options.output_size(header.width, header.height)
            seconds.append(_seconds(header, options) / megapixels)
            enlarged.append(width * height / (header.width * header.height))
        except (core.UpscaleError, StorageError) as error:
            unreadable.append(f"{picture.source}: {error}")
            continue
        if picture.size:
            ending = PurePosixPath(picture.source).suffix.lower()
            rates.setdefault(ending, []).append(megapixels / picture.size)
    return Sample(
        {ending: statistics.mean(found) for ending, found in rates.items()},
        statistics.mean(seconds) if seconds else 0.0,
        statistics.mean(enlarged) if enlarged else 4.0,
        tuple(unreadable),
        len(pictures),
    )


def _seconds(header: core.Probe, options: core.Options) -> float:
    """Of one picture on this machine, by the first model of the fall-back chain whose numbers can be had."""
    chain = models.fallback_chain(options.model, options.factor(header.width, header.height), header.format)
    for name in chain:
        try:
            return core.estimate(header.width, header.height, replace(options, model=name), picture=header).seconds
        except core.ModelError:
            continue
    return 0.0


def forecast(
    pictures: int, parts: int, megapixels: float, *, rate: float, at_once: int, hour: float = MACHINE_HOUR
) -> Forecast:
    """Time and cost of a whole archive. A pure function.

    Args:
        pictures: how many.
        parts: jobs.
        megapixels: of all inputs.
        rate: seconds that a megapixel takes.
        at_once: containers.
        hour: US dollars for an hour of a machine; 0 for this one.
    """
    seconds = megapixels * rate + pictures * PICTURE_SECONDS + parts * START_SECONDS
    reads = round(pictures * READS + parts * PART_READS + seconds / 60 * MINUTE_READS)
    writes = round(pictures * WRITES + parts * PART_WRITES + seconds / 60 * MINUTE_WRITES + pictures / 1000)
    machine = seconds / 3600 * hour
    return Forecast(
        pictures=pictures,
        parts=parts,
        megapixels=megapixels,
        seconds=seconds,
        hours=seconds / 3600 / max(1, min(at_once, parts)),
        machine=machine,
        spot=machine * SPOT_SHARE,
        reads=reads,
        writes=writes,
        requests=reads * READ_REQUEST + writes * WRITE_REQUEST,
    )


def describe(found: Forecast, *, here: bool, rate: float) -> str:
    """The forecast for people."""
    lines = [
        f"{found.pictures:,} pictures, about {found.megapixels:,.0f} megapixels, in {found.parts:,} jobs",
        f"about {found.seconds / 3600:,.1f} machine hours at {rate:.3g} s a megapixel, "
        f"{found.hours:,.1f} hours from start to end",
    ]
    if not here:
        lines.append(
            f"about {found.machine:,.2f} USD of machines on demand, {found.spot:,.2f} on Spot if that costs "
            f"{SPOT_SHARE:.0%} of it, and {found.requests:,.2f} USD for {found.reads + found.writes:,} requests of S3 "
            f"(list price of {PRICES_OF}, verify)"
        )
    return "\n".join(lines)
