"""The cold path, warming up, and Lambda."""

from __future__ import annotations

import base64
import io
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import core
from handler import options, routing
from handler.settings import Settings
from handler.web.warm import warm
from tests.integration.web.support import ROOT, local


def in_new_process(code: str, folder: Path, **environment: str) -> Any:
    environment |= {"PATH": "", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_the_import_is_light(tmp_path: Path) -> None:
    heavy = ["torch", "transformers", "scipy", "boto3", "limits.storage.redis", "uvicorn", "huggingface_hub"]
    code = f"import sys, json, handler.api; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert in_new_process(code, tmp_path, DATA_DIR=str(tmp_path / "never")) == []
    assert not (tmp_path / "never").exists()


def test_warming_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert warm(local(tmp_path)) is None
    thread = warm(local(tmp_path, warm_model="compact-x2"))
    assert thread
    thread.join()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert routing.plan(core.Probe("png", 64, 64, 0, ""), core.Options(), local(tmp_path)).measured


LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "f", "BUCKET": "b"}


def test_lambda_can_do_without_warming_up(tmp_path: Path) -> None:
    code = "import json, threading, handler.api; print(json.dumps([t.name for t in threading.enumerate()]))"
    assert in_new_process(code, tmp_path, WARM_MODEL="none", **LAMBDA) == ["MainThread"]


@pytest.mark.slow
def test_lambda_warms_up_beside_its_start_and_gives_binary_as_base64(tmp_path: Path) -> None:
    """Events as API Gateway (REST and HTTP) and function URLs send them, through Mangum."""
    events = [ROOT / "tests" / "events" / f"{kind}_upscale.json" for kind in ("rest", "http", "function_url")]
    code = f"""
import json, sys, threading, handler.api
[thread] = [thread for thread in threading.enumerate() if thread.name == "warm"]
thread.join()
from core.engine import load
warm = [name for name, _, _ in load._warm]
class Context: aws_request_id = "the-id-of-lambda"
answers = [handler.api.handler(json.load(open(path)), Context()) for path in {[str(path) for path in events]}]
print(json.dumps([warm, answers]))
"""
    warm, answers = in_new_process(code, tmp_path, **LAMBDA)
    assert warm == ["photo-x2"]
    for answer in answers:
        headers = {name: values[0] for name, values in answer.get("multiValueHeaders", {}).items()}
        headers |= answer.get("headers", {})
        assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, True)
        assert Image.open(io.BytesIO(base64.b64decode(answer["body"]))).size == (32, 24)
        assert headers["x-request-id"] == "the-id-of-lambda"
        assert headers["content-type"] == "image/png"


def test_options_of_a_job_are_those_of_the_query() -> None:
    """What is kept in a job document is read back as what was asked for."""
    settings = Settings()
    asked = {"scale": "2.5", "format": "webp", "quality": "80", "exact": "true"}
    kept = options.RequestOptions.model_validate(asked).model_dump(exclude_none=True)
    assert options.parse(json.loads(json.dumps(kept)), settings) == options.parse(asked, settings)
    assert replace(options.parse(kept, settings), scale=2) != options.parse(asked, settings)
