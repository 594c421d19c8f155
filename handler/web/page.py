"""What people see: the page at /, and the description of the service at /docs and /redoc.

All of it are files, with relative addresses, so that they work under any prefix; scripts and styles come from files of
this service alone, which the Content-Security-Policy holds the browser to.
"""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from core.formats import READABLE
from handler.web.service import Shared

_STATIC = Path(__file__).parent / "static"

#: ReDoc makes two style elements. One is empty, and filled through the CSSOM, which the policy lets a script do; the
#: other has the scrollbars of the version in fastapi-offline.
_REDOC_STYLES = (
    " 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
)
#: ReDoc fetches one picture from elsewhere: its maker's logo.
_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
_NOTHING = b"data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22/%3E"

router = APIRouter(include_in_schema=False)


@cache
def _files() -> StaticFiles:
    """The scripts and styles of these pages."""
    files = StaticFiles(directory=_STATIC)
    files.all_directories.append(_offline())
    return files


@cache
def _offline() -> Path:
    """Swagger UI (Apache-2.0) and ReDoc (MIT), from fastapi-offline, which need not be imported for that."""
    found = find_spec("fastapi_offline")
    if found is None or not found.submodule_search_locations:
        raise AssertionError("fastapi-offline is a dependency of the service")
    return Path(found.submodule_search_locations[0]) / "static"


@cache
def _redoc() -> bytes:
    return (_offline() / "redoc.standalone.js").read_bytes().replace(_LOGO, _NOTHING)


@router.get("/static/redoc.js")
def redoc_script() -> Response:
    """ReDoc without what it would fetch from elsewhere."""
    return Response(_redoc(), media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    """A script or a style, with an ETag."""
    return await _files().get_response(name, request.scope)


@router.api_route("/", methods=["GET", "HEAD"])
def index(service: Shared) -> Response:
    """The page, with the limits that it tells before an upload."""
    settings = service.settings
    limits = {
        "readable": READABLE,
        "bytes": settings.max_upload_bytes,
        "pixels": settings.max_pixels,
        "preview_bytes": min(settings.max_upload_bytes, settings.response_limit or settings.max_upload_bytes),
    }
    text = (_STATIC / "index.html").read_text(encoding="utf-8")
    text = text.replace("{{limits}}", html.escape(json.dumps(limits)))
    # In AWS, uploads and results go straight to and from S3.
    return _page(text, elsewhere="" if settings.local else " https:")


@router.api_route("/docs", methods=["GET", "HEAD"])
def docs() -> Response:
    """Swagger UI."""
    return _page((_STATIC / "docs.html").read_text(encoding="utf-8"))


@router.api_route("/redoc", methods=["GET", "HEAD"])
def redoc() -> Response:
    """ReDoc."""
    return _page((_STATIC / "redoc.html").read_text(encoding="utf-8"), styles=_REDOC_STYLES)


def _page(text: str, elsewhere: str = "", styles: str = "") -> HTMLResponse:
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' blob: data:{elsewhere}; "
        f"connect-src 'self'{elsewhere}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(
        text,
        headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"},
    )
