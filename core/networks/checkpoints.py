"""Checkpoint files that others made: what they hold is read without torch, and without running anything in them.

A .pth is a pickle, and a pickle is a program. `read_header` goes through it with an interpreter that knows tensors,
numbers and containers and nothing else, and checks that what it says of sizes is true. So damage, code, and files that
unpack to more than they are (zip bombs, tensors that repeat one number) are found before a tensor is made.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

#: Endings of files that hold one model.
SUFFIXES = (".safetensors", ".pth", ".pt")
#: The largest published model of a network that runs here has 67 MB; a whole training state, four times as much.
MAX_BYTES = 512 * 2**20
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_TENSORS = 20_000

#: Bytes of an element. Those of PyTorch's storages, and those of safetensors.
_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
#: Where training programs put the weights inside of what they save; the averaged ones first, as they are better.
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "net_g", "model", "net")
#: What wrappers around a network put before each name.
_PREFIXES = ("module.", "netG.", "_orig_mod.")
#: First numbers of a .pth from before PyTorch 1.6, which is a row of pickles (torch.serialization).
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds.

    Attributes:
        shapes: of each tensor, by its name, wrappers and prefixes taken off.
        licence: as its file says; empty when it does not.
    """

    shapes: dict[str, tuple[int, ...]]
    licence: str = ""


def read_header(file: Path) -> Header:
    """Names and shapes of a checkpoint's tensors.

    Raises:
        ModelError: no such file, damaged, too large, not weights alone, or larger unpacked than packed.
    """
    try:
        size = file.stat().st_size
        check_size(size, file.name)
        with file.open("rb") as stream:
            if file.suffix == ".safetensors":
                return _safetensors(stream, size)
            # By its first bytes: the library would also find a zip file behind something else.
            tree = _zipped(stream, size) if stream.read(2) == b"PK" else _legacy(stream, size)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from error
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, ArithmeticError, RecursionError,
            NotImplementedError, MemoryError, pickle.UnpicklingError, zipfile.BadZipFile) as error:  # fmt: skip
        raise ModelError(f"{file} is damaged, or no checkpoint: {_one_line(error)}") from error
    return Header({name: tensor.shape for name, tensor in _weights(tree, _Shape, file).items()})


def check_size(size: int, name: str) -> None:
    """Refuse a file by its size in bytes, before it is fetched or opened.

    Raises:
        ModelError: larger than a model of a network that runs here can be.
    """
    if size > MAX_BYTES:
        raise ModelError(
            f"{name} has {size / 2**20:,.0f} MiB, and models of at most {MAX_BYTES >> 20} MiB are read: "
            "a training state holds more than its weights, save those alone"
        )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors on the CPU, floating-point ones in fp32, under the names of `read_header`.

    Raises:
        ModelError: as `read_header`, which is called first.
    """
    read_header(file)
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            tree: object = load_file(file)
        else:
            tree = torch.load(file, map_location="cpu", weights_only=True)  # never runs code from the file
    except Exception as error:  # safetensors, pickle and zip each raise their own on a damaged file
        raise ModelError(f"{file} is damaged: {_one_line(error)}") from error
    weights = _weights(tree, torch.Tensor, file)
    return {name: value.detach().float() if value.is_floating_point() else value for name, value in weights.items()}


def _weights(tree: object, leaf: type[Any], file: Path) -> dict[str, Any]:
    """The tensors by name, out of what a training program saved around them."""
    while isinstance(tree, Mapping):
        inner = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), None)
        if inner is None:
            break
        tree = inner
    tensors = {}
    if isinstance(tree, Mapping):
        tensors = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, leaf)}
    if not tensors:
        raise ModelError(f"{file} holds no weights by name: save the network's state_dict")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _safetensors(stream: BinaryIO, size: int) -> Header:
    """A length of eight bytes, JSON with shapes and places, and the numbers (huggingface.co/docs/safetensors)."""
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
        raise ModelError("it is damaged or incomplete: fetch it again")
    entries: dict[str, Any] = json.loads(stream.read(length))
    about = entries.pop("__metadata__", {})
    shapes, end = {}, 0
    for name, entry in entries.items():
        shape = tuple(int(side) for side in entry["shape"])
        first, last = entry["data_offsets"]
        if min(shape, default=0) < 0 or last - first != math.prod(shape) * _DTYPES[entry["dtype"]]:
            raise ModelError(f"its tensor {name} is not as large as its shape says: fetch it again")
        shapes[name], end = shape, max(end, last)
    if 8 + length + end != size:
        raise ModelError("it is damaged or incomplete: fetch it again")
    # modelspec is what OpenModelDB and others fill in (github.com/Stability-AI/ModelSpec).
    licence = str(about.get("modelspec.license") or about.get("license") or "")
    return Header(shapes, licence)


@dataclass(frozen=True)
class _Shape:
    """Stands for a tensor."""

    shape: tuple[int, ...]


@dataclass
class _Reader:
    """Collects what a pickle says of storages: bytes by key."""

    storages: dict[str, int] = field(default_factory=dict)

    def load(self, stream: BinaryIO) -> object:
        """One pickle."""
        return _Interpreter(stream, self.storages).load()


# In Python, not C: there, a few bytes can ask for a table of 2**32 entries, and get it (CPython #115952).
class _Interpreter(pickle._Unpickler):
    def __init__(self, stream: BinaryIO, storages: dict[str, int]) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages = storages

    def persistent_load(self, pid: Any) -> tuple[str, int, int]:
        """("storage", type, key, device, elements, ...) -> key, bytes of an element, elements."""
        kind, size, key, _, elements = pid[:5]
        if kind != "storage" or not isinstance(size, int) or not isinstance(elements, int) or elements < 0:
            raise ModelError("it refers to something that is not a tensor: save the weights alone")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), elements * size)
        return str(key), size, elements

    def find_class(self, module: str, name: str) -> Any:
        """The few names that weights need."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): tuple,
        }
        if (module, name) not in known:
            _refuse_code(f"{module}.{name}")
        return known[module, name]

    def get_extension(self, code: int) -> NoReturn:
        """Names by number, from a registry of the process: there are none."""
        _refuse_code(f"extension {code}")


def _refuse_code(name: str) -> NoReturn:
    raise ModelError(
        f"it needs code to be loaded ({name[:100]!r}), which is not run: save its state_dict alone, or as .safetensors"
    )


def _tensor(
    storage: tuple[str, int, int], offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _Shape:
    """As torch._utils._rebuild_tensor_v2; only a tensor that lies in its storage, each element once."""
    elements = storage[2]
    whole = all(isinstance(side, int) and side >= 0 for side in (*shape, *strides, offset))
    reach = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1 if all(shape) else 0
    if not whole or offset + reach > elements or math.prod(shape) > elements:
        raise ModelError("a tensor is larger than its data: the file is damaged")
    return _Shape(tuple(shape))


def _parameter(data: _Shape, *_: object) -> _Shape:
    return data


def _zipped(stream: BinaryIO, size: int) -> object:
    """The .pth of today: an uncompressed zip file with one pickle, and one member for each storage."""
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ModelError("two of its members have one name: the file is damaged")
        pickled = next((name for name in members if name.split("/")[1:] == ["data.pkl"]), None)
        if any("/code/" in name for name in members):
            _refuse_code("TorchScript")
        if pickled is None:
            raise ModelError("a zip file, but not one that PyTorch made")
        # PyTorch compresses nothing. What is not compressed, and lies apart, cannot be more than the file.
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in members.values())
        if packed or len(members) > _MAX_TENSORS or sum(info.file_size for info in members.values()) > size:
            raise ModelError("it unpacks to more than it is, and is not unpacked")
        if members[pickled].file_size > _MAX_HEADER_BYTES:
            raise ModelError("its list of tensors is too long")
        reader = _Reader()
        tree = reader.load(io.BytesIO(archive.read(pickled)))
        root = pickled.removesuffix("data.pkl")
        for key, count in reader.storages.items():
            info = members.get(f"{root}data/{key}")
            if info is None or info.file_size < count:
                raise ModelError("a tensor's data is missing: fetch it again")
        return tree


def _legacy(stream: BinaryIO, size: int) -> object:
    """The .pth from before PyTorch 1.6: pickles of a magic number, a version, a system, the tree; then the storages."""
    stream.seek(0)
    start, reader = io.BytesIO(stream.read(_MAX_HEADER_BYTES)), _Reader()
    if start.getvalue()[:1] != b"\x80":
        raise ModelError("neither a zip file nor a pickle: give a .safetensors or .pth file of weights")
    if reader.load(start) != _LEGACY_MAGIC:
        raise ModelError("a pickle, but not one that PyTorch made")
    reader.load(start)
    reader.load(start)
    tree = reader.load(start)
    if sum(reader.storages.values()) > size - start.tell():
        raise ModelError("tensors' data is missing: fetch it again")
    return tree
