"""Archives over HTTP: everything under a prefix made larger, under another prefix.

Only prefixes below those that whoever runs the service has named (ARCHIVE_SOURCES, ARCHIVE_TARGETS), and only the
archives of one's own key. The work is done in steps elsewhere: see `handler.archive.steps`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.concurrency import run_in_threadpool

from handler import options
from handler.archive import document, order, targets
from handler.archive.order import Order, OrderState
from handler.jobs import check_id, utc_now
from handler.options import RequestOptions
from handler.settings import Settings
from handler.storage import NotFound
from handler.web.callers import gateway_key
from handler.web.problems import Problem, documented
from handler.web.schemas import JSON_CODES, LOCATION
from handler.web.service import Service, Shared, client_of
from handler.web.views import absolute

router = APIRouter(tags=["archives"])

#: Archives of one caller that have not ended.
MOST = 10

ArchiveId = Annotated[
    str, PathParameter(description="UUID of the archive, in lower case.", json_schema_extra={"format": "uuid"})
]


class ArchiveRequest(BaseModel):
    """Many pictures, and what to make of them."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(description="Prefix of the pictures.", min_length=1, max_length=900, examples=["scans/1912"])
    target: str = Field(
        description="Prefix of the results, which mirror the paths below the source.",
        min_length=1,
        max_length=900,
        examples=["upscaled/1912"],
    )
    options: RequestOptions = Field(default=RequestOptions(), description="What to make.", examples=[{"scale": 2}])
    names: str = Field(default=targets.TEMPLATE, max_length=200, description="Template of the results' names.")
    run: str = Field(
        default="",
        max_length=100,
        description="The same words are the same archive. Another text here lists the source anew: what is made "
        "already is found, and what failed is tried again.",
    )
    estimate_only: bool = Field(
        default=False, description="Only say what it will take; the same request without it makes the pictures."
    )


_HIDDEN = {"owner", "tries", "revision"}
ArchiveView = create_model(
    "Archive",
    __doc__="One archive, as it is now.",
    manifest_url=(
        str | None,
        Field(description="Downloads what came of every picture as CSV, for a while; null until it has ended."),
    ),
    **{name: (field.annotation, field) for name, field in Order.model_fields.items() if name not in _HIDDEN},  # type: ignore[call-overload]
)


@router.post(
    "/archives",
    status_code=201,
    summary="Make all pictures under a prefix larger",
    response_model=ArchiveView,
    responses={
        200: {"description": "The archive was there already.", "headers": LOCATION, "model": ArchiveView},
        201: {"headers": LOCATION},
        **documented(*JSON_CODES, "bad_options", "archives_refused"),
    },
)
async def create_archive(request: Request, service: Shared, wanted: ArchiveRequest) -> Response:
    """Below the prefixes that are open to callers. The same request again is the same archive, and says how far it is.

    The source is listed and estimated first, which takes a while; then jobs are begun, so many at a time.
    """
    return await run_in_threadpool(_create, request, service, wanted)


@router.get(
    "/archives/{id}",
    summary="How far an archive is",
    response_model=ArchiveView,
    responses=documented("invalid_id", "archive_not_found"),
)
def get_archive(request: Request, service: Shared, id: ArchiveId) -> Response:
    """Ask every minute or so until the state is succeeded, failed or cancelled."""
    return JSONResponse(_view(request, service, _find(request, service, id)))


@router.delete(
    "/archives/{id}",
    summary="Cancel an archive",
    response_model=ArchiveView,
    responses=documented("invalid_id", "archive_not_found", "already_final"),
)
def cancel_archive(request: Request, service: Shared, id: ArchiveId) -> Response:
    """Jobs at work are ended with the next step, in AWS within a quarter of an hour; results that are there stay."""
    now = _find(request, service, id)
    if now.state.final:
        raise Problem("already_final", f"the archive has {now.state} already")
    now = order.change(service.storage, id, lambda now: now.model_copy(update={"state": OrderState.CANCELLING}))
    return JSONResponse(_view(request, service, now))


def _create(request: Request, service: Service, wanted: ArchiveRequest) -> Response:
    settings, storage, owner = service.settings, service.storage, _owner(request)
    source, target = (f"{prefix.strip('/')}/" for prefix in (wanted.source, wanted.target))
    _check(settings, source, target)
    asked = wanted.options.model_dump(exclude_none=True)
    options.parse(asked, settings)
    now = utc_now()
    new = Order(
        id="", state=OrderState.PLANNING, source=source, target=target, names=targets.check_template(wanted.names),
        options=asked, run=wanted.run, estimate_only=wanted.estimate_only, created=now, updated=now, owner=owner,
    )  # fmt: skip
    new = new.model_copy(update={"id": order.order_id(settings.bucket, owner, new)})
    try:
        found, is_new = order.get(storage, new.id), False
    except NotFound:
        since = now - timedelta(days=settings.job_ttl_days)
        if sum(other.owner == owner for other in order.open_orders(storage, since)) >= MOST:
            detail = f"{MOST} archives of yours have not ended: wait for one, or cancel it"
            raise Problem("busy", detail, {"Retry-After": "60"}) from None
        found, is_new = order.create(storage, new)
    if found.estimate_only and not wanted.estimate_only:
        found = order.change(storage, found.id, _go_on)
    return JSONResponse(_view(request, service, found), 201 if is_new else 200, {"Location": f"archives/{found.id}"})


def _go_on(now: Order) -> Order:
    """What was only to be estimated is to be made, too."""
    state = OrderState.PLANNING if now.state is OrderState.PLANNED else now.state
    return now.model_copy(update={"state": state, "estimate_only": False})


def _check(settings: Settings, source: str, target: str) -> None:
    """Whether callers may have these prefixes.

    Raises:
        Problem: they may not.
        core.OptionsError, storage.InvalidKey: nobody may.
    """
    sources, results = settings.archive_prefixes
    if not sources or not results:
        raise Problem("archives_refused")
    if not settings.local and not settings.has_batch:
        raise Problem("archives_refused", "archives need machines on AWS Batch, and this service has none")
    for prefix, among, what in ((source, sources, "pictures"), (target, results, "results")):
        if not prefix.startswith(among):
            raise Problem("archives_refused", f"{what} of archives lie below {', '.join(among)}")
    targets.check_prefixes(source, target)


def _find(request: Request, service: Service, id: str) -> Order:
    """The archive of this id, for whoever asked for it.

    Raises:
        Problem: there is none of the caller's.
        jobs.InvalidId: not a UUID.
    """
    try:
        found = order.get(service.storage, check_id(id))
    except NotFound:
        raise Problem("archive_not_found") from None
    if found.owner != _owner(request):
        raise Problem("archive_not_found")
    return found


def _owner(request: Request) -> str:
    """Whose archive it is: by the key of API Gateway, or as jobs are."""
    return gateway_key(request.scope) or client_of(request)


def _view(request: Request, service: Service, now: Order) -> dict[str, Any]:
    """An archive as JSON, by `ArchiveView`."""
    shown: dict[str, Any] = now.model_dump(mode="json", exclude=_HIDDEN)
    shown["manifest_url"] = None
    if now.parts and now.state in (OrderState.SUCCEEDED, OrderState.CANCELLED):
        seconds = service.settings.link_seconds
        link = service.storage.download_link(document.manifest_key(now.id), "manifest.csv", seconds)
        shown["manifest_url"] = absolute(request, link)
    return shown
