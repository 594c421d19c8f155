"""An archive that was asked for over HTTP: one document, changed only by compare and swap.

    planning -> planned | running -> succeeded
    planning, planned, running -> cancelling -> cancelled;  planning -> failed

Who works on it is nobody in particular: every step (`steps`) finds in the store how far it is.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from handler.archive import document
from handler.jobs import utc_now
from handler.storage import Changed, Exists, NotFound, Storage, Unavailable

log = logging.getLogger(__name__)

PREFIX = "orders/"


class OrderState(StrEnum):
    """Where an order stands."""

    PLANNING = "planning"
    PLANNED = "planned"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in (OrderState.SUCCEEDED, OrderState.FAILED, OrderState.CANCELLED)


class Forecast(BaseModel):
    """What an archive will take; see `estimation.Forecast`."""

    model_config = ConfigDict(frozen=True)

    megapixels: float = Field(description="Of all pictures, from a sample of their headers.")
    seconds: float = Field(description="Of work in all.")
    hours: float = Field(description="From start to end.")
    cost: float | None = Field(description="US dollars for machines on demand and requests; null on this machine.")
    passed_over: dict[str, int] = Field(description="What is no picture, by its ending.")
    unreadable: int = Field(description="Of the sample, how many could not be read.")


class Order(BaseModel):
    """An archive as it was asked for, and how far it is."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="UUID; the same words of the same caller give the same one.")
    state: OrderState
    source: str = Field(description="Prefix of the pictures.")
    target: str = Field(description="Prefix of the results.")
    names: str = Field(description="Template of the results' names.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="As requested.")
    run: str = Field(default="", description="As requested.")
    estimate_only: bool = Field(default=False, description="Whether nothing is made yet.")
    estimate: Forecast | None = Field(default=None, description="Null until the source is listed.")
    pictures: int = Field(default=0, description="How many are made; 0 until the source is listed.")
    parts: int = Field(default=0, description="Jobs that make them.")
    parts_done: int = Field(default=0, description="How many of those have ended.")
    done: int = Field(default=0, description="Pictures with a result, once all has ended.")
    failed: int = Field(default=0, description="Pictures without one, once all has ended: the manifest says why.")
    error: str = Field(default="", description="Why it failed, in one sentence.")
    created: datetime
    updated: datetime
    owner: str = ""
    tries: int = 0
    revision: str = ""


def order_id(bucket: str, owner: str, wanted: Order) -> str:
    """The id of what a caller has asked for: the same for the same words, and for nobody else."""
    run = f"{owner}\0{wanted.run}"
    return document.archive_id(bucket, wanted.source, wanted.target, wanted.names, wanted.options, run)


def create(storage: Storage, order: Order) -> tuple[Order, bool]:
    """Store an order, unless it is there; as it is stored, and whether it is new."""
    try:
        storage.create(_key(order.id), order.model_dump_json().encode())
    except Exists:
        return get(storage, order.id), False
    return order, True


def get(storage: Storage, id: str) -> Order:
    """The order as it is now.

    Raises:
        storage.NotFound.
    """
    return Order.model_validate_json(storage.get(_key(id))[0])


def change(storage: Storage, id: str, fn: Callable[[Order], Order]) -> Order:
    """Apply a function to the order, again until nobody came between; what is final stays as it is.

    Returns:
        The order as it is stored now.

    Raises:
        storage.NotFound.
    """
    mine: str | None = None
    for _ in range(20):
        data, etag = storage.get(_key(id))
        order = Order.model_validate_json(data)
        if order.state.final or order.revision == mine:  # the answer to our write may have been lost
            return order
        mine = uuid.uuid4().hex
        new = fn(order).model_copy(update={"revision": mine, "updated": utc_now()})
        try:
            storage.swap(_key(id), new.model_dump_json().encode(), etag)
        except Changed:
            continue
        return new
    raise Unavailable("the archive is being changed by others all the time")


def open_orders(storage: Storage, since: datetime) -> Iterator[Order]:
    """Orders that have not ended, of those that were written since then; each step on an order writes it.

    Yields:
        Each.
    """
    for found in storage.list(PREFIX):
        if found.modified < since:
            continue
        try:
            order = Order.model_validate_json(storage.get(found.key)[0])
        except (NotFound, ValidationError):
            log.warning("not an order: %r", found.key)
            continue
        if not order.state.final:
            yield order


def _key(id: str) -> str:
    return f"{PREFIX}{id}.json"
