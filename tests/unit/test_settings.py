"""The configuration: its defaults, how it is read, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import platformdirs
import pytest
from pydantic import ValidationError

from core.formats import FORMATS
from handler.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without any of our variables, and no settings kept from before."""
    names = {name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.upper() in names:
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_nothing_set_is_local_mode() -> None:
    settings = get_settings()
    assert settings.local
    assert not settings.has_batch
    assert settings.data_dir == platformdirs.user_data_path("serverless-upscaler", appauthor=False)
    assert settings.data_dir.is_absolute(), "not the folder that somebody happens to be in"
    assert settings.response_limit is None
    assert settings.allowed_origins == ()
    assert settings.host == "127.0.0.1"
    assert (settings.inline_seconds, settings.lambda_seconds, settings.lease_seconds) == (20, 600, 60)
    assert settings.warm_model == "photo-x2"


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "pictures")
    settings = get_settings()
    monkeypatch.setenv("BUCKET", "another")
    assert get_settings() is settings
    assert settings.bucket == "pictures"
    assert not settings.local
    assert settings.response_limit == 4_500_000


def test_values_as_the_environment_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TILE_SIZE": "256",
        "TILE_OVERLAP": "",
        "OUTPUT_FORMAT": "webp",
        "CORS_ORIGINS": "https://a.example, https://b.example,",
        "LOG_LEVEL": "debug",
        "WEBHOOK_ALLOW_PRIVATE": "true",
        "API_KEY": "open-sesame",
        "RATE_LIMIT": "5/second",
    }.items():
        monkeypatch.setenv(name, value)
    settings = get_settings()
    assert (settings.tile_size, settings.tile_overlap, settings.output_format) == (256, None, "webp")
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert settings.log_level == "DEBUG"
    assert settings.webhook_allow_private
    assert settings.rate_limit == "5/second"
    assert settings.api_key.get_secret_value() == "open-sesame"
    assert "open-sesame" not in repr(settings), "secrets stay out of logs"


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_can_be_the_default(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.setenv("OUTPUT_FORMAT", format)
    assert get_settings().output_format == format
    assert format in str(Settings.model_fields["output_format"].description)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TILE_SIZE", "8"),
        ("OUTPUT_QUALITY", "0"),
        ("OUTPUT_FORMAT", "gif"),
        ("RATE_LIMIT", "many"),
        ("RATE_LIMIT", "0/minute"),
        ("LAMBDA_SECONDS", "901"),
        ("LOG_LEVEL", "loud"),
        ("PORT", "65536"),
        ("MAX_CONCURRENCY", "0"),
        ("LEASE_SECONDS", "0"),
        ("BATCH_QUEUE", "queue"),
        ("BATCH_JOB_DEFINITION", "definition"),
    ],
)
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("BUCKET", "pictures")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=f"(?i){name}"):
        get_settings()


def test_batch_needs_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_QUEUE", "queue")
    monkeypatch.setenv("BATCH_JOB_DEFINITION", "definition")
    with pytest.raises(ValidationError, match="BUCKET"):
        get_settings()
    monkeypatch.setenv("BUCKET", "pictures")
    assert get_settings().has_batch


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize("module", ["settings", "storage", "jobs", "webhook"])
def test_importing_is_cheap(module: str) -> None:
    """The cold path: boto3 is loaded by the first call to S3, torch by the first picture."""
    code = (
        f"import handler.{module}, sys; print(*sorted({{'torch', 'boto3', 'numpy', 'PIL', 'core'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
