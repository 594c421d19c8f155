"""The path that lies before the service's own: API Gateway's stage, a domain's base path, or a reverse proxy's.

Addresses that the service gives of itself begin with it (ASGI's `root_path`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from handler.settings import Settings


def root_path(event: Mapping[str, Any]) -> str:
    """The path before the service's own in an event of API Gateway or a function URL; empty for none.

    A REST API gives the path as it was asked for (`requestContext.path`: with the stage, or with the base path of a
    custom domain) and the path below that. An HTTP API gives the former and the stage. A function URL has neither.
    """
    context = event.get("requestContext") or {}
    if event.get("version") == "2.0":
        stage = "/" + str(context.get("stage") or "")
        return stage if stage != "/$default" and str(event.get("rawPath", "")).startswith(stage + "/") else ""
    asked, own = str(context.get("path") or ""), str(event.get("path") or "")
    if resource := str(event.get("resource") or ""):  # a custom domain's base path is in the event's path, too
        own = resource
        for name, value in (event.get("pathParameters") or {}).items():
            own = own.replace(f"{{{name}+}}", str(value)).replace(f"{{{name}}}", str(value))
    for ending in (own, quote(own)):  # one of the two is encoded, which one depends on who sends the event
        if asked.endswith(ending):
            return asked.removesuffix(ending).rstrip("/")
    return ""


def under_root(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Set ASGI's `root_path`, and take it off the path where that has it; without ROOT_PATH the server's own counts."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            own = settings.root_path or scope.get("root_path", "")  # `uvicorn --root-path`
            root = root_path(scope["aws.event"]) if "aws.event" in scope else own
            path = scope["path"].removeprefix(root) if scope["path"].startswith(root + "/") else scope["path"]
            scope = {**scope, "root_path": root, "path": path}
        await app(scope, receive, send)

    return outer
