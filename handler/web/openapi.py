"""The description of the service (OpenAPI), at /openapi.json and /docs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from handler.web import problems


def describe(app: FastAPI, with_key: bool) -> dict[str, Any]:
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
            bearer = {"type": "http", "scheme": "bearer"}
            found["components"]["securitySchemes"] = {"ApiKey": scheme, "Bearer": bearer}
            found["security"] = [{"ApiKey": []}, {"Bearer": []}]
        request_id = {"description": "Names this request in the logs.", "schema": {"type": "string"}}
        for path in found["paths"].values():
            for method, operation in path.items():
                if method not in ("get", "head", "options"):  # `handler.web.callers.foreign_page`
                    answers = {**operation["responses"], "403": problems.documented("foreign_page")[403]}
                    operation["responses"] = dict(sorted(answers.items()))
                for status, answer in operation["responses"].items():
                    answer.setdefault("headers", {})["X-Request-Id"] = request_id
                    if status in ("429", "503"):
                        wait = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
                        answer["headers"]["Retry-After"] = wait
        app.openapi_schema = found
    return app.openapi_schema
