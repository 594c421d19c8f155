"""What tests of the engine share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.engine import load
from core.engine.load import Model
from tests.unit.engine import small


@pytest.fixture(autouse=True)
def _no_warm_model() -> Iterator[None]:
    """Each test starts cold: a model keeps what it learned about memory."""
    load._warm.clear()
    yield
    load._warm.clear()


@pytest.fixture(scope="session")
def small_swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory with random weights, as transformers writes it."""
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("swin2sr")
    net = Swin2SRForImageSuperResolution(Swin2SRConfig(**small.SMALL_SWIN2SR))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(small.SMALL_SWIN2SR))
    return directory


@pytest.fixture
def small_compact() -> Iterator[Model]:
    """A network like the embedded one that takes milliseconds, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would only wait for each other
    yield small.compact()
    torch.set_num_threads(threads)
