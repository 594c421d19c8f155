"""What every request passes before it reaches a route: request id, key, rate and size; and what a defect becomes.

Plain ASGI, so that bodies stream through and can be refused at the byte that is too many.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.settings import Settings
from handler.web import problems
from handler.web.callers import foreign_page, given_key, owner_of
from handler.web.problems import Problem

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import RateLimiter

log = logging.getLogger(__name__)

#: Bytes of a form besides the picture, and of a JSON body.
OVERHEAD = 64 * 1024
#: Bytes of a JSON body that may hold a picture, which takes memory; and the paths that take one.
JSON_PICTURE = 8 << 20
_PICTURES = ("/upscale", "/preview")
#: Requests of one client without the right key.
GUESSES = "20/minute"
#: Open to everybody: they do no work, or carry a separate signature.
_OPEN = ("/", "/health", "/ready", "/docs", "/redoc", "/openapi.json")
_STATIC = "/static/"
_SIGNED = "/storage/"


def request_ids(app: ASGIApp) -> ASGIApp:
    """Give every request an id, Lambda's where there is one, and name it in every answer."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        if scope["path"].lower().startswith(("http://", "https://")):  # as to a proxy (RFC 9112, 3.2.2)
            path = "/" + scope["path"].split("/", 3)[3] if scope["path"].count("/") > 2 else "/"
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        request_id = getattr(scope.get("aws.context"), "aws_request_id", None) or str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        finally:
            milliseconds = round((time.perf_counter() - start) * 1000)
            fields = {"request_id": request_id, "status": status, "milliseconds": milliseconds}
            log.info("%s %s %s", scope["method"], scope["path"], status, extra=fields)

    return outer


def guarded(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Refuse without a key, too often, or too large; and turn whatever nobody caught into a bare 500."""
    keys = settings.api_keys
    too_often = _rate_limit(settings, settings.rate_limit)
    guesses = _rate_limit(settings, GUESSES)

    def check(scope: Scope, headers: Headers) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        client = scope["client"][0] if scope.get("client") else ""
        if settings.local and not path.startswith(_SIGNED) and foreign_page(scope, headers, settings):
            raise Problem("foreign_page")
        if keys and path not in _OPEN and not path.startswith((_STATIC, _SIGNED)):
            owner = owner_of(given_key(headers), keys)
            if not owner:
                wait = guesses(client)
                if wait is not None:
                    detail = f"too many requests with a wrong key: try again in {wait} s"
                    raise Problem("rate_limited", detail, {"Retry-After": str(wait)})
                raise Problem("unauthorized", headers={"WWW-Authenticate": 'Bearer realm="upscaler"'})
            scope["state"]["owner"] = owner
        # Looking at a job or fetching a result costs nothing: only what makes work is counted.
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not path.startswith(_SIGNED):
            wait = too_often(scope["state"].get("owner") or client)
            if wait is not None:
                detail = f"at most {settings.rate_limit.replace('/', ' requests a ')}: try again in {wait} s"
                raise Problem("rate_limited", detail, {"Retry-After": str(wait)})

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        request_id = scope["state"]["request_id"]
        try:
            headers = Headers(scope=scope)
            check(scope, headers)
            if scope["method"] == "HEAD" and not scope["path"].startswith((_STATIC, _SIGNED)):
                scope = {**scope, "method": "GET"}  # the server leaves out the body
            await app(
                scope, _limited(receive, headers, *_most(scope, headers, settings.max_upload_bytes)), send_and_note
            )
        except Exception as error:
            problem = problems.problem_of(error)
            if problem is None:
                log.exception("unexpected failure", extra={"request_id": request_id})
                problem = Problem("internal_error")
            elif isinstance(error, OSError):
                log.error("%s", error, extra={"request_id": request_id})
            if started:  # the status is out already: all that is left is to break off
                raise
            await problems.response(problem, request_id)(scope, receive, send)

    return outer


def _most(scope: Scope, headers: Headers, max_upload: int) -> tuple[int, str]:
    """Bytes that a body may have, and what is said where it has more."""
    kind = headers.get("content-type", "").lower()
    if kind.startswith(("multipart/form-data", "image/", "application/octet")):
        return max_upload + OVERHEAD, f"the input is over the limit of {max_upload:,} bytes"
    if scope["path"].removeprefix(scope.get("root_path", "")) in _PICTURES:
        most = min(JSON_PICTURE, max_upload * 4 // 3 + OVERHEAD)
        return most, f"the JSON is over the limit of {most:,} bytes: send larger pictures as a multipart form"
    return OVERHEAD, f"the input is over the limit of {OVERHEAD:,} bytes: send larger pictures to /upscale"


def _limited(receive: Receive, headers: Headers, most: int, limit: str) -> Receive:
    """A `receive` that raises as soon as the body is too large, whatever Content-Length says.

    Raises:
        Problem: too_large, at once where the length is declared.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem("unsupported_media_type", "send the body as it is, without Content-Encoding")
    declared = headers.get("content-length", "").lstrip("0")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > most):
        raise Problem("too_large", limit)
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise Problem("too_large", limit)
        return message

    return counted


def _rate_limit(settings: Settings, most: str) -> Callable[[str], int | None]:
    """Seconds that a client has to wait, None when it may go on. In AWS the API's usage plan does this."""
    if not settings.local or most == "none":
        return lambda _: None
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import MovingWindowRateLimiter

    item: RateLimitItem = parse(most)
    limiter: RateLimiter = MovingWindowRateLimiter(MemoryStorage())

    def wait(client: str) -> int | None:
        if limiter.hit(item, client):
            return None
        return max(1, math.ceil(limiter.get_window_stats(item, client).reset_time - time.time()))

    return wait
