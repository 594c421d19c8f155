"""A client that openapi-python-client makes of our description, against the running service."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.integration.web.support import PNG, ROOT, finished
from tests.servers import binary

PACKAGE = "upscaler_client"


@pytest.fixture(scope="module")
def generated(openapi: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the package lies in; the generator has nothing to complain of."""
    program = binary("openapi-python-client")
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(openapi))
    command = [program, "generate", "--path", "openapi.json", "--meta", "none", "--output-path", PACKAGE]
    command += ["--config", str(ROOT / "examples" / "openapi-python-client.yaml"), "--fail-on-warning"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def module(name: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_names_are_those_of_the_calls(generated: Path) -> None:
    """Whoever generates anew finds the same functions."""
    found = {path.stem for path in (generated / PACKAGE / "api").rglob("*.py")} - {"__init__"}
    assert found == {
        "cancel_archive", "cancel_job", "create_archive", "create_job", "create_job_with_id", "estimate", "get_archive",
        "get_job", "get_result", "health", "job_events", "list_jobs", "list_models", "preview_file", "preview_result",
        "ready", "retry_job", "upscale",
    }  # fmt: skip


def test_a_picture_is_upscaled_with_it(generated: Path, client: httpx.Client) -> None:
    models, types = module("models"), module("types")
    ours = module("client").Client(
        base_url=str(client.base_url), httpx_args={"trust_env": False}, raise_on_unexpected_status=True
    )
    upscale = module("api.upscale.upscale").sync_detailed
    with ours:
        form = models.UpscaleFilesBody(file=types.File(io.BytesIO(PNG), "photo.png", "image/png"), scale=3.0)
        answer = upscale(client=ours, body=form)
        assert answer.status_code == 200
        assert isinstance(answer.parsed, types.File)
        assert Image.open(answer.parsed.payload).size == (60, 36)
        refused = upscale(client=ours, body=form, scale=2.0)  # given twice
        assert isinstance(refused.parsed, models.Problem)
        assert refused.parsed.code == "bad_options"

        job = upscale(client=ours, body=form, prefer="respond-async").parsed
        assert isinstance(job, models.Job)
        finished(client, str(job.id))
        job = module("api.jobs.get_job").sync(job.id, client=ours)
        assert (job.state, job.output.width) == (models.State.SUCCEEDED, 60)
        assert module("api.jobs.list_jobs").sync(client=ours).jobs[0].id == job.id
        sides = models.EstimateRequest(width=512, height=512, options=models.RequestOptions(scale=2.0))
        assert module("api.upscale.estimate").sync(client=ours, body=sides).width == 1024
        assert "compact-x2" in [model.name for model in module("api.upscale.list_models").sync(client=ours)]
