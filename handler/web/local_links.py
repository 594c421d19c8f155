"""Local mode: the links of `LocalStorage`, answered as S3 answers presigned ones."""

from __future__ import annotations

import re
import shutil
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from handler import jobs
from handler.archive.document import PREFIX as ARCHIVES
from handler.jobs import Job, State
from handler.names import content_disposition
from handler.storage import DOWNLOAD_PATH, UPLOAD_PATH, Grant, LinkRefused, LocalStorage, NotFound
from handler.web.forms import receive_form
from handler.web.problems import Problem
from handler.web.service import Service, Shared
from handler.workspace import workspace

router = APIRouter(include_in_schema=False)

#: A part of a file, or several (RFC 9110, 14.1.2).
_RANGE = re.compile(r"bytes=\s*((\d+)-(\d*)|-\d+)(\s*,\s*(\d+-\d*|-\d+))*\s*", re.ASCII)


@router.post(UPLOAD_PATH)
async def receive_upload(request: Request, service: Shared, token: str = "") -> Response:
    """Store a file; that starts its job, as S3's event does."""
    await run_in_threadpool(_grant_upload, service, token)  # refused before the body is read
    async with receive_form(request) as (file, fields):
        await run_in_threadpool(_accept, service, token, file.file, dict(fields).get("Content-Type", ""))
    return Response(status_code=204)


@router.api_route(DOWNLOAD_PATH, methods=["GET", "HEAD"])
def send_download(request: Request, service: Shared, token: str = "") -> Response:
    """Send a file under the name that its link says; 304 to who has it already (RFC 9110, 13.1.2)."""
    local = _local(service)
    grant = local.grant(token, "download")
    job = _job_of(service, grant)
    result = job is not None and job.output is not None and job.output.key == grant.key
    if not result and not grant.key.startswith(ARCHIVES):  # a manifest, which stays
        raise LinkRefused("the job of this link has been deleted, or has expired")
    found = local.head(grant.key)
    headers = {"ETag": found.etag, "Cache-Control": "private, no-cache"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if found.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range", "")
    there = _are_in(wanted, found.size) if _is_range(wanted) else set()
    if there == {False} and "if-range" not in request.headers:
        raise Problem("no_such_range", headers={"Content-Range": f"bytes */{found.size}"})
    if there != {True}:  # it is passed over (RFC 9110, 14.2)
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    return FileResponse(
        local.path(grant.key),
        media_type=found.content_type,
        headers={**headers, "Content-Disposition": content_disposition(grant.filename)},
    )


def _is_range(wanted: str) -> bool:
    """Whether a Range header is one that a server must understand."""
    found = _RANGE.fullmatch(wanted)
    return found is not None and not (found[3] and int(found[3]) < int(found[2]))


def _are_in(wanted: str, size: int) -> set[bool]:
    """Of each of a Range header's parts, whether some of its bytes are there (RFC 9110, 14.1.2)."""
    parts = [part.strip().partition("-") for part in wanted.partition("=")[2].split(",")]
    return {int(first) < size if first else int(last) > 0 < size for first, _, last in parts}


def _grant_upload(service: Service, token: str) -> None:
    """Whether a file may be sent with this link: once, while its job waits for it.

    Raises:
        LinkRefused.
    """
    job = _job_of(service, _local(service).grant(token, "upload"))
    if job is None or job.state is not State.AWAITING_UPLOAD:
        state = f"is {job.state.replace('_', ' ')}" if job else "has been deleted, or has expired"
        raise LinkRefused(f"the link is used up: its job {state}")


def _job_of(service: Service, grant: Grant) -> Job | None:
    """The job that a link belongs to: the id is the second part of its key."""
    try:
        job = jobs.get(service.storage, grant.key.split("/")[1])
    except (NotFound, jobs.InvalidId, IndexError):
        return None
    return None if jobs.expired(job, jobs.utc_now()) else job


def _local(service: Service) -> LocalStorage:
    if not isinstance(service.storage, LocalStorage):
        raise AssertionError("local mode keeps pictures in a directory")
    return service.storage


def _accept(service: Service, token: str, file: BinaryIO, content_type: str) -> None:
    _grant_upload(service, token)  # somebody may have sent it meanwhile
    with workspace() as folder:
        path = folder / "upload"
        with path.open("wb") as target:
            shutil.copyfileobj(file, target, 1 << 20)
        stored = _local(service).accept(token, path, content_type)
    job = jobs.find_or_create_for_upload(
        service.storage,
        "local",
        stored.key,
        stored.etag,
        ttl=service.ttl,
        content_type=content_type,
        size=stored.size,
    )
    service.start(job.id)
