"""What a client may ask for: options by their names in HTTP and in job documents, with the settings' defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

import core
from core import hub, model_folder, models
from core.formats import FORMATS
from core.options import MAX_SCALE
from handler.settings import Settings

#: How names of places in S3 begin.
SCHEME = "s3://"
#: A file in the folder of models, without its ending.
_SHORT_NAME = re.compile(r"\w[\w.+ -]*", re.ASCII)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

#: JSON Schema: what options may not have beside each other. As `not`, which client generators pass over.
EXCLUDED: list[JsonValue] = [
    {"required": ["scale", "width"], "properties": {"scale": {"type": "number"}, "width": {"type": "integer"}}},
    {"required": ["scale", "height"], "properties": {"scale": {"type": "number"}, "height": {"type": "integer"}}},
    {
        "required": ["pyramid", "format"],
        "properties": {"pyramid": {"const": True}, "format": {"enum": [name for name in FORMATS if name != "tiff"]}},
    },
]


def _or_null(schema: dict[str, Any]) -> None:
    """In JSON an option may be null, which is left out; in a query or a form nothing is."""
    for name, option in schema["properties"].items():
        about = {key: option.pop(key) for key in ("title", "description", "examples", "default") if key in option}
        schema["properties"][name] = {"anyOf": [option, {"type": "null"}], **about}
    schema["not"] = {"anyOf": EXCLUDED}


def form_fields() -> dict[str, Any]:
    """OpenAPI: the options as fields of a form."""
    found = RequestOptions.model_json_schema()["properties"]
    return {name: {**option.pop("anyOf")[0], **option} for name, option in found.items()}


class RequestOptions(BaseModel):
    """The options of one request; what is left out is chosen by the service."""

    # The ranges are for the description only: `core.Options` checks them, and says it in better words.
    model_config = ConfigDict(extra="forbid", json_schema_extra=_or_null)

    model: str | SkipJsonSchema[None] = Field(
        default=None,
        description="A name from `GET /models`, or a hub id that is offered here.",
        examples=["compact-x2"],
        json_schema_extra={"minLength": 1},
    )
    scale: float | SkipJsonSchema[None] = Field(
        default=None,
        description="Factor of both sides, fractions allowed; 2 unless `width` or `height` is given.",
        examples=[2],
        json_schema_extra={"exclusiveMinimum": 1, "maximum": MAX_SCALE},
    )
    width: int | SkipJsonSchema[None] = Field(
        default=None,
        description="Exact width of the result in pixels, instead of `scale`; alone, the height follows.",
        json_schema_extra={"minimum": 1, "maximum": 200_000},
    )
    height: int | SkipJsonSchema[None] = Field(
        default=None,
        description="Exact height of the result in pixels, instead of `scale`; alone, the width follows.",
        json_schema_extra={"minimum": 1, "maximum": 200_000},
    )
    format: str | SkipJsonSchema[None] = Field(
        default=None,
        description="Format of the result; that of the input unless given, or a similar one where that is only read.",
        examples=["png"],
        json_schema_extra={"enum": list(FORMATS)},
    )
    quality: int | SkipJsonSchema[None] = Field(
        default=None,
        description="For JPEG, WebP and AVIF; chosen by the input unless given.",
        json_schema_extra={"minimum": 1, "maximum": 100},
    )
    exact: bool | SkipJsonSchema[None] = Field(
        default=None, description="Whether tiles must equal the untiled result for every model, which takes longer."
    )
    strip: bool | SkipJsonSchema[None] = Field(
        default=None, description="Whether to leave out everything but pixels and colour profile."
    )
    drop_gps: bool | SkipJsonSchema[None] = Field(
        default=None, description="Whether to leave out where the picture was taken: coordinates, and places by name."
    )
    keep_size: bool | SkipJsonSchema[None] = Field(
        default=None, description="Whether to keep the printed size, with more dots an inch."
    )
    pyramid: bool | SkipJsonSchema[None] = Field(
        default=None, description="Whether to make a TIFF of tiles with smaller copies for viewers (a pyramid)."
    )

    @field_validator("exact", "strip", "drop_gps", "keep_size", "pyramid", mode="before")
    @classmethod
    def _no_number(cls, value: object) -> object:
        """Words as queries and forms have them, in JSON true and false, but no numbers."""
        if type(value) in (int, float):
            raise ValueError("input should be true or false")
        return value


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, as one line."""
    first = error.errors(include_url=False)[0]
    return describe(first["loc"], first["type"], first["msg"])


def describe(where: Sequence[int | str], kind: str, message: str) -> str:
    """What pydantic says is wrong with a field, as one line."""
    # A field that may be left out is a union, whose branches are no names that anybody gave.
    name = ".".join(str(part) for part in where if part not in ("str", "float", "int", "bool"))[:100]
    if kind == "extra_forbidden":
        return f"there is no {name!r}: the options are {', '.join(RequestOptions.model_fields)}"
    message = message.removeprefix("Value error, ")
    return f"{name}: {message[:1].lower()}{message[1:]}"


def parse(asked: Mapping[str, object], settings: Settings) -> core.Options:
    """Options by their names, from a query, a form or a job document, completed from the settings.

    Raises:
        core.OptionsError: unknown, of the wrong type, out of range, contradicting, or a model that nobody may name.
    """
    try:
        given = RequestOptions.model_validate(dict(asked))
    except ValidationError as error:
        raise core.OptionsError(sentence(error)) from error
    if given.model is not None:
        _check_model(given.model, settings)
    exact = bool(given.exact)
    return core.Options(
        model=given.model or settings.model or None,
        scale=given.scale,
        width=given.width,
        height=given.height,
        tile=settings.tile_size,
        halo=None if exact else settings.tile_overlap,
        exact=exact,
        format=given.format or (None if given.pyramid else settings.output_format) or None,
        quality=given.quality if given.quality is not None else settings.output_quality,
        strip=bool(given.strip),
        drop_gps=bool(given.drop_gps),
        keep_size=bool(given.keep_size),
        pyramid=bool(given.pyramid),
    )


def in_models_dir(name: str | None, settings: Settings) -> str | None:
    """Where a short name leads: a file or folder of the setting MODELS_DIR, or a place in S3; any other stays.

    Args:
        name: of a model, as it was asked for.
        settings: of the service.
    """
    if not name or not settings.models_dir or name in models.MODELS or "/" in name:
        return name
    if settings.models_dir.startswith(SCHEME):
        return f"{settings.models_dir.rstrip('/')}/{name}"
    found = model_folder.find(name, Path(settings.models_dir))
    return str(found) if found else name


def _check_model(name: str, settings: Settings) -> None:
    """Refuse what a stranger has no business naming: directories of this machine, and other people's buckets.

    Raises:
        core.OptionsError: with the names that there are.
    """
    if may_ask_for(name, settings):
        return
    offered = ", ".join(name for name in models.MODELS if may_ask_for(name, settings))
    if name in models.MODELS or _on_hub(name):
        raise core.OptionsError(
            f"the model {name} is not offered here: give one of {offered}; "
            "who runs the service may add it to its setting MODELS"
        )
    raise core.OptionsError(f"there is no model {name[:100]!r}: give one of {offered}")


def _on_hub(name: str) -> bool:
    """Whether a name has the form of a hub id, or of a file there, and is nothing on this machine."""
    formed = _HUB_ID.fullmatch(name) is not None or hub.is_file_name(name)
    return formed and len(name) <= 200 and not Path(name).exists()


def may_ask_for(name: str, settings: Settings) -> bool:
    """Whether callers may ask for a model: what comes with the service, or is configured, allowed, or here already.

    Args:
        name: of `core.models.MODELS`, a hub id, or an `s3://` prefix.
        settings: MODEL and MODELS.
    """
    if settings.model and name == settings.model:
        return True
    if settings.bucket and name.startswith(f"s3://{settings.bucket}/models/"):
        return True
    if settings.models_dir and _SHORT_NAME.fullmatch(name):
        where = settings.models_dir
        if where.startswith(SCHEME) or model_folder.find(name, Path(where)):
            return True
    known = models.MODELS.get(name)
    if known is None and not _on_hub(name):
        return False
    names = {name, known.source if known else name}
    if any(fnmatchcase(each, pattern) for each in names for pattern in settings.allowed_models):
        return True
    return models.is_here(name)


def limits(settings: Settings) -> core.Limits:
    """What is refused before any work.

    A server is there for many, so it decodes in a separate process; a Lambda invocation or a Batch container is one.
    """
    return core.Limits(
        input_bytes=settings.max_upload_bytes,
        input_pixels=settings.max_pixels,
        output_pixels=settings.max_output_pixels,
        worker=settings.local,
    )
