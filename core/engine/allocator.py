"""glibc's allocator, set as networks need it. Elsewhere nothing happens, and work is only slower or larger."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def _call(name: str, *values: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), name)(*values)


def share_heap() -> None:
    """Set up a program that works on one picture at a time: its memory must not grow with the picture.

    Bands are made by one thread and freed by another. glibc gives each thread a heap, in which what others have freed
    is no room; and it raises the size from which blocks are taken from the kernel with each such block that is freed,
    up to 32 MiB, so that bands of 27 MB come from there at first and from the heap, which they tear up, later on. So
    here is one heap for all, and a size that stays. (With 1 MB in place of 8 PNG to PNG takes 20 MB less and a fifth
    more time: the kernel clears each band's pages again.) To be called before there are threads.
    """
    _call("mallopt", _M_ARENA_MAX, 1)
    _call("mallopt", _M_MMAP_THRESHOLD, 8 << 20)
    _call("mallopt", _M_TRIM_THRESHOLD, 32 << 20)


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
