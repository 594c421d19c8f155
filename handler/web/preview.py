"""Small pictures of pictures, for the page: browsers cannot show every format that this service takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from core import preview
from core.preview import Preview
from handler import options
from handler.jobs import Job, State
from handler.web.forms import receive_picture
from handler.web.problems import Problem, documented
from handler.web.schemas import PICTURE_CODES, JobId, picture_body
from handler.web.service import Service, Shared
from handler.web.views import find
from handler.workspace import workspace

router = APIRouter()

#: What is fetched from the store for a preview: it must fit on Lambda's disk.
MAX_RESULT_BYTES = 400_000_000

_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A picture of at most 1600 pixels on a side.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/webp")},
        "headers": {
            "X-Picture-Width": {"description": "Of the picture itself, pixels.", "schema": {"type": "integer"}},
            "X-Picture-Height": {"description": "Of the picture itself, pixels.", "schema": {"type": "integer"}},
        },
    }
}


@router.post(
    "/preview",
    summary="A small picture of a picture",
    tags=["upscale"],
    response_class=Response,
    responses={
        **_RESPONSE,
        **documented(*PICTURE_CODES, "bad_request"),
    },
    openapi_extra={"requestBody": picture_body(options=False)},
)
async def preview_file(request: Request, service: Shared) -> Response:
    """For what a browser cannot show, such as TIFF. Send the picture as the part `file` of a multipart form."""
    async with receive_picture(request, service) as (file, fields), service.previews.enter(1):
        if fields:
            raise Problem("bad_request", f"there is no field {fields[0][0][:100]!r}: a preview has no options")
        made = await run_in_threadpool(preview.preview, file.file, options.limits(service.settings))
    return _response(made)


@router.get(
    "/jobs/{id}/preview",
    summary="A small picture of a job's result",
    tags=["jobs"],
    response_class=Response,
    responses={**_RESPONSE, **documented("invalid_id", "job_not_found", "not_finished", "too_large")},
)
async def preview_result(request: Request, service: Shared, id: JobId) -> Response:
    """For what a browser cannot show, such as TIFF."""
    job = await run_in_threadpool(find, request, service, id)
    if job.state is not State.SUCCEEDED:
        raise Problem("not_finished", f"the job is {job.state.replace('_', ' ')}: it has no result to show")
    async with service.previews.enter(1):
        made = await run_in_threadpool(_of_result, service, job)
    return _response(made)


def _of_result(service: Service, job: Job) -> Preview:
    if job.output is None:
        raise AssertionError("a job that succeeded has an output")
    # What we wrote may be larger than what we take.
    limits = replace(options.limits(service.settings), input_bytes=MAX_RESULT_BYTES)
    if (job.output.bytes or 0) > limits.input_bytes:
        raise Problem("too_large", f"the result is over the limit of {limits.input_bytes:,} bytes for a preview")
    with workspace() as folder:
        path = folder / "result"
        service.storage.download(job.output.key, path)
        return preview.preview(path, limits)


def _response(made: Preview) -> Response:
    headers = {"X-Picture-Width": str(made.width), "X-Picture-Height": str(made.height)}
    return Response(
        made.data, media_type=made.media_type, headers={**headers, "Cache-Control": "private, max-age=3600"}
    )
