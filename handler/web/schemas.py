"""What requests and answers look like: their models, and what OpenAPI cannot derive from code."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, WithJsonSchema, create_model

from core.formats import READABLE
from handler import jobs
from handler.names import file_name
from handler.options import EXCLUDED, RequestOptions, form_fields
from handler.web.problems import OF_NUMBERS, OF_PICTURE

#: Headers that a page of another origin may read.
EXPOSED = (
    "Content-Disposition",
    "Location",
    "Retry-After",
    "X-Picture-Height",
    "X-Picture-Width",
    "X-Request-Id",
    "X-Upscale-Degraded",
    "X-Upscale-Milliseconds",
    "X-Upscale-Model",
)
DESCRIPTION = """
Makes pictures larger. Send one to `POST /upscale` and save the answer:

    curl --fail-with-body -H "Prefer: wait=600" -F "file=@photo.jpg" \\
      "http://127.0.0.1:8000/upscale?scale=2" --output photo-x2.jpg

Long work, and files that are too large for a request, go by jobs: `POST /jobs`, send the file to the link that it
gives, and ask `GET /jobs/{id}` until it has succeeded.

Errors are problem details (RFC 9457). Every answer carries `X-Request-Id`.
"""
#: OpenAPI: headers of answers.
UPSCALE_HEADERS = {
    "Content-Disposition": {"description": "The name to save the picture under.", "schema": {"type": "string"}},
    "X-Upscale-Model": {"description": "The model that made the picture.", "schema": {"type": "string"}},
    "X-Upscale-Degraded": {
        "description": "Whether that is a fallback, because the model asked for could not be had.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "X-Upscale-Milliseconds": {
        "description": "From decoding to encoding, the loading of the model included.",
        "schema": {"type": "integer"},
    },
}
LOCATION = {"Location": {"description": "Where it is; may be relative to this URL.", "schema": {"type": "string"}}}
#: What can be wrong with any JSON body.
JSON_CODES = ("malformed_request", "unsupported_media_type", "bad_request")
#: What can be wrong with a picture, in whatever way it is sent.
PICTURE_CODES = (
    "malformed_request",
    "no_file",
    "several_files",
    "unreadable_image",
    "too_large",
    "unsupported_media_type",
    "bad_url",
    "not_fetched",
)


def _has(name: str) -> JsonValue:
    """JSON Schema: a property is there, and not null."""
    return {"required": [name], "properties": {name: {"type": "string"}}}


#: JSON Schema: what no body with a picture may be: one of both or of none. As `not`, which client generators pass over.
_NOT_ONE_PICTURE: list[JsonValue] = [
    {"allOf": [_has("url"), _has("image")]},
    {"not": {"anyOf": [_has("url"), _has("image")]}},
]


class PictureSource(BaseModel):
    """A picture by its URL, or in itself: exactly one of `url` and `image`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"not": {"anyOf": _NOT_ONE_PICTURE}})

    url: Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "format": "uri"})] | None = Field(
        default=None,
        description="Where the picture lies, http or https; it is fetched, unless the service is set up not to. "
        "Or a data: URI.",
    )
    image: Annotated[str, WithJsonSchema({"type": "string", "minLength": 1, "format": "byte"})] | None = Field(
        default=None, description="The picture itself, as base64 or as a data: URI."
    )
    filename: str | None = Field(
        default=None, description="Name of the picture's file, for that of the result.", examples=["photo.jpg"]
    )


def picture_body(options: bool) -> dict[str, Any]:
    """OpenAPI: a body with a picture, and with options for it or not."""
    fields = form_fields() if options else {}
    more = RequestOptions.model_json_schema()["properties"] if options else {}
    file = {"type": "string", "format": "binary", "description": f"The picture: {READABLE}."}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": file, **fields},
        "additionalProperties": False,
    }
    named = PictureSource.model_json_schema()["properties"]
    json = {"type": "object", "properties": {**named, **more}, "additionalProperties": False}
    json["not"] = {"anyOf": [*_NOT_ONE_PICTURE, *(EXCLUDED if options else [])]}
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": json}},
    }


JobId = Annotated[
    str, PathParameter(description="UUID of the job, in lower case.", json_schema_extra={"format": "uuid"})
]


Webhook = Annotated[
    str | None,
    Field(
        max_length=2000,
        description="URL that is called with POST on the final state, until it answers.",
        json_schema_extra={"pattern": "^[Hh][Tt][Tt][Pp][Ss]?://."},
    ),
]


class JobRequest(BaseModel):
    """A picture that will be uploaded, and what to make of it."""

    model_config = ConfigDict(extra="forbid")

    filename: str = Field(description="Name of the picture's file.", min_length=1, examples=["photo.jpg"])
    content_type: str = Field(
        description="Media type of the file; the upload must be declared as exactly this.",
        pattern=r"^(image/[A-Za-z0-9.+-]{1,60}|application/octet-stream)$",
        examples=["image/jpeg"],
    )
    bytes: int | None = Field(
        default=None, ge=1, description="Size of the file, the most that the upload takes.", examples=[2_000_000]
    )
    options: RequestOptions = Field(default=RequestOptions(), description="What to make.", examples=[{"scale": 2}])
    webhook: Webhook = None
    width: int | None = Field(
        default=None, ge=1, le=200_000, description="Of the picture in pixels, if known: for the estimate."
    )
    height: int | None = Field(
        default=None, ge=1, le=200_000, description="Of the picture in pixels, if known: for the estimate."
    )

    def as_request(self) -> jobs.Request:
        """The part that makes the job what it is."""
        return jobs.Request(
            filename=file_name(self.filename),
            content_type=self.content_type,
            bytes=self.bytes,
            options=self.options.model_dump(exclude_none=True),
            webhook=self.webhook,
        )


class JobOfPicture(PictureSource):
    """A picture by its URL or in itself, and what to make of it. The job needs no upload."""

    options: RequestOptions = Field(default=RequestOptions(), description="What to make.", examples=[{"scale": 2}])
    webhook: Webhook = None

    def as_request(self) -> jobs.Request:
        """The part that makes the job what it is."""
        path = urlsplit(self.url or "").path if not (self.url or "").startswith("data:") else ""
        return jobs.Request(
            filename=file_name(self.filename or unquote(path)),
            content_type="application/octet-stream",
            options=self.options.model_dump(exclude_none=True),
            webhook=self.webhook,
            source=self.url or self.image,
        )


class EstimateOfPicture(PictureSource):
    """A picture by its URL or in itself, and what would be made of it."""

    options: RequestOptions = Field(
        default=RequestOptions(), description="What would be made.", examples=[{"scale": 2}]
    )


class EstimateRequest(BaseModel):
    """A picture's size, and what would be made of it."""

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, le=200_000, description="Of the input, pixels.", examples=[512])
    height: int = Field(ge=1, le=200_000, description="Of the input, pixels.", examples=[512])
    options: RequestOptions = Field(
        default=RequestOptions(), description="What would be made.", examples=[{"scale": 2}]
    )


def _kind(body: Any) -> str:
    """Which of two models a body is meant to be."""
    given = body if isinstance(body, dict) else body.__dict__ if isinstance(body, BaseModel) else {}
    return OF_PICTURE if given.keys() & {"url", "image"} else OF_NUMBERS


JobBody = Annotated[
    Annotated[JobRequest, Tag(OF_NUMBERS)] | Annotated[JobOfPicture, Tag(OF_PICTURE)], Discriminator(_kind)
]
EstimateBody = Annotated[
    Annotated[EstimateRequest, Tag(OF_NUMBERS)] | Annotated[EstimateOfPicture, Tag(OF_PICTURE)], Discriminator(_kind)
]


class Upload(BaseModel):
    """Where to send the file: as a multipart form with these fields first, unchanged, and then the part `file`."""

    url: str = Field(description="Where to send the form.")
    method: Literal["POST"] = Field(description="Always POST.")
    fields: dict[str, str] = Field(description="Form fields to send before the file.")
    max_bytes: int = Field(description="A larger file is refused.")
    expires: datetime = Field(description="When the link ends.")


class ModelInfo(BaseModel):
    """A model that can be asked for by name."""

    name: str = Field(description="For the option `model`.", examples=["compact-x2"])
    kind: str = Field(description="The network that runs it.", examples=["compact"])
    scale: int = Field(
        description="Factor of one pass; other factors are made from passes and resizing. 1 restores without enlarging."
    )
    about: str = Field(description="One line for people.")
    embedded: bool = Field(description="Whether it comes with the service; others are downloaded at first use.")
    default: bool = Field(description="Whether it runs when none is named.")
    receptive_field: int = Field(description="Input pixels on each side that can influence an output pixel.")
    licence: str = Field(description="Of the weights, where a file says it; empty where none does.")


class Health(BaseModel):
    """That the service answers."""

    status: Literal["ok"]
    version: str
    mode: Literal["local", "aws"] = Field(description="Where pictures and jobs are kept.")
    storage: Literal["ok", "failing", "unchecked"] = Field(
        description="Whether the directory of local mode can be written to; S3 is not asked."
    )


_HIDDEN = {"lease", "owner", "request_hash", "revision"}
JobView = create_model(
    "Job",
    __doc__="One job, as it is now.",
    upload=(Upload | None, Field(description="Where to send the file; null when the job is past that.")),
    result_url=(str | None, Field(description="Downloads the result, for a while; null unless succeeded.")),
    **{name: (field.annotation, field) for name, field in jobs.Job.model_fields.items() if name not in _HIDDEN},  # type: ignore[call-overload]
)
Event = create_model(
    "Event",
    __doc__="A job that has ended, as webhooks send it.",
    type=(Literal["job.succeeded", "job.failed", "job.cancelled"], Field(description="What has happened.")),
    result_url=(
        str | None,
        Field(
            description="Downloads the result, for a while; null unless succeeded, and where the service does not know "
            "its address (PUBLIC_URL). `GET /jobs/{id}/result` leads there at any time."
        ),
    ),
    **{name: (field.annotation, field) for name, field in jobs.Job.model_fields.items() if name not in _HIDDEN},  # type: ignore[call-overload]
)
