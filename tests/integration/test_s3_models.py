"""Models that lie in S3."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image, ImageChops, ImageStat

import core
from core import models
from core.networks import checkpoints
from handler import jobs, options, routing, s3_models, worker
from handler.jobs import Backend, Job, State
from handler.settings import Settings
from handler.storage import S3Storage, Storage
from handler.web.app import build
from tests.integration.work import AT_ONCE, Failing, configured, picture, queued, result
from tests.unit.networks.community import CASES, random_like, shapes_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return configured(tmp_path, lease_seconds=30)


def run(storage: Storage | Failing, settings: Settings, job: Job, **named: Any) -> Job | None:
    named = {"backend": Backend.LAMBDA, "retry_delays": AT_ONCE, **named}
    return worker.run_job(cast(Storage, storage), settings, job.id, worker="test", **named)


def ended(storage: Storage | Failing, settings: Settings, job: Job, **named: Any) -> Job:
    done = run(storage, settings, job, **named)
    assert done is not None
    assert done == jobs.get(cast(Storage, storage), job.id)
    return done


@pytest.fixture
def model_bucket(moto_bucket: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[S3Storage, Callable[[], int]]:
    """A bucket with the embedded model under models/mine; and how many objects were downloaded."""
    endpoint, bucket = moto_bucket
    store = S3Storage(bucket, endpoint_url=endpoint)
    for path in (models.WEIGHTS / models.embedded(2, "png")).iterdir():
        if path.suffix in (".json", ".safetensors"):
            store.upload(path, f"models/mine/{path.name}", "application/octet-stream")
    count = 0
    download = S3Storage.download

    def counted(self: S3Storage, key: str, path: Path) -> None:
        nonlocal count
        count += key.startswith("models/")
        download(self, key, path)

    monkeypatch.setattr(S3Storage, "download", counted)
    monkeypatch.setattr(s3_models, "_fetched", {})
    return store, lambda: count


def test_a_model_in_s3_is_fetched_once_and_used(
    model_bucket: tuple[S3Storage, Callable[[], int]], moto: str, tmp_path: Path
) -> None:
    store, downloads = model_bucket
    settings = configured(tmp_path, bucket=store.bucket, s3_endpoint_url=moto)
    name = f"s3://{store.bucket}/models/mine"
    done = [ended(store, settings, queued(store, picture(), model=name)) for _ in range(2)]
    embedded = ended(store, settings, queued(store, picture()))
    assert [(job.model_used, job.degraded, job.error) for job in done] == [(name, False, None)] * 2
    assert result(store, done[0]) == result(store, done[1])
    # The embedded one runs from its ONNX file in fp32, the one from S3 in PyTorch, perhaps in bf16: on noise, as here,
    # two grey levels apart on average.
    one, other = (Image.open(io.BytesIO(result(store, job))) for job in (done[0], embedded))
    assert max(ImageStat.Stat(ImageChops.difference(one, other)).mean) < 4
    assert downloads() == 2  # config.json and the weights


@pytest.mark.parametrize("damage", ["gone", "no weights", "cut", "no config", "nonsense"])
def test_a_model_in_s3_that_does_not_work_is_a_step_down_and_told(
    model_bucket: tuple[S3Storage, Callable[[], int]],
    moto: str,
    tmp_path: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "FALLBACKS", ())  # the others would be asked for at the hub
    store, _ = model_bucket
    settings = configured(tmp_path, bucket=store.bucket, s3_endpoint_url=moto)
    name = f"s3://{store.bucket}/models/{damage.replace(' ', '-')}"
    prefix = name.partition("/models/")[2]
    weights = store.get("models/mine/model.safetensors")[0]
    config = store.get("models/mine/config.json")[0]
    if damage not in ("gone", "no config"):
        text = b"{}" if damage == "nonsense" else config
        store.put(f"models/{prefix}/config.json", text, "application/json")
    if damage not in ("gone", "no weights"):
        store.put(f"models/{prefix}/model.safetensors", weights[:-100] if damage == "cut" else weights, "a/b")
    done = ended(store, settings, queued(store, picture(), model=name))
    assert (done.state, done.model_used, done.degraded) == (State.SUCCEEDED, models.embedded(2, "png"), True)
    assert name in done.reason
    assert tempfile.gettempdir() not in done.reason


def test_a_fetched_model_is_gone_with_its_process(
    model_bucket: tuple[S3Storage, Callable[[], int]], moto: str, scratch: Path
) -> None:
    store, _ = model_bucket
    code = (
        "import sys; from handler import s3_models; from handler.settings import get_settings;"
        "print(s3_models.fetch(sys.argv[1], get_settings()))"
    )
    environment = {**os.environ, "TMPDIR": str(scratch), "BUCKET": store.bucket, "S3_ENDPOINT_URL": moto}
    name = f"s3://{store.bucket}/models/mine/"
    found = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).parent == scratch
    assert not list(scratch.iterdir())


@pytest.fixture
def file_bucket(moto_bucket: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """A bucket with models of one file each."""
    monkeypatch.setattr(models, "FALLBACKS", ())
    monkeypatch.setattr(s3_models, "_fetched", {})
    endpoint, bucket = moto_bucket
    store = S3Storage(bucket, endpoint_url=endpoint)
    for name in ("compact-x4", "compact-x1"):
        case = next(case for case in CASES if case.name == name)
        torch.save({"params": random_like(shapes_of(case))}, tmp_path / "model.pth")
        store.upload(tmp_path / "model.pth", f"models/4x {name}.pth", "application/octet-stream")
    store.put("models/page.pth", b"<!DOCTYPE html>", "text/html")
    return store


@pytest.mark.parametrize("name", ["s3://{}/models/4x compact-x4.pth", "s3://{}/models/4x compact-x4", "4x compact-x4"])
def test_a_model_of_one_file(name: str, file_bucket: S3Storage, moto: str, tmp_path: Path) -> None:
    where = f"s3://{file_bucket.bucket}/models"
    settings = configured(tmp_path, bucket=file_bucket.bucket, s3_endpoint_url=moto, models_dir=where)
    name = name.format(file_bucket.bucket)
    done = ended(file_bucket, settings, queued(file_bucket, picture(), model=name, scale=4))
    assert (done.model_used, done.degraded, done.error) == (name, False, None)


def test_a_model_that_restores(file_bucket: S3Storage, moto: str, tmp_path: Path) -> None:
    settings = configured(tmp_path, bucket=file_bucket.bucket, s3_endpoint_url=moto)
    name = f"s3://{file_bucket.bucket}/models/4x compact-x1.pth"
    done = ended(file_bucket, settings, queued(file_bucket, picture(), model=name))
    assert (done.model_used, done.degraded) == (name, False)
    with Image.open(io.BytesIO(result(file_bucket, done))) as made, Image.open(io.BytesIO(picture())) as given:
        assert made.size == given.size


def test_a_file_that_does_not_work_is_a_step_down(
    file_bucket: S3Storage, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(tmp_path, bucket=file_bucket.bucket, s3_endpoint_url=moto)
    for name, why in (("page.pth", "neither a zip file nor a pickle"), ("gone.pth", "there is no model")):
        uri = f"s3://{file_bucket.bucket}/models/{name}"
        done = ended(file_bucket, settings, queued(file_bucket, picture(), model=uri))
        assert (done.model_used, done.degraded) == (models.embedded(2, "png"), True)
        assert why in done.reason
        assert tempfile.gettempdir() not in done.reason
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 1000)
    uri = f"s3://{file_bucket.bucket}/models/4x compact-x4.pth"
    done = ended(file_bucket, settings, queued(file_bucket, picture(), model=uri))
    assert done.degraded
    assert "MiB are read" in done.reason


def test_the_folder_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    torch.save(random_like(shapes_of(CASES[8])), tmp_path / "models" / "1x-mine.pth")
    (tmp_path / "models" / "page.pth").write_text("no model")
    settings = configured(tmp_path, models_dir=str(tmp_path / "models"))
    asked = options.parse({"model": "1x-mine"}, settings)
    plan = routing.plan(core.Probe("png", 40, 30, 0, "RGB"), asked, settings)
    assert (plan.model, plan.width, plan.height) == ("1x-mine", 40, 30)
    chosen, missing = s3_models.with_local_model(asked, settings)
    assert (chosen.model, chosen.scale, missing) == (str(tmp_path / "models" / "1x-mine.pth"), 1, "")
    for name in ("../models/1x-mine", "2x-mine", str(tmp_path / "models" / "1x-mine.pth"), "page.txt"):
        with pytest.raises(core.OptionsError, match="there is no model"):
            options.parse({"model": name}, settings)
    with TestClient(build(settings)) as client:
        listed = {model["name"]: model for model in client.get("/models").json()}
    assert (listed["1x-mine"]["scale"], listed["1x-mine"]["kind"]) == (1, "srvgg")
    assert "page" not in listed
