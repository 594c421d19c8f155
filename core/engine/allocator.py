"""glibc's allocator, set as networks need it. Elsewhere nothing happens, and work is only slower or larger."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _call(name: str, *values: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), name)(*values)


def keep_freed() -> None:
    """Let glibc keep freed memory: handing every large tensor back to the kernel costs up to half of the time."""
    _call("mallopt", _M_MMAP_THRESHOLD, 32 << 20)
    _call("mallopt", _M_TRIM_THRESHOLD, 512 << 20)


def give_back() -> None:
    """Let glibc return freed memory to the kernel, once a picture is done.

    The kernels that oneDNN keeps for each size of tile lie between freed tensors, so that tensors of the next picture,
    of another size, find no room there: without this, 200 pictures of 50 sizes took 900 MB more.
    """
    _call("malloc_trim", 0)
