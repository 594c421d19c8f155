"""Memory of a process that goes on working."""

from __future__ import annotations

import platform
import re
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


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_pictures_of_many_sizes_leave_nothing_behind() -> None:
    """Freed memory in holes that fit no later picture came to 20 MB for each new size."""
    command = [sys.executable, "-c", MANY_SIZES]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert float(told) < 60  # MiB


ONE_HEAP = """
import ctypes, sys, tempfile, threading
from core.engine import allocator

libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
if sys.argv[1] == "shared":
    allocator.share_heap()

libc.free(libc.malloc(30 << 20))
libc.malloc(20 << 20)  # smaller than one that was freed
together = threading.Barrier(3)

def allocate():
    libc.malloc(5000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile("r+b") as file:
    stream = libc.fdopen(file.fileno(), b"w")
    libc.malloc_info(0, stream)
    libc.fflush(stream)
    print(open(file.name).read())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this sets glibc's allocator")
def test_threads_share_a_heap_without_large_blocks() -> None:
    """Without it there is a heap for each thread, and large blocks come from there once one was freed."""

    def heaps_and_mapped(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", ONE_HEAP, how]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        [mapped] = re.findall(r'<total type="mmap" count="\d+" size="(\d+)"/>', told)
        return told.count("<heap nr="), int(mapped)

    heaps, mapped = heaps_and_mapped("shared")
    assert heaps == 1
    assert mapped >= 20 << 20
    heaps, mapped = heaps_and_mapped("as it is")
    assert heaps > 1
    assert mapped < 20 << 20
