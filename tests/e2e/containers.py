"""Images and containers of this machine's Docker engine."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

import core
from core.engine import onnx
from tests.e2e.emulator import ROOT

#: The local base's own wheels, see infra/local-base/build.sh.
TORCH_INDEX = "file:///wheels"
#: What Lambda allows less than Docker does.
CONFINED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]


def ran(command: Sequence[str], **variables: str) -> str:
    """Standard output of a command that must end well, in the repository."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def docker(*arguments: str) -> str:
    return ran(["docker", *arguments]).strip()


@contextmanager
def container(*arguments: str) -> Iterator[str]:
    """A container in the background, by its id; it is removed in the end."""
    id = docker("run", "--detach", *arguments)
    try:
        yield id
    finally:
        docker("rm", "--force", id)


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as found:
        return np.asarray(found)


def same(made: bytes, source: bytes) -> bool:
    """Whether a picture is what `core` makes of its source here in fp32, as the images without OpenVINO do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "multiplies_bf16", lambda: False)
        expected = core.upscale(source).data
    assert expected
    return np.array_equal(pixels(made), pixels(expected))
