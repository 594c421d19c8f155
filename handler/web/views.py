"""A job as clients see it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

from fastapi import Request

from handler import jobs
from handler.jobs import Job, State
from handler.storage import NotFound
from handler.web.callers import may_see
from handler.web.problems import Problem
from handler.web.schemas import Upload
from handler.web.service import Service, client_of


def find(request: Request, service: Service, id: str) -> Job:
    """The job of this id, for a caller who may see it.

    Raises:
        Problem: there is none, or it has expired.
        jobs.InvalidId: not a UUID.
    """
    try:
        job = jobs.get(service.storage, id)
    except NotFound:
        raise Problem("job_not_found") from None
    if jobs.expired(job, jobs.utc_now()) or not may_see(job.owner, client_of(request)):
        raise Problem("job_not_found")
    return job


def view(request: Request, service: Service, job: Job, *, upload: bool = False) -> dict[str, Any]:
    """A job as JSON, by `schemas.JobView`.

    Args:
        request: whose URL links are made for.
        service: that the job belongs to.
        job: to show.
        upload: whether to renew the link for the file, while the job waits for it.
    """
    shown: dict[str, Any] = dict(job.public())
    shown["upload"] = shown["result_url"] = None
    if upload and job.state is State.AWAITING_UPLOAD:
        settings = service.settings
        link = service.storage.upload_link(
            job.input.key,
            job.input.content_type,
            job.input.bytes or settings.max_upload_bytes,
            settings.link_seconds,
        )
        shown["upload"] = Upload(
            url=absolute(request, link.url),
            method="POST",
            fields=link.fields,
            max_bytes=link.max_bytes,
            expires=link.expires,
        ).model_dump(mode="json")
    if job.state is State.SUCCEEDED:
        shown["result_url"] = result_url(request, service, job)
    return shown


def result_url(request: Request, service: Service, job: Job) -> str:
    """The link that downloads the result of a job that has succeeded, for a while."""
    if job.output is None:
        raise AssertionError("a job that succeeded has an output")
    link = service.storage.download_link(job.output.key, job.output.name, service.settings.link_seconds)
    return absolute(request, link)


def absolute(request: Request, link: str) -> str:
    """A link of the store with its host; one to this service itself is a path, below the prefix that it runs under."""
    public = request.app.state.service.settings.public_url
    base = public.rstrip("/") + "/" if public else str(request.base_url)
    return urljoin(base, link.removeprefix("/"))
