"""POST /upscale: one picture in, the larger one out, or a job where that would take too long."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

import core
from core import models
from core.formats import FORMATS, MEDIA_TYPES
from handler import jobs, logs, options, routing, s3_models
from handler.jobs import Backend, Estimate, Job
from handler.names import MAX_NAME, content_disposition, file_name, without_folders
from handler.options import RequestOptions
from handler.web import preferences
from handler.web.forms import merge_options, receive_picture
from handler.web.problems import documented
from handler.web.schemas import LOCATION, PICTURE_CODES, UPSCALE_HEADERS, JobView, picture_body
from handler.web.service import Service, Shared, client_of
from handler.web.views import view
from handler.workspace import workspace

log = logging.getLogger(__name__)
router = APIRouter(tags=["upscale"])

_CHUNK = 1 << 20
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, as a download.",
        "headers": UPSCALE_HEADERS,
        "content": {MEDIA_TYPES[format]: {"schema": {"type": "string", "format": "binary"}} for format in FORMATS},
    },
    202: {
        "description": "The work is too long to wait for, or `Prefer: respond-async` was sent: a job.",
        "headers": LOCATION,
        "model": JobView,
    },
    303: {
        "description": "The picture is too large for a response, and lies where this leads.",
        "headers": {**UPSCALE_HEADERS, **LOCATION},
    },
    **documented(*PICTURE_CODES, "bad_options", "out_of_memory"),
}


@router.post(
    "/upscale",
    summary="Make one picture larger",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"requestBody": picture_body(options=True)},
)
async def upscale(
    request: Request,
    service: Shared,
    query: Annotated[RequestOptions, Query()],  # noqa: ARG001 - checked and described here, merged with the form below
    prefer: Annotated[
        str,
        Header(
            description="`respond-async`: answer with a job at once; `wait=60`: with the picture itself if it is "
            "estimated to take at most so many seconds, else with a job.",
            examples=["respond-async"],
        ),
    ] = "",
    accept: Annotated[str, Header(description="An image type chooses the format where no option names one.")] = "*/*",
) -> Response:
    """Send the picture as the part `file` of a multipart form; options go in the query or in the form.

    Or send JSON with the options and the picture's `url`, or the picture itself as `image`.

    The answer is the larger picture, with the name to save it under. Where the work would take too long, it is a
    job instead; where the picture is too large for a response, a redirect to it.
    """
    wants_job, wait = preferences.preferred(prefer)
    client = client_of(request)
    if not wants_job:
        service.limiter.check(client)  # before the body is read
    async with receive_picture(request, service) as (file, fields):
        given = merge_options(request.query_params.multi_items(), fields)
        if "format" not in given and (format := preferences.accepted(accept)):
            given["format"] = format
        asked = options.parse(given, service.settings)
        name = file_name(file.filename or "")
        prepare = partial(_prepare, service, file.file, asked)
        header, plan = await anyio.to_thread.run_sync(prepare, limiter=service.headers)
        waits = plan.route is Backend.INLINE and (wait is None or plan.seconds <= wait)
        if service.settings.local and wait is not None:
            waits = plan.seconds <= wait
        if wants_job or not waits:
            kept = RequestOptions.model_validate(given).model_dump(exclude_none=True)
            job = await run_in_threadpool(_defer, service, client, file.file, name, kept, header, plan)
            headers = {"Location": f"jobs/{job.id}", "Retry-After": "1"}
            if wants_job:
                headers["Preference-Applied"] = "respond-async"
            elif wait is not None:
                headers["Preference-Applied"] = f"wait={wait:g}"
            return JSONResponse(view(request, service, job), 202, headers)
        chosen, missing = await run_in_threadpool(s3_models.with_local_model, asked, service.settings)
        if not await run_in_threadpool(_is_here, chosen):
            await anyio.to_thread.run_sync(_have_model, chosen, limiter=service.downloads)
        async with service.limiter.enter(plan.seconds, client, request.is_disconnected):
            made, result = await _while_connected(request, partial(_make, service, file.file, chosen))
    name = chosen.result_name(name, made.format, max_bytes=MAX_NAME)
    headers = {
        "Content-Disposition": content_disposition(name),
        # A model from S3 ran as a directory of this machine; people know it by the name that they gave.
        "X-Upscale-Model": without_folders(str(asked.model) if made.model == chosen.model else made.model),
        "X-Upscale-Degraded": str(made.degraded).lower(),
        "X-Upscale-Milliseconds": str(round((made.seconds + made.load_seconds) * 1000)),
    }
    if made.degraded:
        log.warning("made by %s, a fallback: %s", made.model, missing or made.reason)
        if not service.settings.local:
            _count_fallback()
    size = os.fstat(result.fileno()).st_size
    if service.settings.response_limit is not None and size > service.settings.response_limit:
        link = await run_in_threadpool(_keep, service, result, name, made.media_type)
        del headers["Content-Disposition"]
        return JSONResponse({"result_url": link}, 303, headers | {"Location": link})
    return StreamingResponse(
        _chunks(result), media_type=made.media_type, headers=headers | {"Content-Length": str(size)}
    )


def _prepare(service: Service, file: BinaryIO, asked: core.Options) -> tuple[core.Probe, Estimate]:
    header = core.probe(file, options.limits(service.settings))
    return header, routing.plan(header, asked, service.settings)


def _is_here(asked: core.Options) -> bool:
    """Whether no model is to be downloaded: then nobody waits behind those who wait for one."""
    return asked.model is None or Path(asked.model).exists() or models.is_here(asked.model)


def _have_model(asked: core.Options) -> None:
    """Wait for a download before there is a place to work for it, in threads that requests do not need."""
    if asked.model is not None:
        with suppress(core.ModelError):  # the chain of fall-backs is the core's
            models.fetch(models.spec_of(asked.model))


def _make(
    service: Service, file: BinaryIO, asked: core.Options, progress: Callable[[int, int], None]
) -> tuple[core.Result, BinaryIO]:
    """Upscale one picture; the result is in a file that has no name any more, so that a crash leaves nothing."""
    with workspace() as folder:
        output = folder / "result"
        made = core.upscale(file, asked, output=output, limits=options.limits(service.settings), progress=progress)
        return made, output.open("rb")


def _keep(service: Service, file: BinaryIO, name: str, media_type: str) -> str:
    """Store a result that no response can carry.

    Returns:
        Its link.
    """
    key = f"results/{jobs.new_id()}/0/{name}"
    with workspace() as folder:
        path = folder / "result"
        with file, path.open("wb") as target:
            shutil.copyfileobj(file, target, _CHUNK)
        service.storage.upload(path, key, media_type)
    return service.storage.download_link(key, name, service.settings.link_seconds)


def _defer(
    service: Service,
    owner: str,
    file: BinaryIO,
    name: str,
    asked: Mapping[str, Any],
    header: core.Probe,
    plan: Estimate,
) -> Job:
    """Make a job of a picture that is here already."""
    service.check_jobs(owner, plan.seconds)
    media_type = MEDIA_TYPES[header.format]
    wanted = jobs.Request(filename=name, content_type=media_type, bytes=header.bytes, options=dict(asked))
    job = jobs.create(service.storage, wanted, ttl=service.ttl, estimate=plan, owner=owner)
    with workspace() as folder:
        path = folder / "input"
        file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(file, target, _CHUNK)
        service.storage.upload(path, job.input.key, media_type)
    if service.settings.local:
        job = jobs.uploaded(service.storage, job.id, width=header.width, height=header.height)
        service.start(job.id)
    return job


async def _while_connected(
    request: Request, work: Callable[[Callable[[int, int], None]], tuple[core.Result, BinaryIO]]
) -> tuple[core.Result, BinaryIO]:
    """Run work in a thread, and stop it between two tiles when nobody waits for it any more."""
    gone = threading.Event()

    def progress(_done: int, _total: int) -> None:
        if gone.is_set():
            raise core.Cancelled("the client is gone")

    if await request.is_disconnected():
        raise ClientDisconnect
    task = asyncio.ensure_future(run_in_threadpool(work, progress))
    try:
        while not (await asyncio.wait({task}, timeout=0.5))[0]:
            if await request.is_disconnected():
                gone.set()
        return task.result()
    except core.Cancelled:
        raise ClientDisconnect from None
    finally:
        gone.set()


def _count_fallback() -> None:
    """As the function for upload events counts them; one line of CloudWatch's embedded format."""
    from aws_lambda_powertools.metrics import MetricUnit, single_metric

    with single_metric(name="Fallback", unit=MetricUnit.Count, value=1, namespace=logs.NAMESPACE) as metric:
        metric.add_dimension(name="service", value=logs.SERVICE)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
