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
#: How much one picture moves the average behind the steady rate, and how far that goes before the rate follows.
_STEADY_WEIGHT, _STEADY_BAND = 1 / 32, 1.5
_STEADY, _AVERAGE = " steady", " average"  # after a key

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
    return _read().get(_key(spec, device, deep))


def steady_rate(spec: ModelSpec, device: str, *, deep: bool = False) -> float | None:
    """Look up the rate for decisions that must not change with the machine's mood.

    It is what was measured first, until the average of some dozens of runs is another by half: a machine that is busy
    for a while is no slower machine, and what was decided for a picture is decided for the next one like it.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        deep: as for `known_rate`.

    Returns:
        Operations a second, or None when nothing was measured yet.
    """
    key = _key(spec, device, deep)
    return _read().get(key + _STEADY, _measured.get(key))


def _read() -> dict[str, float]:
    if not _measured:
        try:
            kept = json.loads(_cache_file().read_text(encoding="utf-8"))
            _measured.update({key: float(value) for key, value in kept.items() if float(value) > 0})
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # nothing measured yet, or a cache that somebody damaged: it is measured anew
    return _measured


def keep_rate(spec: ModelSpec, device: str, rate: float, *, deep: bool = False) -> None:
    """Remember a measured rate for this process, and on disk where that can be written.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        rate: operations a second.
        deep: as for `known_rate`.
    """
    key = _key(spec, device, deep)
    known = _read()  # what is on disk first, so that it is not lost
    known[key] = rate
    known.setdefault(key + _STEADY, rate)
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
    known, steady = known_rate(spec, device, deep=deep), steady_rate(spec, device, deep=deep)
    if known is None or steady is None:
        keep_rate(spec, device, rate, deep=deep)
        return
    key = _key(spec, device, deep)
    average = _measured.get(key + _AVERAGE, steady)
    # As a factor, and no more than tenfold: twice as fast outweighs half as fast, and no odd run outweighs all others.
    average *= min(10.0, max(0.1, rate / average)) ** _STEADY_WEIGHT
    _measured[key + _AVERAGE] = average
    moved = not 1 / _STEADY_BAND < average / steady < _STEADY_BAND
    _measured[key + _STEADY] = average if moved else steady
    mixed = (known + rate) / 2
    if moved or abs(mixed / known - 1) > _NOTABLE_CHANGE:
        keep_rate(spec, device, mixed, deep=deep)


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serverless-upscaler" / "rates.json"


def _key(spec: ModelSpec, device: str, deep: bool) -> str:
    precision = " fp32" if deep else ""
    cpu = f"{platform.machine()} {platform.processor()} x{granted_threads()}"
    return f"{cpu} {device} {spec.name} {spec.operations:.0f}{precision}"
