"""What an archive keeps in the store.

    archives/<id>/plan.json                  the plan, written last: it is there when the lists are complete
    archives/<id>/<round>/000001.jsonl       a part: one `Picture` a line
    archives/<id>/<round>/000001/….jsonl     what its workers have written down so far: one `Row` a line
    archives/<id>/<round>/000001.done.jsonl  what came of it, complete: one `Row` a line
    archives/<id>/<round>/refused.jsonl      pictures that no part has, each with the reason
    archives/<id>/manifest.csv               what came of all
    orders/<id>.json                         an archive that was asked for over HTTP: see `order`

A round is one listing: the first, and one for each time that failures were tried again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue

PREFIX = "archives/"
CONTENT_TYPE = "application/x-ndjson"
#: Ids of archives and of their jobs follow from what they are for within this name space.
NAMESPACE = uuid.UUID("7d1c7e9e-41c5-4a0f-9a0b-1f5c9a8f2d36")
#: Names of the metadata of a result.
MADE_FROM, MADE_BY, MADE_IN = "upscale-of", "upscale-model", "upscale-seconds"


@dataclass(frozen=True)
class Picture:
    """One picture to make.

    Attributes:
        source: key of the input.
        etag: of the input when it was listed; empty where the list has none.
        size: bytes of the input.
        target: key of the result; its ending gives way to that of another format.
    """

    source: str
    etag: str
    size: int
    target: str = ""


@dataclass(frozen=True)
class Row:
    """What came of a picture.

    Attributes:
        source: key of the input.
        result: key of the result; empty without one.
        model: that made it.
        seconds: of work.
        error: a stable name; empty when the result is there. `TRIED`, `LEFT` and `UNPLANNED` say more.
        message: one sentence on the error, or on a fallback.
    """

    source: str
    result: str = ""
    model: str = ""
    seconds: float = 0.0
    error: str = ""
    message: str = ""


#: `Row.error` of a picture that a worker has begun, while it is careful, and of one that it handed back unfinished.
TRIED, LEFT = "_tried", "_left"


class Round(BaseModel):
    """One listing: so many parts, and so many pictures in them."""

    model_config = ConfigDict(frozen=True)

    name: str
    parts: int
    pictures: int
    refused: int = 0


class Plan(BaseModel):
    """An archive as it is stored; only `rounds` ever grows."""

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    target: str
    template: str
    options: dict[str, JsonValue]
    created: datetime
    rounds: list[Round]

    @property
    def parts(self) -> int:
        """How many there are, of all rounds."""
        return sum(round.parts for round in self.rounds)

    def part_keys(self, round: Round) -> Iterator[str]:
        """The keys of the parts of a round.

        Yields:
            Each, in order.
        """
        for number in range(1, round.parts + 1):
            yield part_key(self.id, round.name, number)


def archive_id(bucket: str, source: str, target: str, template: str, options: dict[str, JsonValue], run: str) -> str:
    """The id of the archive that was asked for: the same for the same words."""
    words = json.dumps([bucket, source, target, template, options, run], sort_keys=True)
    return str(uuid.uuid5(NAMESPACE, words))


def job_id(part: str, tries: int) -> str:
    """The id of the job that makes a part, by how many before it have failed."""
    return str(uuid.uuid5(NAMESPACE, f"{part}\0{tries}"))


def made_from(picture: Picture, options: dict[str, JsonValue]) -> str:
    """What a result carries to be known by: source, version and options, hashed."""
    words = json.dumps([picture.source, picture.etag.strip('"'), options], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def plan_key(id: str) -> str:
    """Where the plan is."""
    return f"{PREFIX}{id}/plan.json"


def manifest_key(id: str) -> str:
    """Where the manifest is."""
    return f"{PREFIX}{id}/manifest.csv"


def round_prefix(id: str, name: str) -> str:
    """Where the parts of a round are."""
    return f"{PREFIX}{id}/{name}/"


def part_key(id: str, round: str, number: int) -> str:
    """Where a part is."""
    return f"{round_prefix(id, round)}{number:06}.jsonl"


def refused_key(id: str, round: str) -> str:
    """Where the pictures are that no part has."""
    return f"{round_prefix(id, round)}refused.jsonl"


def rows_prefix(part: str) -> str:
    """Where workers on a part write down what they have done so far."""
    return part.removesuffix(".jsonl") + "/"


def done_key(part: str) -> str:
    """Where the rows of a finished part are."""
    return part.removesuffix(".jsonl") + ".done.jsonl"


def dump_lines(items: Iterable[Picture | Row]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items).encode()


def load_pictures(data: bytes) -> list[Picture]:
    """What `dump_lines` wrote.

    Raises:
        ValueError, TypeError.
    """
    return [Picture(**json.loads(line)) for line in data.decode().split("\n") if line]


def load_rows(data: bytes) -> list[Row]:
    """What `dump_lines` wrote.

    Raises:
        ValueError, TypeError.
    """
    return [Row(**json.loads(line)) for line in data.decode().split("\n") if line]
