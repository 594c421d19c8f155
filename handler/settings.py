"""Every setting of the service: read from the environment, once, and never changed afterwards.

A variable has the name of its field in capitals (`bucket` is `BUCKET`). An empty variable means the default.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


def _data_dir() -> Path:
    import platformdirs

    return platformdirs.user_data_path("serverless-upscaler", appauthor=False)


class Settings(BaseSettings):
    """The configuration; each field's description says its unit and what an empty value means.

    Raises:
        pydantic.ValidationError: on construction, for a value outside its range or a contradiction.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # Where things are kept
    bucket: str = Field(
        default="", description="S3 bucket for uploads, results and jobs; empty: local mode, in DATA_DIR"
    )
    data_dir: Path = Field(
        default_factory=_data_dir,
        description="local mode: the directory that stands in for the bucket, a new or an empty one; "
        "empty: serverless-upscaler in the user's data directory, such as ~/.local/share",
    )
    s3_endpoint_url: str = Field(default="", description="URL of an S3-compatible server; empty: AWS")
    job_ttl_days: int = Field(
        default=7,
        ge=1,
        le=3650,
        description="days until a job, its upload and its result expire (the bucket's lifecycle rule)",
    )
    link_seconds: int = Field(
        default=3600, ge=60, le=604_800, description="seconds that a signed upload or download link lives"
    )

    # Where work runs
    inline_seconds: float = Field(
        default=20,
        ge=0,
        description="seconds of estimated work up to which POST /upscale answers with the image itself",
    )
    lambda_seconds: float = Field(
        default=600, ge=0, le=900, description="seconds of estimated work up to which Lambda takes it"
    )
    lambda_memory_mb: int = Field(
        default=10_240, ge=128, le=10_240, description="MiB of memory of the Lambda worker; more needs Batch"
    )
    batch_queue: str = Field(default="", description="name or ARN of the AWS Batch job queue; empty: no Batch")
    batch_job_definition: str = Field(
        default="", description="name or ARN of the AWS Batch job definition; empty: no Batch"
    )
    batch_memory_mb: int = Field(default=14_336, ge=128, description="MiB of memory of an AWS Batch job")
    batch_seconds: float = Field(
        default=14_400, ge=60, description="seconds that AWS Batch gives a job; what would take longer is refused"
    )
    batch_split_seconds: float = Field(
        default=1800,
        ge=0,
        description="seconds of estimated work on one AWS Batch machine from which on several make parts of a picture "
        "at the same time, each about so long; 0: never",
    )
    require_gpu: bool = Field(
        default=False,
        description="whether a Batch container that finds no GPU ends at once, to be started on another machine",
    )
    upload_queue_url: str = Field(
        default="",
        description="URL of the SQS queue of uploads, which jobs are sent to that are done again; empty: none",
    )
    archive_sources: str = Field(
        default="",
        description="prefixes, separated by commas, such as scans, whose pictures callers may have made larger by "
        "POST /archives; empty: none",
    )
    archive_targets: str = Field(
        default="",
        description="prefixes, separated by commas, such as upscaled, under which POST /archives may put results; "
        "empty: none",
    )
    archive_at_once: int = Field(
        default=20, ge=1, le=1000, description="jobs of one archive that wait or run on AWS Batch at the same time"
    )
    max_concurrency: int = Field(
        default=1,
        ge=1,
        le=64,
        description="local mode: pictures worked on at the same time; besides, there is a place for a short one",
    )
    queue_seconds: float = Field(
        default=120,
        gt=0,
        description="seconds of estimated work, for each of MAX_CONCURRENCY, that may wait for direct answers, "
        "half of it of one client; more is refused with 503",
    )
    job_queue_seconds: float = Field(default=86_400, gt=0, description="local mode: the same for jobs that are queued")
    lease_seconds: float = Field(
        default=60, gt=0, le=3600, description="seconds after which a silent worker's job may be taken over by another"
    )

    # Limits of one request
    max_upload_bytes: int = Field(default=200 * MIB, ge=1, description="bytes of an encoded input picture")
    max_pixels: int = Field(default=100_000_000, ge=1, description="width * height of an input picture")
    max_output_pixels: int = Field(default=400_000_000, ge=1, description="width * height of a result")
    max_response_bytes: int = Field(
        default=4_500_000,
        ge=1,
        description="bytes of a result up to which a response carries it; larger ones are redirected to. "
        "Not used in local mode",
    )

    fetch_urls: Literal["", "none", "public", "all"] = Field(
        default="",
        description="none, public or all: URLs of pictures that are fetched for callers; all: private and loopback "
        "addresses too, which lets callers reach what only this machine can reach; empty: public in local mode, "
        "none in AWS",
    )

    # How pictures are made larger
    model: str = Field(default="", description="model used when a request names none; empty: the core's default")
    models_dir: str = Field(
        default="",
        description="folder of models that requests may name by their files' names, or an s3:// prefix of such",
    )
    models: str = Field(
        default="",
        description="names, hub ids and patterns such as caidas/*, separated by commas, that callers may ask for "
        "besides the embedded models, MODEL, and those that are on this machine already; they are downloaded. "
        "*: every hub id",
    )
    warm_model: str = Field(
        default="photo-x2", description="model loaded by a thread at start; none: loaded at first use"
    )
    tile_size: int | None = Field(
        default=None,
        ge=16,
        le=8192,
        description="pixels of a side of a tile of the input, overlap not included; empty: chosen",
    )
    tile_overlap: int | None = Field(
        default=None, ge=0, le=1024, description="pixels of context around a tile (its halo); empty: chosen"
    )
    output_format: Literal["", "jpeg", "png", "webp", "tiff", "bmp", "avif"] = Field(
        default="",
        description="jpeg, png, webp, tiff, bmp or avif: format of a result when a request names none; "
        "empty: the input's",
    )
    output_quality: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="1 to 100, for JPEG, WebP and AVIF, when a request names none; empty: chosen",
    )

    # Who may call
    cors_origins: str = Field(
        default="", description="origins, separated by commas, whose pages may call; *: every page; empty: none"
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        description="local mode: keys, separated by commas, one of which callers send as X-API-Key or bearer token; "
        "each sees its own jobs only; empty: none needed",
    )
    rate_limit: str = Field(
        default="60/minute",
        pattern=r"^([1-9]\d*/(second|minute|hour|day)|none)$",
        description="local mode: requests of one client per second, minute, hour or day; none: no limit",
    )
    host: str = Field(default="127.0.0.1", description="local mode: address to listen on")
    root_path: str = Field(
        default="",
        pattern=r"^(/[^/\s?#]+)*$",
        description="local mode: path that a reverse proxy puts before the service's own, such as /upscaler",
    )
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s?#]+)?$",
        description="address that callers know the service by, such as https://example.org/upscaler, for its links; "
        "empty: taken from each request",
    )
    trusted_proxies: str = Field(
        default="",
        description="local mode: addresses and networks of reverse proxies, separated by commas, whose "
        "X-Forwarded-For and X-Forwarded-Proto are believed; *: everybody's; empty: nobody's",
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="local mode: TCP port to listen on; 0: a free one")

    # Webhooks
    webhook_secret: SecretStr = Field(
        default=SecretStr(""),
        description="local mode: key of the HMAC-SHA256 signature of webhooks; empty: they carry no signature",
    )
    webhook_secret_arn: str = Field(
        default="",
        description="ARN of the secret in AWS Secrets Manager that is this key, read when a webhook is sent; "
        "empty: WEBHOOK_SECRET",
    )
    webhook_allow_private: bool = Field(
        default=False,
        description="whether webhooks may go to private and loopback addresses (for tests and home networks)",
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if bool(self.batch_queue) != bool(self.batch_job_definition):
            raise ValueError("BATCH_QUEUE and BATCH_JOB_DEFINITION belong together: set both or neither")
        if self.batch_queue and not self.bucket:
            raise ValueError("Batch reads its jobs from S3: set BUCKET too, or leave BATCH_QUEUE empty")
        return self

    @property
    def local(self) -> bool:
        """Whether a local directory stands in for S3."""
        return not self.bucket

    @property
    def has_batch(self) -> bool:
        """Whether there is a Batch queue to send long work to."""
        return bool(self.batch_queue)

    @property
    def response_limit(self) -> int | None:
        """Bytes that a response may carry, None without a limit (local mode)."""
        return None if self.local else self.max_response_bytes

    @property
    def fetched_urls(self) -> Literal["none", "public", "all"]:
        """`fetch_urls`, by the mode where it is empty."""
        return self.fetch_urls or ("public" if self.local else "none")

    @property
    def api_keys(self) -> tuple[str, ...]:
        """`api_key`, one by one."""
        return tuple(key.strip() for key in self.api_key.get_secret_value().split(",") if key.strip())

    @property
    def allowed_models(self) -> tuple[str, ...]:
        """`models`, one by one."""
        return tuple(name.strip() for name in self.models.split(",") if name.strip())

    @property
    def archive_prefixes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """`archive_sources` and `archive_targets`, one by one, each with a slash at its end."""
        sources, targets = (
            tuple(f"{name.strip().strip('/')}/" for name in names.split(",") if name.strip().strip("/"))
            for names in (self.archive_sources, self.archive_targets)
        )
        return sources, targets

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """`cors_origins`, one by one."""
        return tuple(origin.strip() for origin in self.cors_origins.split(",") if origin.strip())


@cache
def get_settings() -> Settings:
    """The settings of this process; `get_settings.cache_clear()` makes the next call read the environment again.

    Raises:
        pydantic.ValidationError: a variable is outside its range; the message names it.
    """
    return Settings()
