"""Jobs over HTTP: announce a picture, ask how far it is, fetch the result, cancel."""

from __future__ import annotations

import shutil
from datetime import timedelta
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

import core
from core.formats import MEDIA_TYPES
from handler import batch, jobs, options, routing, upload_queue, webhook
from handler.jobs import Job, State
from handler.safe_http import Refused, check_url
from handler.storage import NotFound
from handler.turns import LEAST_SECONDS
from handler.web import sources
from handler.web.problems import Problem, documented
from handler.web.schemas import JSON_CODES, LOCATION, PICTURE_CODES, JobBody, JobId, JobOfPicture, JobRequest, JobView
from handler.web.service import Service, Shared, client_of
from handler.web.views import find, result_url, view
from handler.workspace import workspace

router = APIRouter(tags=["jobs"])

#: How much longer uploads are kept than jobs: the difference in template.yaml, less a day.
UPLOAD_GRACE = timedelta(days=7)

#: How often a webhook is tried while a client waits, which takes 20 seconds at most; API Gateway waits for 29.
ATTEMPTS = 3
#: Seconds after which the client gets its answer all the same: resolving the webhook's name has no limit.
REPORT_SECONDS = 25.0


@router.post(
    "/jobs",
    status_code=201,
    summary="Announce a picture, and get a link to upload it",
    response_model=JobView,
    responses={
        201: {"headers": LOCATION},
        **documented(*JSON_CODES, *PICTURE_CODES, "bad_options", "bad_webhook"),
    },
)
async def create_job(request: Request, service: Shared, wanted: JobBody) -> Response:
    """The job waits for its file. Send the file to `upload`: a form with its fields first, then the part `file`.

    The estimate is null unless `width` and `height` of the picture are given; it is made when the file is there.

    With the picture's `url`, or the picture itself as `image`, there is nothing to upload: the job is queued.
    """
    if isinstance(wanted, JobOfPicture):
        return await _put_picture(request, service, jobs.new_id(), wanted, "jobs/")
    return await run_in_threadpool(_put, request, service, jobs.new_id(), wanted, "jobs/")


@router.put(
    "/jobs/{id}",
    status_code=201,
    summary="The same, with an id of your own",
    response_model=JobView,
    responses={
        200: {"description": "The job was there already.", "headers": LOCATION, "model": JobView},
        201: {"headers": LOCATION},
        **documented(*JSON_CODES, *PICTURE_CODES, "conflict", "bad_options", "bad_webhook", "invalid_id"),
    },
)
async def create_job_with_id(request: Request, service: Shared, id: JobId, wanted: JobBody) -> Response:
    """As `POST /jobs`, and safe to repeat: the same request again is the same job, another request is a 409."""
    if isinstance(wanted, JobOfPicture):
        return await _put_picture(request, service, id, wanted, "")
    return await run_in_threadpool(_put, request, service, id, wanted, "")


def _put(request: Request, service: Service, id: str, wanted: JobRequest, folder: str) -> Response:
    """Check what is wanted, and make the job or find it; `folder` leads from the request's URL to that of jobs."""
    settings = service.settings
    asked = options.parse(wanted.options.model_dump(exclude_none=True), settings)
    if wanted.bytes is not None and wanted.bytes > settings.max_upload_bytes:
        raise Problem("too_large", f"the input is over the limit of {settings.max_upload_bytes:,} bytes")
    _check_webhook(service, wanted.webhook)
    plan = None
    if wanted.width is not None and wanted.height is not None:
        media_types = {media: format for format, media in MEDIA_TYPES.items()}
        format = media_types.get(wanted.content_type, "png")
        picture = core.Probe(format, wanted.width, wanted.height, wanted.bytes or 0, "")
        plan = routing.plan(picture, asked, settings)
    owner = client_of(request)
    service.check_jobs(owner, plan.seconds if plan else LEAST_SECONDS)
    job, new = jobs.put(service.storage, id, wanted.as_request(), ttl=service.ttl, estimate=plan, owner=owner)
    shown = view(request, service, job, upload=True)
    return JSONResponse(shown, 201 if new else 200, {"Location": f"{folder}{job.id}"})


async def _put_picture(request: Request, service: Service, id: str, wanted: JobOfPicture, folder: str) -> Response:
    """Make a job and fetch its picture, or find it."""
    _check_webhook(service, wanted.webhook)
    service.check_jobs(client_of(request))
    owner = client_of(request)
    if await run_in_threadpool(_is_here, service, id):
        put = partial(jobs.put, service.storage, id, wanted.as_request(), ttl=service.ttl, owner=owner)
        job, new = await run_in_threadpool(put)
    else:
        file = await sources.receive(request, service, wanted)
        try:
            job, new = await run_in_threadpool(_take, service, owner, id, wanted, file)
        finally:
            await file.close()
    shown = await run_in_threadpool(view, request, service, job)
    return JSONResponse(shown, 201 if new else 200, {"Location": f"{folder}{job.id}"})


def _is_here(service: Service, id: str) -> bool:
    """Whether there is a job of this id and its picture has come: nothing is fetched twice."""
    try:
        return jobs.get(service.storage, id).state is not State.AWAITING_UPLOAD
    except NotFound:
        return False


def _take(service: Service, owner: str, id: str, wanted: JobOfPicture, file: UploadFile) -> tuple[Job, bool]:
    """Check a picture that is here, and queue a job for it."""
    settings = service.settings
    asked = options.parse(wanted.options.model_dump(exclude_none=True), settings)
    header = core.probe(file.file, options.limits(settings))
    plan = routing.plan(header, asked, settings)
    service.check_jobs(owner, plan.seconds)
    job, new = jobs.put(service.storage, id, wanted.as_request(), ttl=service.ttl, estimate=plan, owner=owner)
    with workspace() as place:
        path = place / "input"
        file.file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        service.storage.upload(path, job.input.key, job.input.content_type)
    if settings.local:  # in AWS the upload itself is the event that starts the job
        job = jobs.uploaded(service.storage, job.id, size=header.bytes, width=header.width, height=header.height)
        service.start(job.id)
    return job, new


def _check_webhook(service: Service, url: str | None) -> None:
    if url is not None:
        try:
            check_url(url, allow_private=service.settings.webhook_allow_private)
        except Refused as refused:
            raise Problem("bad_webhook", f"webhook: {refused}") from None


@router.get(
    "/jobs/{id}",
    summary="State and progress",
    response_model=JobView,
    responses=documented("invalid_id", "job_not_found"),
)
def get_job(request: Request, service: Shared, id: JobId) -> Response:
    """Ask every second or two until the state is succeeded, failed or cancelled."""
    return JSONResponse(view(request, service, find(request, service, id)))


@router.get(
    "/jobs/{id}/result",
    status_code=307,
    summary="The result of a job",
    response_class=Response,
    responses={
        307: {"description": "The result lies where this leads.", "headers": LOCATION},
        **documented("invalid_id", "job_not_found", "not_finished", "no_result"),
    },
)
def get_result(request: Request, service: Shared, id: JobId) -> Response:
    """Leads to a link that lives for a while and downloads the picture."""
    job = find(request, service, id)
    if job.state is State.SUCCEEDED:
        return Response(status_code=307, headers={"Location": result_url(request, service, job)})
    if job.state.final:
        why = f": {job.error.message}" if job.error else ""
        verb = "was" if job.state is State.CANCELLED else "has"
        raise Problem("no_result", f"the job {verb} {job.state}{why}")
    detail = f"the job is {job.state.replace('_', ' ')}: ask again later"
    raise Problem("not_finished", detail, {"Retry-After": "2"})


@router.delete(
    "/jobs/{id}",
    summary="Cancel a job, or delete one that has ended",
    response_model=JobView,
    responses=documented("invalid_id", "job_not_found", "already_final"),
)
def cancel_job(request: Request, service: Shared, id: JobId) -> Response:
    """Work stops after the tile that it is at. A job that has ended is deleted, with its upload and its result.

    In AWS the bucket's lifecycle rule deletes: a job that ended otherwise is a 409 there, and one that was cancelled
    stays so.
    """
    job = find(request, service, id)
    if service.settings.local and job.state.final:
        jobs.delete(service.storage, job)
        return JSONResponse({**view(request, service, job), "result_url": None})
    job = jobs.cancel(service.storage, id)
    if job.batch_job_id:
        batch.terminate_batch(job)
    _report(service, job)
    return JSONResponse(view(request, service, jobs.get(service.storage, id)))


@router.post(
    "/jobs/{id}/retry",
    status_code=201,
    summary="Do a job that failed once more",
    response_model=JobView,
    responses={
        200: {"description": "It is being done once more already.", "headers": LOCATION, "model": JobView},
        201: {"headers": LOCATION},
        **documented("invalid_id", "job_not_found", "already_final", "not_finished", "upload_missing"),
    },
)
def retry_job(request: Request, service: Shared, id: JobId) -> Response:
    """A new job, with an id that follows from this one's, for the same file: of a job that failed or was cancelled.

    The job itself stays as it is. Asking again gives the same new job.
    """
    old = find(request, service, id)
    if not old.state.final:
        raise Problem(
            "not_finished", f"the job is {old.state.replace('_', ' ')}: only one that has ended is done again"
        )
    try:
        upload = service.storage.head(old.input.key)
    except NotFound:
        raise Problem("upload_missing") from None
    expires = min(jobs.utc_now() + service.ttl, upload.modified + service.ttl + UPLOAD_GRACE)
    job, new = jobs.retry(service.storage, old, upload.etag.strip('"'), expires=expires)
    if job.state is State.QUEUED:  # also when it is not new: whoever made it may have died before it was started
        if service.settings.local:
            service.start(job.id)
        else:
            upload_queue.send(service.settings, job.id)
    return JSONResponse(view(request, service, job), 201 if new else 200, {"Location": f"../{job.id}"})


def _report(service: Service, job: Job) -> None:
    """Send a final job's webhook; in AWS before the answer, since Lambda freezes every thread once that is out."""
    if service.settings.local:
        webhook.notify(service.storage, service.settings, job)
    elif delivery := webhook.notify(service.storage, service.settings, job, attempts=ATTEMPTS):
        delivery.join(REPORT_SECONDS)
