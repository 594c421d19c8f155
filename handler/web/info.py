"""What can be asked without a picture: an estimate, the models, and the health."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

import core
from core import model_folder, models
from handler import options, routing
from handler.jobs import Estimate
from handler.web import sources
from handler.web.problems import Problem, documented
from handler.web.schemas import JSON_CODES, PICTURE_CODES, EstimateBody, EstimateRequest, Health, ModelInfo
from handler.web.service import Service, Shared

router = APIRouter()


@router.post(
    "/estimate",
    summary="What a picture would take",
    tags=["upscale"],
    response_model=Estimate,
    responses=documented(*JSON_CODES, *PICTURE_CODES, "bad_options"),
)
async def estimate(request: Request, service: Shared, wanted: EstimateBody) -> Estimate:
    """Where the work would run, its seconds, memory, and cost, and the size of the result.

    Of a picture of this size, or of the one that lies at a `url`.
    """
    asked = options.parse(wanted.options.model_dump(exclude_none=True), service.settings)
    if isinstance(wanted, EstimateRequest):
        picture = core.Probe("png", wanted.width, wanted.height, 0, "")
    else:
        file = await sources.receive(request, service, wanted)
        try:
            picture = await run_in_threadpool(core.probe, file.file, options.limits(service.settings))
        finally:
            await file.close()
    return await run_in_threadpool(routing.plan, picture, asked, service.settings)


@router.get("/models", summary="Models by name", tags=["upscale"], responses=documented())
def list_models(service: Shared) -> list[ModelInfo]:
    """The models that may be asked for; who runs the service can offer more (MODELS)."""
    named = service.settings.model
    default = {named} if named else {models.embedded(2, format) for format in ("jpeg", "png")}
    known = dict(models.MODELS)
    folder = service.settings.models_dir
    if folder and not folder.startswith(options.SCHEME):
        there = model_folder.list_models(Path(folder))
        known.update({name: spec for name, spec in there.items() if not isinstance(spec, core.ModelError)})
    return [
        ModelInfo(
            name=spec.name,
            kind=spec.kind,
            scale=spec.scale,
            about=spec.about,
            embedded=spec.source.startswith(str(models.WEIGHTS)),
            default=spec.name in default,
            receptive_field=spec.receptive_field,
            licence=spec.licence,
        )
        for spec in known.values()
        if options.may_ask_for(spec.name, service.settings)
    ]


@router.get("/health", summary="Whether the service answers", tags=["service"], responses=documented())
def health(request: Request, service: Shared) -> Health:
    """Whether the process lives. A store that fails is told, and no reason to start the service anew."""
    return _health(request, service)


@router.get(
    "/ready",
    summary="Whether work can be taken",
    tags=["service"],
    responses=documented("storage_unavailable"),
)
def ready(request: Request, service: Shared) -> Health:
    """For load balancers: 503 while the store fails."""
    found = _health(request, service)
    if found.storage == "failing":
        raise Problem("storage_unavailable", headers={"Retry-After": "5"})
    return found


def _health(request: Request, service: Service) -> Health:
    storage: Literal["ok", "failing", "unchecked"] = "unchecked"
    if service.settings.local:
        storage = "ok" if service.storage_works() else "failing"
    mode: Literal["local", "aws"] = "local" if service.settings.local else "aws"
    return Health(status="ok", version=request.app.version, mode=mode, storage=storage)
