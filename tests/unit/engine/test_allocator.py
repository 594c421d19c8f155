"""Memory of a process that goes on working."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MANY_SIZES = """
import io
from pathlib import Path
from PIL import Image
import core

def resident():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024

for index in range(15):
    stream = io.BytesIO()
    Image.new("RGB", (160 + 2 * index, 130 + index)).save(stream, "PNG")
    core.upscale(stream.getvalue(), core.Options(device="cpu"))
    if index == 2:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_pictures_of_many_sizes_leave_nothing_behind() -> None:
    """Freed memory in holes that fit no later picture came to 20 MB for each new size."""
    command = [sys.executable, "-c", MANY_SIZES]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert float(told) < 60  # MiB
