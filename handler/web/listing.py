"""Local mode: the jobs of a caller, newest first, and the events of a job while it runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from handler import jobs
from handler.jobs import Job
from handler.web.problems import Problem, documented
from handler.web.schemas import JobId, JobView
from handler.web.service import Service, Shared, client_of
from handler.web.views import find, view

router = APIRouter(tags=["jobs"])

#: Seconds between two looks at a job whose events somebody follows, and after which a comment keeps the line open.
LOOK_SECONDS, ALIVE_SECONDS = 0.5, 15.0
#: After so many seconds the client has to ask anew, which event sources do by themselves.
EVENTS_SECONDS = 3600.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A place between two jobs: when the newer was made, in microseconds, and its id. All that fits is one, or none.
_PLACE = "^([0-9]{1,17}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$"

#: OpenAPI: one event of a stream, which is what the schema of such a stream describes before OpenAPI 3.2.
_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"const": "job"},
        "id": {"type": "string", "description": "Another one after every change."},
        "data": {
            "type": "string",
            "description": "The job as JSON, as `GET /jobs/{id}` gives it.",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Job"},
        },
    },
    "additionalProperties": False,
}


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobView] = Field(description="As `GET /jobs/{id}` gives each.")
    next: str | None = Field(description="Give this as `after` for older ones; null: there are none.")


@router.get("/jobs", summary="Your jobs, newest first", response_model=JobPage, responses=documented("bad_request"))
def list_jobs(
    request: Request,
    service: Shared,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs at most.")] = 20,
    after: Annotated[str, Query(pattern=_PLACE, description="`next` of the page before.")] = "",
) -> Response:
    """The jobs that were made with your key, or from your address where no key is needed."""
    caller, now = client_of(request), jobs.utc_now()
    own = [job for job in jobs.every(service.storage) if job.owner == caller and not jobs.expired(job, now)]
    own.sort(key=_place, reverse=True)
    if after:
        place = _read(after)
        own = [job for job in own if _place(job) < place]
    shown = [view(request, service, job) for job in own[:limit]]
    return JSONResponse({"jobs": shown, "next": _written(own[limit - 1]) if len(own) > limit else None})


@router.get(
    "/jobs/{id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": _EVENT}}},
        **documented("invalid_id", "job_not_found"),
    },
)
async def job_events(request: Request, service: Shared, id: JobId) -> Response:
    """Server-sent events: `job` with the job as JSON, now and at every change, until it has ended."""
    service.check_listeners(client_of(request))
    first = await run_in_threadpool(find, request, service, id)
    return _EventStream(request, service, first)


class _EventStream(StreamingResponse):
    """The events of a job, counted for as long as they are sent."""

    def __init__(self, request: Request, service: Service, job: Job) -> None:
        events = _events(request, service, job)
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._service, self._client = service, client_of(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        self._service.listeners[self._client] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.listeners -= Counter({self._client: 1})  # nothing is kept of who is gone


async def _events(request: Request, service: Service, job: Job) -> AsyncIterator[str]:
    revision, said, end = "", 0.0, time.monotonic() + EVENTS_SECONDS
    while time.monotonic() < end and not service.stopping.is_set():
        if job.revision != revision:
            revision, said = job.revision, time.monotonic()
            shown: dict[str, Any] = await run_in_threadpool(view, request, service, job)
            yield f"event: job\nid: {revision}\ndata: {json.dumps(shown)}\n\n"
        if job.state.final or await request.is_disconnected():
            return
        if time.monotonic() - said > ALIVE_SECONDS:
            said = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)
        try:
            job = await run_in_threadpool(find, request, service, job.id)
        except Problem:  # deleted
            return


def _place(job: Job) -> tuple[int, str]:
    return (job.created - _EPOCH) // timedelta(microseconds=1), job.id


def _written(job: Job) -> str:
    return "{}-{}".format(*_place(job))


def _read(after: str) -> tuple[int, str]:
    created, _, id = after.partition("-")
    return int(created), id
