"""The application, put together from its routers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import core
from handler.settings import Settings
from handler.storage import Storage
from handler.web import (
    archives,
    guard,
    info,
    jobs,
    listing,
    local_links,
    openapi,
    page,
    preview,
    problems,
    stage,
    upscale,
)
from handler.web.schemas import DESCRIPTION, EXPOSED
from handler.web.service import Service


def _nothing(_: str) -> None:
    """In AWS the upload itself is the event that starts a job."""


def build(settings: Settings, storage: Storage | None = None, start: Callable[[str], None] = _nothing) -> FastAPI:
    """The application; what its routes share is `app.state.service`.

    Args:
        settings: of the service.
        storage: where pictures and jobs are kept; opened at the first request that needs it when None.
        start: called with the id of a job that is queued.
    """
    app = FastAPI(
        title="Upscaler",
        version=core.__version__,
        description=DESCRIPTION,
        license_info={"name": "MIT", "identifier": "MIT"},
        redirect_slashes=False,
        docs_url=None,  # `handler.web.page` has them, from files of this machine
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # names of functions in generated clients
    )
    app.state.service = Service(settings, storage, start)
    routes = list(app.routes)  # the description
    routers = [upscale.router, jobs.router, archives.router, preview.router, info.router, page.router]
    for router in (*routers, *([local_links.router, listing.router] if settings.local else ())):
        app.include_router(router)
        routes += router.routes

    openapi.add_webhooks(app)
    problems.install(app, routes)
    app.add_middleware(partial(guard.guarded, settings=settings))
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", "X-API-Key"],
            expose_headers=EXPOSED,
            max_age=3600,
        )
    app.add_middleware(guard.request_ids)
    app.add_middleware(partial(stage.under_root, settings=settings))
    app.openapi = partial(openapi.describe, app, bool(settings.api_keys))  # type: ignore[method-assign]
    return app
