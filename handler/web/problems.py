"""What goes wrong over HTTP, as problem details (RFC 9457): every code, its status, and how exceptions become one."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

import core
from core.formats import READABLE
from handler import jobs, storage
from handler.options import RequestOptions, describe

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: How bodies that come in two kinds are told apart: pydantic names the kind in where it finds an error.
BODY_KINDS = OF_PICTURE, OF_NUMBERS = ("of a picture", "of numbers")


@dataclass(frozen=True)
class Code:
    """One thing that can go wrong.

    Attributes:
        status: HTTP status.
        example: a detail as it is sent.
        about: one line for the description.
    """

    status: int
    example: str
    about: str


CODES: Mapping[str, Code] = {
    "malformed_request": Code(400, "the multipart form cannot be read", "Not a form or not JSON, or damaged."),
    "no_file": Code(400, "send the picture as the part 'file' of a multipart form", "There is no picture."),
    "several_files": Code(400, "send one picture in one request, not several", "More than one picture."),
    "unreadable_image": Code(
        400,
        f"not a picture that can be read: give {READABLE}",
        "Not a picture in a format that is read, or a damaged one.",
    ),
    "unauthorized": Code(401, "send the key of this service in the header X-API-Key", "No key, or a wrong one."),
    "foreign_page": Code(
        403,
        "pages of another origin may not do this: whoever runs the service can allow them with CORS_ORIGINS",
        "A browser sent this for a page of another origin.",
    ),
    "archives_refused": Code(
        403,
        "archives are not open to callers: whoever runs the service can name prefixes in ARCHIVE_SOURCES and "
        "ARCHIVE_TARGETS",
        "Archives of these prefixes are not open to callers.",
    ),
    "link_refused": Code(403, "the link has expired", "A signed link that is tampered with, expired, or used amiss."),
    "no_such_path": Code(404, "there is nothing here: see /docs", "No such path."),
    "job_not_found": Code(404, "there is no job with this id, or it has expired", "No such job, or an expired one."),
    "archive_not_found": Code(404, "there is no archive of yours with this id", "No such archive of this caller."),
    "not_found": Code(404, "what the link leads to has expired", "The stored file is gone."),
    "method_not_allowed": Code(
        405, "this path has no such method: see the header Allow", "The path has no such method."
    ),
    "conflict": Code(
        409, "this id was used for another request: choose a new one", "The id belongs to another request."
    ),
    "not_finished": Code(409, "the job is running: ask again later", "There is no result yet."),
    "no_result": Code(409, "the job has failed: there is no result", "The job ended without a result."),
    "already_final": Code(409, "the job has succeeded already", "A job that has ended cannot be cancelled."),
    "upload_missing": Code(
        409, "the file of this job is gone: send it again as a new job", "The upload has been deleted."
    ),
    "too_large": Code(413, "the input is over the limit of 209,715,200 bytes", "Too many bytes or pixels."),
    "unsupported_media_type": Code(
        415,
        "send a multipart/form-data form with the picture as the part 'file', or JSON with its 'url'",
        "Not of the type expected.",
    ),
    "no_such_range": Code(416, "the file has fewer bytes", "Bytes that the file has not."),
    "bad_options": Code(
        422, "scale must be more than 1 and at most 8, not 9", "Unknown options, bad values, or a contradiction."
    ),
    "bad_request": Code(422, "width: field required", "A parameter or a field is missing or wrong."),
    "invalid_id": Code(
        422, "a job's id is a UUID, such as 6f9619ff-8b86-4011-b42d-00c04fc964ff, in lower case", "Not a UUID."
    ),
    "bad_url": Code(422, "url: the URL leads to a private address", "A URL that is not fetched, or no URL."),
    "not_fetched": Code(
        422, "url: the server answered 404", "The server that the URL names does not give a file, or not in time."
    ),
    "bad_webhook": Code(422, "the webhook must be an http or https URL", "A webhook that will not be called."),
    "rate_limited": Code(429, "at most 60 requests a minute: try again in 12 s", "Slow down; see Retry-After."),
    "internal_error": Code(500, "something went wrong here: quote the request id", "A defect of the service."),
    "busy": Code(503, "too much work at the moment: try again in 8 s", "All workers are busy; see Retry-After."),
    "out_of_memory": Code(
        503, "not enough memory for this picture at the moment", "The work does not fit into memory now."
    ),
    "storage_unavailable": Code(
        503, "the storage does not answer: try again in 5 s", "S3 or the disk fails, or is too slow; the log says why."
    ),
}

#: As RFC 9110 names them; Python 3.11 has older names.
_TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


class Problem(HTTPException):
    """An error with one of `CODES`; raised anywhere, it becomes the answer.

    Args:
        code: one of `CODES`.
        detail: one sentence for people; the code's example when empty.
        headers: of the answer, such as Retry-After.
    """

    def __init__(self, code: str, detail: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(CODES[code].status, detail or CODES[code].example, dict(headers or {}))
        self.code = code


class ProblemDetails(BaseModel):
    """An error (RFC 9457). Programs look at `code`, people at `detail`."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(description="Always about:blank: the code says more.", examples=["about:blank"])
    title: str = Field(description="The name of the status.", examples=["Unprocessable Content"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="One sentence for people.")
    code: str = Field(description="Stable name for programs.")
    request_id: str = Field(description="As in the header X-Request-Id; quote it when you report a defect.")


def body(problem: Problem, request_id: str) -> dict[str, Any]:
    """The JSON of a problem."""
    return ProblemDetails(
        type="about:blank",
        title=_TITLES.get(problem.status_code) or HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=problem.detail,
        code=problem.code,
        request_id=request_id,
    ).model_dump()


def response(problem: Problem, request_id: str) -> JSONResponse:
    """The answer that reports a problem."""
    return JSONResponse(
        body(problem, request_id), problem.status_code, dict(problem.headers or {}), media_type=MEDIA_TYPE
    )


#: Exceptions whose one line is written for the client, and the code that each becomes.
DETAIL_SHOWN: tuple[tuple[type[Exception], str], ...] = (
    (core.UnreadableImage, "unreadable_image"),
    (core.TooLarge, "too_large"),
    (core.OptionsError, "bad_options"),
    (core.OutOfMemory, "out_of_memory"),
    (jobs.InvalidId, "invalid_id"),
    (jobs.IllegalTransition, "already_final"),
    (storage.LinkRefused, "link_refused"),
    (storage.InvalidKey, "bad_request"),
)
#: Those whose line names things that are not the client's business.
DETAIL_HIDDEN: tuple[tuple[type[Exception], str], ...] = (
    (jobs.Conflict, "conflict"),
    (storage.NotFound, "not_found"),
    (storage.Unavailable, "storage_unavailable"),
)


_NO_FILES = ("busy", "too much work at the moment: try again in 5 s")
_NO_ROOM = ("storage_unavailable", "there is no room for pictures at the moment: try again in 5 s")
#: What this machine has no more of, by the system's number of the error.
_FULL = {errno.EMFILE: _NO_FILES, errno.ENFILE: _NO_FILES, errno.ENOSPC: _NO_ROOM, errno.EDQUOT: _NO_ROOM}


def problem_of(error: Exception) -> Problem | None:
    """The problem that an exception means to a client; None for a defect of ours."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, ClientDisconnect):
        return Problem("malformed_request", "the request ended early")
    if isinstance(error, HTTPException):
        return _from_framework(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return Problem(*_FULL[error.errno], {"Retry-After": "5"})
    for kind, code in (*DETAIL_SHOWN, *DETAIL_HIDDEN):
        if isinstance(error, kind):
            detail = str(error) if (kind, code) in DETAIL_SHOWN else ""
            return Problem(code, detail, {"Retry-After": "5"} if CODES[code].status == 503 else None)
    return None


def _invalid(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    where, *path = (str(part) for part in first["loc"] if part not in BODY_KINDS)
    if first["type"] == "json_invalid":
        return Problem("malformed_request", "the body is not JSON")
    if where == "body" and not path and isinstance(error.body, bytes):
        return Problem("unsupported_media_type", "send JSON, with the header Content-Type: application/json")
    if where == "path":
        return Problem("invalid_id")
    option = first["type"] == "extra_forbidden" or (bool(path) and path[0] in RequestOptions.model_fields)
    if path[:1] == ["options"] or (where == "query" and option):
        return Problem(
            "bad_options", describe([part for part in path if part != "options"], first["type"], first["msg"])
        )
    if first["type"] == "extra_forbidden":
        return Problem("bad_request", f"there is no field {'.'.join(path)[:100]!r}")
    return Problem("bad_request", describe(path or [where], first["type"], first["msg"]))


def _from_framework(error: HTTPException) -> Problem:
    if error.status_code == 404:
        return Problem("no_such_path")
    if error.status_code == 405:
        return Problem("method_not_allowed", headers=error.headers)
    return Problem("malformed_request", "the request cannot be read")


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make every expected exception a problem; unexpected ones are caught in `handler.web.guard`, at the outside.

    Args:
        app: the application.
        routes: of the application and its routers, for the methods that a path has.
    """

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code == 405:
            # The framework knows only the first route of the path.
            found = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
            methods = sorted({method for route in found for method in getattr(route, "methods", None) or ()})
            error = Problem("method_not_allowed", headers={"Allow": ", ".join(methods)})
        if isinstance(error, storage.Unavailable):  # what the client is not told, whoever runs this needs to know
            log.error("%s: %s", error, error.__cause__, extra={"request_id": request.scope["state"]["request_id"]})
        problem = problem_of(error)
        if problem is None:  # pragma: no cover - the handlers are registered for what problem_of knows
            raise error
        return response(problem, request.scope["state"]["request_id"])

    for kind in (HTTPException, RequestValidationError, *(kind for kind, _ in (*DETAIL_SHOWN, *DETAIL_HIDDEN))):
        app.add_exception_handler(kind, answer)


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its problems by status, each code with its example. Common codes are added."""
    common = ("unauthorized", "rate_limited", "internal_error", "busy", "storage_unavailable")
    return {status: _response(group) for status, group in _by_status((*codes, *common)).items()}


def _by_status(codes: Iterable[str]) -> dict[int | str, list[str]]:
    groups: dict[int | str, list[str]] = {}
    for code in dict.fromkeys(codes):
        groups.setdefault(CODES[code].status, []).append(code)
    return dict(sorted(groups.items(), key=lambda item: int(item[0])))


def _response(codes: list[str]) -> dict[str, Any]:
    examples = {
        code: {
            "summary": CODES[code].about,
            "value": body(Problem(code), "6f9619ff-8b86-4011-b42d-00c04fc964ff"),
        }
        for code in codes
    }
    return {
        "description": " ".join(f"`{code}`: {CODES[code].about}" for code in codes),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
    }
