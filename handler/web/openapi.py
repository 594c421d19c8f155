"""The description of the service (OpenAPI), at /openapi.json and /docs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.openapi.utils import get_openapi

from handler.jobs import State
from handler.web import problems
from handler.web.schemas import Event


def job_ended(
    event: Event,
    webhook_id: Annotated[str, Header(description="Names the event: `msg_` and the job's id. The same at each try.")],
    webhook_timestamp: Annotated[int, Header(description="When this was sent, seconds since 1970: refuse old ones.")],
    webhook_signature: Annotated[
        str,
        Header(
            description="`v1,` and the base64 of HMAC-SHA256 of `id.timestamp.body` (Standard Webhooks); left out "
            "where the service has no WEBHOOK_SECRET."
        ),
    ] = "",
) -> None:
    """The job has reached this state, for good. Answer with any 2xx within five seconds.

    No answer, 408, 425, 429 and 5xx: it is sent again, four times in the first half minute, then after a minute and
    ever longer gaps for three days. Any other answer ends it.
    """


def add_webhooks(app: FastAPI) -> None:
    """Describe the calls that the service makes itself: see `handler.webhook`."""
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        app.webhooks.add_api_route(
            f"job.{state}",
            job_ended,
            methods=["POST"],
            operation_id=f"job_{state}",
            summary=f"A job has {state}" if state is not State.CANCELLED else "A job was cancelled",
            tags=["jobs"],
            status_code=204,
            response_description="Delivered, as with any 2xx.",
            openapi_extra={"security": []},
        )


def describe(app: FastAPI, with_key: bool) -> dict[str, Any]:
    """The description, with what FastAPI cannot know: the schema of problems, and headers that every answer has."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            webhooks=app.webhooks.routes,
            license_info=app.license_info,
        )
        for hook in found["webhooks"].values():
            del hook["post"]["responses"]["422"]  # FastAPI's own, of a service that checks what it gets
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        found["components"]["schemas"]["Problem"] = problems.ProblemDetails.model_json_schema()
        if with_key:
            scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
            bearer = {"type": "http", "scheme": "bearer"}
            found["components"]["securitySchemes"] = {"ApiKey": scheme, "Bearer": bearer}
            found["security"] = [{"ApiKey": []}, {"Bearer": []}]
        request_id = {"description": "Names this request in the logs.", "schema": {"type": "string"}}
        for path in found["paths"].values():
            for method, operation in path.items():
                if method not in ("get", "head", "options"):  # `handler.web.callers.foreign_page`
                    stated = operation["responses"].get("403", {}).get("content", {}).get(problems.MEDIA_TYPE, {})
                    refused = problems.documented("foreign_page", *stated.get("examples", {}))[403]
                    operation["responses"] = dict(sorted({**operation["responses"], "403": refused}.items()))
                for status, answer in operation["responses"].items():
                    answer.setdefault("headers", {})["X-Request-Id"] = request_id
                    if status in ("429", "503"):
                        wait = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
                        answer["headers"]["Retry-After"] = wait
        app.openapi_schema = found
    return app.openapi_schema
