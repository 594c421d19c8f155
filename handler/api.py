"""The HTTP interface: FastAPI here, behind API Gateway or a function URL by Mangum, and on one machine by uvicorn."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import urljoin

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import core
from core import models
from core.formats import FORMATS, MEDIA_TYPES, READABLE
from handler import dispatch, guard, jobs, logs, options, problems, webhook, worker
from handler.jobs import Backend, State
from handler.options import Asked
from handler.problems import Problem, documented
from handler.settings import Settings, get_settings
from handler.storage import (
    DOWNLOAD_PATH,
    UPLOAD_PATH,
    LocalStorage,
    NotFound,
    Storage,
    content_disposition,
    file_name,
    open_storage,
)
from handler.workspace import workspace

log = logging.getLogger(__name__)

#: Requests that may wait for a picture in work to be finished; more are sent away with 503.
WAITING = 8
#: Headers that a page of another origin may read.
EXPOSED = (
    "Content-Disposition",
    "Location",
    "Retry-After",
    "X-Request-Id",
    "X-Upscale-Degraded",
    "X-Upscale-Milliseconds",
    "X-Upscale-Model",
)
_CHUNK = 1 << 20
_PAGE = Path(__file__).parent / "web" / "index.html"
_DESCRIPTION = """
Makes pictures larger. Send one to `POST /upscale` and save the answer:

    curl -F "file=@photo.jpg" "http://127.0.0.1:8000/upscale?scale=2" --output photo-x2.jpg

Long work, and files that are too large for a request, go by jobs: `POST /jobs`, send the file to the link that it
gives, and ask `GET /jobs/{id}` until it has succeeded.

Errors are problem details (RFC 9457). Every answer carries `X-Request-Id`.
"""

#: OpenAPI: headers of answers.
_UPSCALE_HEADERS = {
    "Content-Disposition": {"description": "The name to save the picture under.", "schema": {"type": "string"}},
    "X-Upscale-Model": {"description": "The model that made the picture.", "schema": {"type": "string"}},
    "X-Upscale-Degraded": {
        "description": "Whether that is a fallback, because the model asked for could not be had.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "X-Upscale-Milliseconds": {
        "description": "From decoding to encoding, the loading of the model included.",
        "schema": {"type": "integer"},
    },
}
_LOCATION = {"Location": {"description": "Where it is; may be relative to this URL.", "schema": {"type": "string"}}}

#: What can be wrong with any JSON body.
_JSON_CODES = ("malformed_request", "unsupported_media_type", "bad_request")
#: OpenAPI: the body of POST /upscale.
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": f"The picture: {READABLE}.",
                    },
                    **Asked.model_json_schema()["properties"],
                },
                "additionalProperties": False,
            }
        }
    },
}

JobId = Annotated[
    str, PathParameter(description="UUID of the job, in lower case.", json_schema_extra={"format": "uuid"})
]


class JobRequest(BaseModel):
    """A picture that will be uploaded, and what to make of it."""

    model_config = ConfigDict(extra="forbid")

    filename: str = Field(description="Name of the picture's file.", min_length=1, examples=["photo.jpg"])
    content_type: str = Field(
        description="Media type of the file; the upload must be declared as exactly this.",
        pattern=r"^(image/[A-Za-z0-9.+-]{1,60}|application/octet-stream)$",
        examples=["image/jpeg"],
    )
    bytes: int | None = Field(
        default=None, ge=1, description="Size of the file, the most that the upload takes.", examples=[2_000_000]
    )
    options: Asked = Field(default=Asked(), description="What to make.", examples=[{"scale": 2}])
    webhook: str | None = Field(
        default=None, max_length=2000, description="URL that is called once with POST on the final state."
    )
    width: int | None = Field(
        default=None, ge=1, le=200_000, description="Of the picture in pixels, if known: for the estimate."
    )
    height: int | None = Field(
        default=None, ge=1, le=200_000, description="Of the picture in pixels, if known: for the estimate."
    )

    def as_request(self) -> jobs.Request:
        """The part that makes the job what it is."""
        return jobs.Request(
            filename=file_name(self.filename),
            content_type=self.content_type,
            bytes=self.bytes,
            options=self.options.model_dump(exclude_none=True),
            webhook=self.webhook,
        )


class EstimateRequest(BaseModel):
    """A picture's size, and what would be made of it."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, le=200_000, description="Of the input, pixels.", examples=[512])
    height: int = Field(ge=1, le=200_000, description="Of the input, pixels.", examples=[512])
    options: Asked = Field(default=Asked(), description="What would be made.", examples=[{"scale": 2}])


class Upload(BaseModel):
    """Where to send the file: as a multipart form with these fields first, unchanged, and then the part `file`."""

    url: str = Field(description="Where to send the form.")
    method: Literal["POST"] = Field(description="Always POST.")
    fields: dict[str, str] = Field(description="Form fields to send before the file.")
    max_bytes: int = Field(description="A larger file is refused.")
    expires: datetime = Field(description="When the link ends.")


class ModelInfo(BaseModel):
    """A model that can be asked for by name."""

    name: str = Field(description="For the option `model`.", examples=["compact-x2"])
    kind: str = Field(description="The network that runs it.", examples=["compact"])
    scale: int = Field(description="Factor of one pass; other factors are made from passes and resizing.")
    about: str = Field(description="One line for people.")
    embedded: bool = Field(description="Whether it comes with the service; others are downloaded at first use.")
    default: bool = Field(description="Whether it runs when none is named.")
    receptive_field: int = Field(description="Input pixels on each side that can influence an output pixel.")


class Health(BaseModel):
    """That the service answers."""

    status: Literal["ok"]
    version: str
    mode: Literal["local", "aws"] = Field(description="Where pictures and jobs are kept.")


_HIDDEN = {"lease", "request_hash", "revision"}
JobView = create_model(
    "Job",
    __doc__="One job, as it is now.",
    upload=(Upload | None, Field(description="Where to send the file; null when the job is past that.")),
    result_url=(str | None, Field(description="Downloads the result, for a while; null unless succeeded.")),
    **{name: (field.annotation, field) for name, field in jobs.Job.model_fields.items() if name not in _HIDDEN},  # type: ignore[call-overload]
)


def _nothing(_: str) -> None:
    """In AWS the upload itself is the event that starts a job."""


def build(settings: Settings, storage: Storage | None = None, start: Callable[[str], None] = _nothing) -> FastAPI:
    """The application.

    Args:
        settings: of the service.
        storage: where pictures and jobs are kept; opened at the first request that needs it when None.
        start: called with the id of a job that is queued.
    """
    app = FastAPI(
        title="Upscaler",
        version=core.__version__,
        description=_DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        redirect_slashes=False,
    )
    app.state.start = start
    app.state.gate = gate = guard.Gate(settings.max_concurrency, WAITING * settings.max_concurrency)
    ttl = timedelta(days=settings.job_ttl_days)

    @cache
    def store() -> Storage:
        return storage or open_storage(settings)

    def view(request: Request, job: jobs.Job, *, upload: bool = False) -> dict[str, Any]:
        """A job as clients see it; `upload` renews its link while the job waits for the file."""
        shown: dict[str, Any] = dict(job.public())
        shown["upload"] = shown["result_url"] = None
        if upload and job.state is State.AWAITING_UPLOAD:
            link = store().upload_link(
                job.input.key,
                job.input.content_type,
                job.input.bytes or settings.max_upload_bytes,
                settings.link_seconds,
            )
            shown["upload"] = Upload(
                url=urljoin(str(request.base_url), link.url),
                method="POST",
                fields=link.fields,
                max_bytes=link.max_bytes,
                expires=link.expires,
            ).model_dump(mode="json")
        if job.state is State.SUCCEEDED:
            shown["result_url"] = result_url(request, job)
        return shown

    def result_url(request: Request, job: jobs.Job) -> str:
        if job.output is None:
            raise AssertionError("a job that succeeded has an output")
        link = store().download_link(job.output.key, job.output.name, settings.link_seconds)
        return urljoin(str(request.base_url), link)

    def find(id: str) -> jobs.Job:
        """Raises: Problem, jobs.InvalidId."""
        try:
            job = jobs.get(store(), id)
        except NotFound:
            raise Problem("job_not_found") from None
        if jobs.expired(job, jobs.utc_now()):
            raise Problem("job_not_found")
        return job

    def make(file: BinaryIO, asked: core.Options, progress: Callable[[int, int], None]) -> tuple[core.Result, BinaryIO]:
        """Upscale one picture; the result is in a file that has no name any more, so that a crash leaves nothing."""
        with workspace() as folder:
            output = folder / "result"
            made = core.upscale(file, asked, output=output, limits=options.limits(settings), progress=progress)
            return made, output.open("rb")

    def keep(file: BinaryIO, name: str, media_type: str) -> str:
        """Store a result that no response can carry; gives its link."""
        key = f"results/{jobs.new_id()}/0/{name}"
        with workspace() as folder:
            path = folder / "result"
            with file, path.open("wb") as target:
                shutil.copyfileobj(file, target, _CHUNK)
            store().upload(path, key, media_type)
        return store().download_link(key, name, settings.link_seconds)

    def defer(file: BinaryIO, name: str, asked: Mapping[str, Any], header: core.Probe, plan: jobs.Estimate) -> jobs.Job:
        """Make a job of a picture that is here already."""
        media_type = MEDIA_TYPES[header.format]
        wanted = jobs.Request(filename=name, content_type=media_type, bytes=header.bytes, options=dict(asked))
        job = jobs.create(store(), wanted, ttl=ttl, estimate=plan)
        with workspace() as folder:
            path = folder / "input"
            file.seek(0)
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, _CHUNK)
            store().upload(path, job.input.key, media_type)
        if settings.local:
            job = jobs.uploaded(store(), job.id, width=header.width, height=header.height)
            app.state.start(job.id)
        return job

    def prepare(file: BinaryIO, asked: core.Options) -> tuple[core.Probe, jobs.Estimate]:
        header = core.probe(file, options.limits(settings))
        return header, dispatch.plan(header, asked, settings)

    @app.post(
        "/upscale",
        summary="Make one picture larger",
        tags=["upscale"],
        response_class=Response,
        responses={
            200: {
                "description": "The picture, as a download.",
                "headers": _UPSCALE_HEADERS,
                "content": {MEDIA_TYPES[format]: {} for format in FORMATS},
            },
            202: {
                "description": "The work is too long to wait for, or `Prefer: respond-async` was sent: a job.",
                "headers": _LOCATION,
                "model": JobView,
            },
            303: {
                "description": "The picture is too large for a response, and lies where this leads.",
                "headers": {**_UPSCALE_HEADERS, **_LOCATION},
            },
            **documented(
                "malformed_request",
                "no_file",
                "several_files",
                "unreadable_image",
                "too_large",
                "unsupported_media_type",
                "bad_options",
                "out_of_memory",
            ),
        },
        openapi_extra={"requestBody": _FORM},
    )
    async def upscale(
        request: Request,
        query: Annotated[Asked, Query()],  # noqa: ARG001 - checked and described here, merged with the form below
        prefer: Annotated[
            str, Header(description="`respond-async`: answer with a job at once.", examples=["respond-async"])
        ] = "",
    ) -> Response:
        """Send the picture as the part `file` of a multipart form; options go in the query or in the form.

        The answer is the larger picture, with the name to save it under. Where the work would take too long, it is a
        job instead; where the picture is too large for a response, a redirect to it.
        """
        wants_job = "respond-async" in (part.strip().lower() for part in prefer.replace(";", ",").split(","))
        if not wants_job:
            gate.check()  # before the body is read
        async with _received(request) as (file, fields):
            given = _merge(request.query_params.multi_items(), fields)
            asked = options.parse(given, settings)
            name = file_name(file.filename or "")
            header, plan = await run_in_threadpool(prepare, file.file, asked)
            if wants_job or plan.route is not Backend.INLINE:
                kept = Asked.model_validate(given).model_dump(exclude_none=True)
                job = await run_in_threadpool(defer, file.file, name, kept, header, plan)
                headers = {"Location": f"jobs/{job.id}", "Retry-After": "1"}
                if wants_job:
                    headers["Preference-Applied"] = "respond-async"
                return JSONResponse(view(request, job), 202, headers)
            chosen, missing = await run_in_threadpool(worker.with_local_model, asked, settings)
            async with gate.enter(plan.seconds):
                made, result = await _while_connected(request, partial(make, file.file, chosen))
        name = options.result_name(name, asked, made.format)
        headers = {
            "Content-Disposition": content_disposition(name),
            # A model from S3 ran as a directory of this machine; people know it by the name that they gave.
            "X-Upscale-Model": str(asked.model) if made.model == chosen.model else made.model,
            "X-Upscale-Degraded": str(made.degraded).lower(),
            "X-Upscale-Milliseconds": str(round((made.seconds + made.load_seconds) * 1000)),
        }
        if made.degraded:
            log.warning("made by %s, a fallback: %s", made.model, missing or made.reason)
            if not settings.local:
                _count_fallback()
        size = os.fstat(result.fileno()).st_size
        if settings.response_limit is not None and size > settings.response_limit:
            link = await run_in_threadpool(keep, result, name, made.media_type)
            del headers["Content-Disposition"]
            return JSONResponse({"result_url": link}, 303, headers | {"Location": link})
        return StreamingResponse(
            _chunks(result), media_type=made.media_type, headers=headers | {"Content-Length": str(size)}
        )

    @app.post(
        "/jobs",
        status_code=201,
        summary="Announce a picture, and get a link to upload it",
        tags=["jobs"],
        response_model=JobView,
        responses={
            201: {"headers": _LOCATION},
            **documented(*_JSON_CODES, "too_large", "bad_options", "bad_webhook"),
        },
    )
    def create_job(request: Request, wanted: JobRequest) -> Response:
        """The job waits for its file. Send the file to `upload`: a form with its fields first, then the part `file`.

        The estimate is null unless `width` and `height` of the picture are given; it is made when the file is there.
        """
        return put_job(request, jobs.new_id(), wanted, "jobs/")

    @app.put(
        "/jobs/{id}",
        status_code=201,
        summary="The same, with an id of your own",
        tags=["jobs"],
        response_model=JobView,
        responses={
            200: {"description": "The job was there already.", "headers": _LOCATION, "model": JobView},
            201: {"headers": _LOCATION},
            **documented(*_JSON_CODES, "conflict", "too_large", "bad_options", "bad_webhook", "invalid_id"),
        },
    )
    def create_job_with_id(request: Request, id: JobId, wanted: JobRequest) -> Response:
        """As `POST /jobs`, and safe to repeat: the same request again is the same job, another request is a 409."""
        return put_job(request, id, wanted, "")

    def put_job(request: Request, id: str, wanted: JobRequest, folder: str) -> Response:
        asked = options.parse(wanted.options.model_dump(exclude_none=True), settings)
        if wanted.bytes is not None and wanted.bytes > settings.max_upload_bytes:
            raise Problem("too_large", f"the input is over the limit of {settings.max_upload_bytes:,} bytes")
        if wanted.webhook is not None:
            webhook.check_url(wanted.webhook)
        plan = None
        if wanted.width is not None and wanted.height is not None:
            media_types = {media: format for format, media in MEDIA_TYPES.items()}
            format = media_types.get(wanted.content_type, "png")
            picture = core.Probe(format, wanted.width, wanted.height, wanted.bytes or 0, "")
            plan = dispatch.plan(picture, asked, settings)
        job, new = jobs.put(store(), id, wanted.as_request(), ttl=ttl, estimate=plan)
        shown = view(request, job, upload=True)
        return JSONResponse(shown, 201 if new else 200, {"Location": f"{folder}{job.id}"})

    @app.get(
        "/jobs/{id}",
        summary="State and progress",
        tags=["jobs"],
        response_model=JobView,
        responses=documented("invalid_id", "job_not_found"),
    )
    def get_job(request: Request, id: JobId) -> Response:
        """Ask every second or two until the state is succeeded, failed or cancelled."""
        return JSONResponse(view(request, find(id)))

    @app.get(
        "/jobs/{id}/result",
        status_code=307,
        summary="The result of a job",
        tags=["jobs"],
        response_class=Response,
        responses={
            307: {"description": "The result lies where this leads.", "headers": _LOCATION},
            **documented("invalid_id", "job_not_found", "not_finished", "no_result"),
        },
    )
    def get_result(request: Request, id: JobId) -> Response:
        """Leads to a link that lives for a while and downloads the picture."""
        job = find(id)
        if job.state is State.SUCCEEDED:
            return Response(status_code=307, headers={"Location": result_url(request, job)})
        if job.state.final:
            why = f": {job.error.message}" if job.error else ""
            verb = "was" if job.state is State.CANCELLED else "has"
            raise Problem("no_result", f"the job {verb} {job.state}{why}")
        detail = f"the job is {job.state.replace('_', ' ')}: ask again later"
        raise Problem("not_finished", detail, {"Retry-After": "2"})

    @app.delete(
        "/jobs/{id}",
        summary="Cancel a job",
        tags=["jobs"],
        response_model=JobView,
        responses=documented("invalid_id", "job_not_found", "already_final"),
    )
    def cancel_job(request: Request, id: JobId) -> Response:
        """Work stops after the tile that it is at. Cancelling again changes nothing; a job that ended is a 409."""
        find(id)
        job = jobs.cancel(store(), id)
        if job.batch_job_id:
            dispatch.terminate_batch(job)
        worker.notify(store(), settings, job)
        return JSONResponse(view(request, job))

    @app.post(
        "/estimate",
        summary="What a picture would take",
        tags=["upscale"],
        response_model=jobs.Estimate,
        responses=documented(*_JSON_CODES, "too_large", "bad_options"),
    )
    def estimate(wanted: EstimateRequest) -> jobs.Estimate:
        """Where the work would run, its seconds, memory, and cost, and the size of the result."""
        asked = options.parse(wanted.options.model_dump(exclude_none=True), settings)
        return dispatch.plan(core.Probe("png", wanted.width, wanted.height, 0, ""), asked, settings)

    @app.get("/models", summary="Models by name", tags=["upscale"], responses=documented())
    def list_models() -> list[ModelInfo]:
        """The models that the option `model` takes besides hub ids."""
        default = {settings.model} if settings.model else {models.embedded(2, name) for name in ("jpeg", "png")}
        return [
            ModelInfo(
                name=spec.name,
                kind=spec.kind,
                scale=spec.scale,
                about=spec.about,
                embedded=spec.source.startswith(str(models.WEIGHTS)),
                default=spec.name in default,
                receptive_field=spec.receptive_field,
            )
            for spec in models.MODELS.values()
        ]

    @app.get("/health", summary="Whether the service answers", tags=["service"], responses=documented())
    def health() -> Health:
        """For load balancers: no work is done, nothing is read."""
        return Health(status="ok", version=app.version, mode="local" if settings.local else "aws")

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        text, policy = _page(settings.local)
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(text, headers=headers)

    if settings.local:
        _add_local_links(app, settings, store)

    problems.install(app)
    app.add_middleware(partial(guard.guarded, settings=settings))
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Content-Type", "Prefer", "X-API-Key"],
            expose_headers=EXPOSED,
            max_age=3600,
        )
    app.add_middleware(guard.request_ids)
    app.openapi = partial(_openapi, app, bool(settings.api_key.get_secret_value()))  # type: ignore[method-assign]
    return app


def _add_local_links(app: FastAPI, settings: Settings, store: Callable[[], Storage]) -> None:
    """Answer the links of `LocalStorage` as S3 answers presigned ones; an upload starts its job, as S3's event does."""

    def local() -> LocalStorage:
        found = store()
        if not isinstance(found, LocalStorage):
            raise AssertionError("local mode keeps pictures in a directory")
        return found

    def accept(token: str, file: BinaryIO, content_type: str) -> None:
        with workspace() as folder:
            path = folder / "upload"
            with path.open("wb") as target:
                shutil.copyfileobj(file, target, _CHUNK)
            stored = local().accept(token, path, content_type)
        job = jobs.find_or_create_for_upload(
            local(),
            "local",
            stored.key,
            stored.etag,
            ttl=timedelta(days=settings.job_ttl_days),
            content_type=content_type,
            size=stored.size,
        )
        app.state.start(job.id)

    @app.post(UPLOAD_PATH, include_in_schema=False)
    async def receive_upload(request: Request, token: str = "") -> Response:
        await run_in_threadpool(local().grant, token, "upload")  # refused before the body is read
        async with _received(request) as (file, fields):
            await run_in_threadpool(accept, token, file.file, dict(fields).get("Content-Type", ""))
        return Response(status_code=204)

    @app.get(DOWNLOAD_PATH, include_in_schema=False)
    def send_download(token: str = "") -> Response:
        grant = local().grant(token, "download")
        return FileResponse(
            local().path(grant.key),
            media_type=local().head(grant.key).content_type,
            headers={"Content-Disposition": content_disposition(grant.filename)},
        )


@asynccontextmanager
async def _received(request: Request) -> AsyncIterator[tuple[UploadFile, list[tuple[str, str]]]]:
    """The one picture of a multipart form, on disk where it is large, and the other fields.

    Raises:
        Problem: not a form, malformed, none or several pictures, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem("unsupported_media_type")
    try:
        form = await request.form(max_files=2, max_fields=20, max_part_size=8192)
    except Problem:  # too large, from the guard
        raise
    except HTTPException as error:
        cause = error.__context__.__cause__ if error.__context__ else None
        why = str(cause or error.detail).rstrip(".")
        raise Problem("malformed_request", f"the multipart form cannot be read: {why[:1].lower()}{why[1:]}") from error
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        files = [(name, part) for name, part in files if part.filename or part.size]  # a form sent with none chosen
        fields = [(name, part) for name, part in form.multi_items() if isinstance(part, str)]
        if len(files) > 1:
            raise Problem("several_files")
        if not files or files[0][0] != "file":
            found = f", not {files[0][0][:100]!r}" if files else ""
            raise Problem("no_file", problems.CODES["no_file"].example + found)
        yield files[0][1], fields
    finally:
        await form.close()


def _merge(query: list[tuple[str, str]], fields: list[tuple[str, str]]) -> dict[str, str]:
    """Options from the query and from the form. Raises: core.OptionsError."""
    merged: dict[str, str] = {}
    for name, value in [*query, *fields]:
        if name in merged:
            raise core.OptionsError(f"{name[:100]} is given twice: give it once, in the query or in the form")
        merged[name] = value
    return merged


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


def warm(settings: Settings) -> threading.Thread | None:
    """Load WARM_MODEL in a thread, so that the first picture does not wait for it; never waited for itself.

    A tiny picture goes all the way, since codecs and kernels have a first time, too; then the rate is measured that
    estimates are made with, unless it is known on this machine.
    """
    if settings.warm_model == "none":
        return None

    def load() -> None:
        try:
            asked = replace(options.parse({}, settings), model=settings.warm_model, format="png")
            chosen, _ = worker.with_local_model(asked, settings)
            picture = io.BytesIO()
            Image.new("L", (8, 8)).save(picture, "PNG")
            core.upscale(picture.getvalue(), chosen, limits=options.limits(settings))
            while not app.state.gate.idle:  # measuring beside a picture gives a wrong rate, and takes its time
                time.sleep(1)
            core.estimate(64, 64, chosen, measure=True)
        except Exception:  # the first request will tell
            log.exception("the model %s could not be warmed up", settings.warm_model)

    thread = threading.Thread(target=load, name="warm", daemon=True)
    thread.start()
    return thread


@cache
def _page(local: bool) -> tuple[str, str]:
    """The page at / and its Content-Security-Policy, which allows the page's own script and style by their hashes."""
    text = _PAGE.read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        parts = text.split(f"<{tag}>")[1:]
        digests = [hashlib.sha256(part.partition(f"</{tag}>")[0].encode()).digest() for part in parts]
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    bucket = "" if local else " https:"  # uploads and results go straight to and from S3
    return text, (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        f"img-src 'self' blob: data:{bucket}; connect-src 'self'{bucket}; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _openapi(app: FastAPI, with_key: bool) -> dict[str, Any]:
    """The description, with what FastAPI cannot know: the schema of problems, and headers that every answer has."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            license_info=app.license_info,
        )
        found["components"]["schemas"]["Problem"] = problems.ProblemDetails.model_json_schema()
        if with_key:
            scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
            found["components"]["securitySchemes"] = {"ApiKey": scheme}
            found["security"] = [{"ApiKey": []}]
        request_id = {"description": "Names this request in the logs.", "schema": {"type": "string"}}
        for path in found["paths"].values():
            for operation in path.values():
                for status, answer in operation["responses"].items():
                    answer.setdefault("headers", {})["X-Request-Id"] = request_id
                    if status in ("429", "503"):
                        wait = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
                        answer["headers"]["Retry-After"] = wait
        app.openapi_schema = found
    return app.openapi_schema


app = build(get_settings())
handler = Mangum(app, lifespan="off", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, problems.MEDIA_TYPE])

if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:  # in INIT, beside what the runtime still has to do
    logs.setup(get_settings().log_level)
    warm(get_settings())
