"""How fast this machine is: operations a second, learned from real work and kept in the user's cache directory.

A rate belongs to a machine, a model, a device and a precision. The engine learns rates and estimates divide by them,
so this lies below both.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from core.engine.processors import granted_threads
from core.models import ModelSpec

#: From this much on, a change is worth writing down.
_NOTABLE_CHANGE = 0.1

_measured: dict[str, float] = {}  # by `_key`; what is on disk, and what this process has learned


def known_rate(spec: ModelSpec, device: str, *, deep: bool = False) -> float | None:
    """Look up what was measured on this machine before.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        deep: for pictures of more than eight bits, which are computed in fp32.

    Returns:
        Operations a second, or None when nothing was measured yet.
    """
    if not _measured:
        try:
            kept = json.loads(_cache_file().read_text(encoding="utf-8"))
            _measured.update({key: float(value) for key, value in kept.items() if float(value) > 0})
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # nothing measured yet, or a cache that somebody damaged: it is measured anew
    return _measured.get(_key(spec, device, deep))


def keep_rate(spec: ModelSpec, device: str, rate: float, *, deep: bool = False) -> None:
    """Remember a measured rate for this process, and on disk where that can be written.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        rate: operations a second.
        deep: as for `known_rate`.
    """
    known_rate(spec, device)  # reads what is on disk first, so that it is not lost
    _measured[_key(spec, device, deep)] = rate
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_measured, indent=1), encoding="utf-8")
        part.replace(file)
    except OSError:
        pass  # a read-only machine measures once per process


def learn_rate(spec: ModelSpec, device: str, rate: float, *, deep: bool = False) -> None:
    """Move the known rate towards one seen in real work: machines are busy or idle by turns.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        rate: operations a second.
        deep: as for `known_rate`.
    """
    known = known_rate(spec, device, deep=deep)
    mixed = rate if known is None else (known + rate) / 2
    if known is None or abs(mixed / known - 1) > _NOTABLE_CHANGE:
        keep_rate(spec, device, mixed, deep=deep)


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serverless-upscaler" / "rates.json"


def _key(spec: ModelSpec, device: str, deep: bool) -> str:
    precision = " fp32" if deep else ""
    cpu = f"{platform.machine()} {platform.processor()} x{granted_threads()}"
    return f"{cpu} {device} {spec.name} {spec.operations:.0f}{precision}"
