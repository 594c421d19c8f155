"""Networks into memory: device and dtype, one warm model per process, and the walk down the fallback chain.

The embedded models run from their ONNX file on a CPU. PyTorch is imported for the others, and for a card, only.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from core import models
from core.engine import onnx
from core.engine.onnx import Network
from core.engine.processors import granted_threads
from core.errors import ModelError, OptionsError
from core.models import ModelSpec

_lock = threading.Lock()
_warm: dict[tuple[str, str, str], Model] = {}  # by name, device and dtype


@dataclass
class Model:
    """A network in memory.

    Attributes:
        spec: its declared numbers.
        net: (1, 3, h, w) float32 in [0, 1] to (1, 3, scale * h, scale * w) float32, not clipped.
        device: where it runs: "cpu" or "cuda".
        dtype: what it computes in: "float32" or "bfloat16".
        side: largest side of a region, halo included, that may be tried, in pixels; lowered when one did not fit.
        at_once: tiles to compute side by side: of an exported file at least 1, of other networks 0.
        notes: what had to be redone, one line each, newest last.
    """

    spec: ModelSpec
    net: Network
    device: str
    dtype: str
    side: int = 1 << 20
    at_once: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """The outcome of walking down the fallback chain.

    Attributes:
        model: the first that loaded, or None when only Lanczos is left.
        name: of that model, or "lanczos".
        degraded: True when it is not the one asked for.
        reason: why each earlier one failed, in one line.
        seconds: spent here; 0 when the model was warm.
    """

    model: Model | None
    name: str
    degraded: bool
    reason: str
    seconds: float


def has_torch() -> bool:
    """Whether PyTorch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def pick_device(wish: str) -> str:
    """Choose where to compute.

    Args:
        wish: "cpu", "cuda", or "auto": CUDA where there is a usable card, else the CPU.

    Returns:
        "cpu" or "cuda".

    Raises:
        OptionsError: "cuda" was asked for and there is none, or no PyTorch to use it.
    """
    # PyTorch takes a second to import: it is asked only where there may be a card.
    if wish == "cpu" or (wish == "auto" and not may_have_card()):
        return "cpu"
    if has_torch():
        from core.engine import pytorch

        if pytorch.has_card():
            return "cuda"
    if wish == "cuda":
        install = "" if has_torch() else "pip install 'serverless-upscaler[torch]' where there is one, or "
        raise OptionsError(f"no CUDA device that can be used on this machine: {install}use device auto or cpu")
    return "cpu"


def has_runtime(name: str) -> bool:
    """Whether what would run a model of that name is installed; whether there is one is not looked up."""
    known = name in models.MODELS or Path(name).is_dir()
    from_file = known and runs_from_file(models.spec_of(name), "cpu")
    return has_torch() or from_file or name == models.LANCZOS.name


def may_have_card() -> bool:
    """Whether there is PyTorch and a driver for CUDA; found out without either."""
    places = ("/dev/nvidiactl", "/dev/dxg")  # Linux, and Linux in Windows
    return has_torch() and (sys.platform == "win32" or any(Path(place).exists() for place in places))


def runs_from_file(spec: ModelSpec, device: str) -> bool:
    """Whether a model runs from an exported file there, and not in PyTorch."""
    return device == "cpu" and (Path(spec.source) / models.ONNX_FILE).is_file()


def tiles_at_once(spec: ModelSpec, device: str, dtype: str) -> int:
    """How many tiles of an exported file are computed side by side (see `core.engine.onnx`); 0 for other networks."""
    if not runs_from_file(spec, device):
        return 0
    return granted_threads() if dtype == "bfloat16" else 1


def pick_dtype(spec: ModelSpec, device: str) -> str:
    """Choose what to compute in.

    Args:
        spec: the model.
        device: "cpu" or "cuda".

    Returns:
        "bfloat16" where the hardware multiplies it natively, "float16" on older cards where that is safe for the model
        (Swin2SR overflows in it), else "float32".
    """
    if runs_from_file(spec, device):
        return "bfloat16" if onnx.multiplies_bf16() else "float32"
    from core.engine import pytorch

    if pytorch.multiplies_bf16(device):
        return "bfloat16"
    return "float16" if device == "cuda" and "fp16" in spec.precisions else "float32"


def open_network(spec: ModelSpec, device: str, dtype: str) -> Network:
    """Load a model's network.

    Args:
        spec: the model.
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16".

    Returns:
        The network, to be called by as many threads as `core.engine.processors.granted_threads`.

    Raises:
        ModelError: it cannot be found, fetched or loaded, or needs PyTorch where that is absent.
    """
    if runs_from_file(spec, device):
        return onnx.open_network(Path(spec.source) / models.ONNX_FILE, spec.scale, dtype, granted_threads())
    from core.engine import pytorch

    return pytorch.open_network(spec, models.fetch(spec), device, dtype)


def load(name: str, device: str, dtype: str | None = None) -> tuple[Model, float]:
    """Give a model by name. It stays in memory and is shared by concurrent calls.

    The embedded models may all stay, of the large ones only the last that was asked for.

    Args:
        name: as for `core.models.spec_of`.
        device: where it will run, "cpu" or "cuda".
        dtype: what it will compute in, "float32" or "bfloat16"; None takes `pick_dtype`.

    Returns:
        The model, and the seconds that loading took: 0 when it was there.

    Raises:
        ModelError: it cannot be found, fetched or loaded, or needs PyTorch where that is absent.
    """
    spec = models.spec_of(name)
    if not runs_from_file(spec, device) and has_torch():
        models.fetch(spec)  # not under the lock: a slow hub must not hold up those who want another model
    with _lock:  # a second caller waits for the first one's load and then finds it warm
        kept = _warmed(name, device, dtype) if dtype else None
        if kept:
            return kept, 0.0
        start = time.perf_counter()
        if not runs_from_file(spec, device) and not has_torch():
            raise ModelError(models.INSTALL_TORCH)
        dtype = dtype or pick_dtype(spec, device)
        kept = _warmed(name, device, dtype)
        if kept:
            return kept, 0.0
        model = _open_where_it_fits(spec, device, dtype)
        if spec.kind != "compact":  # the embedded ones are so small that they may stay side by side
            for other in [other for other, kept in _warm.items() if kept.spec.kind != "compact"]:
                del _warm[other]  # running calls keep their own reference until they end
        _warm[name, device, dtype] = model
        return model, time.perf_counter() - start


def _warmed(name: str, device: str, dtype: str) -> Model | None:
    """A model in memory, if it is still where it was asked for; a card that was full for a while is tried again."""
    kept = _warm.get((name, device, dtype))
    if kept is None or kept.device != device:
        return None
    if device == "cuda":
        kept.side = Model.side
    return kept


def _open_where_it_fits(spec: ModelSpec, device: str, dtype: str) -> Model:
    """The model on the device, or on the CPU where that one has no memory left, with a note."""
    notes = []
    try:
        net = open_network(spec, device, dtype)
    except Exception as error:
        if device == "cpu" or not is_out_of_memory(error):
            raise
        notes.append("out of memory on the GPU with the weights, went on on the CPU")
    if notes:  # outside of the handler, so that its traceback no longer holds what was on the card
        device, dtype = "cpu", dtype if dtype == "float32" else pick_dtype(spec, "cpu")
        net = open_network(spec, device, dtype)
    return Model(spec, net, device, dtype, at_once=tiles_at_once(spec, device, dtype), notes=notes)


def is_out_of_memory(error: BaseException) -> bool:
    """By its text, where it is not a MemoryError: PyTorch, ONNX Runtime and OpenVINO have classes of their own.

    cuDNN tries one algorithm after another, and when none finds the memory that it needs, PyTorch says of the last only
    that there was none ("GET was unable to find an engine to execute this computation"). cuBLAS and cuDNN say
    CUBLAS_STATUS_ALLOC_FAILED and CUDNN_STATUS_ALLOC_FAILED.
    """
    signs = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate", "failed to allocate")
    more = ("bad_alloc", "bad allocation", "status_alloc_failed", "unable to find an engine")
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in (*signs, *more))


def load_first(chain: tuple[str, ...], device: str) -> Loaded:
    """Walk down a fallback chain until a model loads.

    Args:
        chain: names, from `core.models.fallback_chain`.
        device: where the model will run, "cpu" or "cuda".

    Returns:
        The first that loaded, with the reason of each failed step; Lanczos when nothing did.
    """
    failures: dict[str, list[str]] = {}  # names by what was wrong: the same may be with several

    def reason() -> str:
        return "; ".join(f"{', '.join(names)}: {what}" for what, names in failures.items())

    for name in chain:
        if name == models.LANCZOS.name:  # asked for
            return Loaded(None, name, bool(failures), reason(), 0.0)
        try:
            model, seconds = load(name, device)
        except ModelError as error:
            failures.setdefault(str(error), []).append(name)
            continue
        return Loaded(model, name, bool(failures), reason(), seconds)
    return Loaded(None, models.LANCZOS.name, True, reason(), 0.0)
