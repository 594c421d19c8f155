"""Local mode: the links of `LocalStorage`, answered as S3 answers presigned ones."""

from __future__ import annotations

import shutil
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from handler import jobs
from handler.names import content_disposition
from handler.storage import DOWNLOAD_PATH, UPLOAD_PATH, LocalStorage
from handler.web.forms import receive_form
from handler.web.service import Service, Shared
from handler.workspace import workspace

router = APIRouter(include_in_schema=False)


@router.post(UPLOAD_PATH)
async def receive_upload(request: Request, service: Shared, token: str = "") -> Response:
    """Store a file; that starts its job, as S3's event does."""
    await run_in_threadpool(_local(service).grant, token, "upload")  # refused before the body is read
    async with receive_form(request) as (file, fields):
        await run_in_threadpool(_accept, service, token, file.file, dict(fields).get("Content-Type", ""))
    return Response(status_code=204)


@router.get(DOWNLOAD_PATH)
def send_download(service: Shared, token: str = "") -> Response:
    """Send a file under the name that its link says."""
    local = _local(service)
    grant = local.grant(token, "download")
    return FileResponse(
        local.path(grant.key),
        media_type=local.head(grant.key).content_type,
        headers={"Content-Disposition": content_disposition(grant.filename)},
    )


def _local(service: Service) -> LocalStorage:
    if not isinstance(service.storage, LocalStorage):
        raise AssertionError("local mode keeps pictures in a directory")
    return service.storage


def _accept(service: Service, token: str, file: BinaryIO, content_type: str) -> None:
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
