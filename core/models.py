"""Models by name: where each comes from, its limits as data, and the chain of fallbacks.

Nothing here imports torch: an estimate or a list of models needs only these numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from core import hub
from core.errors import ModelError
from core.networks import checkpoints
from core.networks.compact_config import CompactConfig
from core.networks.recognise import Config as CommunityConfig
from core.networks.recognise import recognise
from core.networks.rrdbnet_config import RRDBNetConfig
from core.networks.span_config import SPANConfig
from core.networks.swin2sr_config import Swin2SRConfig

WEIGHTS = Path(__file__).parent / "weights"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
#: The same network exported (`training.onnx_file`): beside the weights of the embedded models, for CPUs.
ONNX_FILE = "model.onnx"

#: What to do about a model where PyTorch is absent.
INSTALL_TORCH = "this model needs PyTorch, which is not installed: pip install 'serverless-upscaler[torch]'"

Kind = Literal["compact", "swin2sr", "rrdbnet", "srvgg", "span", "lanczos"]


@dataclass(frozen=True)
class ModelSpec:
    """What is declared of a model; tests prove each number.

    Attributes:
        name: as asked for.
        kind: the network in this package that runs it.
        source: a directory, a file, or a hub id.
        scale: factor of one pass; 1 restores without enlarging.
        window: grid in input pixels that tile origins and sizes keep to.
        receptive_field: input pixels on each side that can influence an output pixel.
        halo: context for tiles unless `exact` asks for the whole receptive field.
        tile: side of what is upscaled at once, halo not counted, in input pixels.
        operations: floating-point operations for each input pixel (a multiply-add counts two).
        tile_bytes: memory that a tile takes for each of its pixels, halo included, in fp32.
        about: one line for people.
        licence: as its file or the one beside it says; empty when neither does.
        precisions: what it may compute in beside fp32, which one is taken goes by the machine.
    """

    name: str
    kind: Kind
    source: str
    scale: int
    window: int
    receptive_field: int
    halo: int
    tile: int
    operations: float
    tile_bytes: int
    about: str = ""
    licence: str = ""
    precisions: tuple[str, ...] = ("bf16",)


#: What a tile of Swin2SR may take. The larger, the less its halo costs: sides of 480 took 28 % less time than of 160.
_TILE_BYTES = 600_000_000
#: Halo of RRDBNet, in pixels after an unshuffling, unless all of its receptive field (349 px at 23 blocks) is asked
#: for. Against the untiled picture 66 dB were measured with Real-ESRGAN x4plus, at most 1.2 grey levels, and 88 dB with
#: its anime 6B. With 16 px it was 39 and 41 dB, 33 and 25 grey levels: seams that can be seen.
_RRDBNET_HALO = 48
#: Networks as people call them.
_NETWORKS = {"rrdbnet": "ESRGAN (RRDBNet)", "srvgg": "Compact (SRVGGNetCompact)", "span": "SPAN"}
#: Halo of Swin2SR unless all of the receptive field is asked for: 72 dB against the untiled picture were measured with
#: the lightweight checkpoint, at most two grey levels.
_SWIN2SR_HALO = 16


def spec_from_config(
    name: str, source: str, config: CompactConfig | Swin2SRConfig | CommunityConfig, about: str = ""
) -> ModelSpec:
    """Derive what is declared of a model from its configuration.

    Args:
        name: as it will be asked for.
        source: a directory, or a hub id.
        config: what its config.json says, or what was recognised in its weights.
        about: one line for people.

    Returns:
        The specification.
    """
    kind: Kind
    field, scale = config.receptive_field, config.scale
    if isinstance(config, CompactConfig):
        kind, halo, window = "compact", field, 1
        # Fits to measurements of ONNX Runtime: a few layers' features, and the result with its limits. OpenVINO takes
        # no less for narrower layers.
        tile_bytes, tile = 18 * max(config.width, 64) + 40 * scale**2, 2048 // scale
    elif not isinstance(config, Swin2SRConfig):
        return _community_spec(name, source, config, about)
    else:
        kind, halo, window = "swin2sr", _SWIN2SR_HALO, config.window
        # Fits to measurements of five networks: activations, and the wide ones behind most upsamplers.
        wide = config.upsampler != "pixelshuffledirect"
        tile_bytes = 50 * config.embed_dim + 400 * scale**2 * wide
        tile = max(64, math.isqrt(_TILE_BYTES // tile_bytes) - 2 * halo) // window * window
    return ModelSpec(
        name=name,
        kind=kind,
        source=source,
        scale=scale,
        window=window,
        receptive_field=field,
        halo=halo,
        tile=tile,
        operations=config.operations_per_pixel,
        tile_bytes=tile_bytes,
        about=about,
    )


def _community_spec(name: str, source: str, config: CommunityConfig, about: str) -> ModelSpec:
    field, width = config.receptive_field, config.width
    kind: Kind
    if isinstance(config, RRDBNetConfig):
        # The dense blocks, and what is enlarged, which is all that is at the result's size.
        kind, halo = "rrdbnet", min(field, _RRDBNET_HALO * config.unshuffle)
        tile_bytes = (40 * width + 32 * config.growth) // config.unshuffle**2 + 24 * config.scale**2
    else:
        kind, halo = ("span" if isinstance(config, SPANConfig) else "srvgg"), field
        tile_bytes = (60 if kind == "span" else 16) * width + 48 * config.scale**2
    tile = max(64, math.isqrt(_TILE_BYTES // tile_bytes) - 2 * halo) // config.window * config.window
    return ModelSpec(
        name=name,
        kind=kind,
        source=source,
        scale=config.scale,
        window=config.window,
        receptive_field=field,
        halo=halo,
        tile=tile,
        operations=config.operations_per_pixel,
        tile_bytes=tile_bytes,
        about=about or f"{_NETWORKS[kind]}, {config.width} channels",
        precisions=("bf16", "fp16"),
    )


def _swin2sr(**changes: Any) -> Swin2SRConfig:
    classical = {
        "embed_dim": 180,
        "depths": [6] * 6,
        "num_heads": [6] * 6,
        "window_size": 8,
        "mlp_ratio": 2.0,
        "upscale": 2,
        "upsampler": "pixelshuffle",
        "resi_connection": "1conv",
    }
    return Swin2SRConfig.from_dict(classical | changes)


#: Published checkpoints whose numbers are known before anything is downloaded.
_PUBLISHED = (
    (
        "swin2sr-lightweight-x2",
        "caidas/swin2SR-lightweight-x2-64",
        _swin2sr(embed_dim=60, depths=[6] * 4, num_heads=[6] * 4, upsampler="pixelshuffledirect"),
        "1 M parameters, clean pictures",
    ),
    ("swin2sr-classical-x2", "caidas/swin2SR-classical-sr-x2-64", _swin2sr(), "12 M parameters, clean pictures"),
    (
        "swin2sr-classical-x4",
        "caidas/swin2SR-classical-sr-x4-64",
        _swin2sr(upscale=4),
        "12 M parameters, clean pictures",
    ),
    (
        "swin2sr-realworld-x4",
        "caidas/swin2SR-realworld-sr-x4-64-bsrgan-psnr",
        _swin2sr(upscale=4, upsampler="nearest+conv"),
        "12 M parameters, pictures with unknown damage",
    ),
    (
        "swin2sr-compressed-x4",
        "caidas/swin2SR-compressed-sr-x4-48",
        _swin2sr(upscale=4, upsampler="pixelshuffle_aux"),
        "12 M parameters, strongly compressed pictures",
    ),
)

LANCZOS = ModelSpec(
    "lanczos", "lanczos", "", 1, 1, 3, 3, 1024, 0.0, 0, "no network: resampled, and the last step of the fallback chain"
)


def read_config(directory: Path) -> CompactConfig | Swin2SRConfig:
    """Read the configuration in a model directory.

    Args:
        directory: with a config.json.

    Returns:
        The configuration of one of the two networks.

    Raises:
        ModelError: no config.json, not JSON, or a network that this package does not run.
    """
    try:
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"no readable config.json in {directory}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"config.json in {directory} is not JSON: {error}") from error
    if not isinstance(raw, Mapping):
        raise ModelError(f"config.json in {directory} is not a JSON object")
    if raw.get("model_type") == "compact":
        return CompactConfig.from_dict(raw)
    if raw.get("model_type", "swin2sr") == "swin2sr":
        return Swin2SRConfig.from_dict(raw)
    raise ModelError(f"{directory} holds a {raw.get('model_type')!r} network; this runs 'swin2sr' and 'compact'")


#: What the embedded models are for, by the first word of their names.
_MADE_FOR = {
    "compact": "clean pictures",
    "photo": "JPEG pictures",
    "detail": "crisper, and less true: never taken unless it is asked for",
}


def _known() -> dict[str, ModelSpec]:
    known = {}
    for directory in sorted(WEIGHTS.iterdir()):
        if (directory / "config.json").is_file():
            about = f"embedded, needs no download; {_MADE_FOR[directory.name.partition('-')[0]]}"
            spec = spec_from_config(directory.name, str(directory), read_config(directory), about)
            known[directory.name] = replace(spec, licence="MIT")
    for name, source, config, about in _PUBLISHED:
        known[name] = replace(spec_from_config(name, source, config, about), licence="Apache-2.0")
    return known


MODELS: dict[str, ModelSpec] = _known()
#: After the model that was asked for, and before the embedded one; each step down is reported to the caller.
FALLBACKS: tuple[str, ...] = ("caidas/swin2SR-classical-sr-x2-64", "microsoft/swin2SR-classical-sr-x2-48")


def embedded(wanted: float, format: str) -> str:
    """Choose the embedded model.

    Networks that saw only clean pictures sharpen JPEG's blocks along with the rest; the photo networks did not do so
    on any quality from 50 to 90, and lose 0.3 dB on clean pictures (`make quality`). Beyond 4, three times by three
    measured as good as two by two by two, and takes less time.

    Args:
        wanted: how many times as large the picture shall become.
        format: of the picture, one of `READ_FORMATS`.

    Returns:
        A name in `MODELS`.
    """
    if format == "jpeg":
        return "photo-x4" if 2 < wanted <= 4 else "photo-x2"
    if wanted <= 2:
        return "compact-x2"
    return "compact-x4" if 3 < wanted <= 4 else "compact-x3"


def fallback_chain(name: str | None, wanted: float = 2.0, format: str = "png") -> tuple[str, ...]:
    """List the names to try in order; when all fail, Lanczos is left.

    An embedded model is its own chain: there is nothing to download that could be better at being there. A model that
    restores without enlarging is, too: nothing that enlarges could stand in for it.

    Args:
        name: of the model asked for; None takes the embedded one for such pictures.
        wanted: how many times as large the picture shall become.
        format: of the picture, one of `READ_FORMATS`.

    Returns:
        The model asked for, then others that may replace it; an embedded one last, unless `wanted` is 1.
    """
    if name == LANCZOS.name:
        return (name,)
    last = embedded(wanted, format)
    if name is None:
        return (last,)
    if wanted == 1:
        return (name,)
    if name in MODELS and MODELS[name].kind == "compact":
        return (name,) if name == last else (name, last)
    asked = MODELS[name].source if name in MODELS else name
    return (name, *(step for step in FALLBACKS if step not in (name, asked)), last)


def is_here(name: str) -> bool:
    """Whether a model needs no download.

    Args:
        name: one of `MODELS`, or a hub id.
    """
    source = MODELS[name].source if name in MODELS else name
    if Path(source).is_absolute():  # embedded
        return True
    try:
        return hub.is_cached(source, ("config.json",), WEIGHT_FILES)
    except ImportError:
        return False


def spec_of(name: str) -> ModelSpec:
    """Look up the numbers of a model, without loading its weights.

    Args:
        name: one of `MODELS`, "lanczos", a directory, a file of weights, a hub id (its config.json is fetched when not
            cached), or a file of a hub repository (fetched whole).

    Returns:
        The specification.

    Raises:
        ModelError: there is no such model, or not one that this package runs.
    """
    if name == LANCZOS.name:
        return LANCZOS
    if name in MODELS:
        return MODELS[name]
    for known in MODELS.values():
        if known.source == name:
            return known
    if name.endswith(checkpoints.SUFFIXES):
        return _spec_of_file(name, _checkpoint(name))
    directory = Path(name) if Path(name).is_dir() else _snapshot(name, ("config.json",))
    return spec_from_config(name, name, read_config(directory))


def fetch(spec: ModelSpec) -> Path:
    """Find a model's files; a hub id is downloaded unless it is in the cache.

    Args:
        spec: from `spec_of`.

    Returns:
        The file of weights of a network that was recognised in it; of others the directory with config.json and
        weights.

    Raises:
        ModelError: the hub does not answer, does not know the id, or the directory holds no weights.
    """
    if spec.source.endswith(checkpoints.SUFFIXES):
        return _checkpoint(spec.source)
    directory = Path(spec.source)
    if not directory.is_dir():
        directory = _snapshot(spec.source, ("config.json",), WEIGHT_FILES)
    if not any((directory / name).is_file() for name in WEIGHT_FILES):
        raise ModelError(f"no {' or '.join(WEIGHT_FILES)} in {directory}")
    return directory


def _checkpoint(name: str) -> Path:
    """The file of weights that a path, or a file of a hub repository, names."""
    path = Path(name)
    if path.is_file() or not hub.is_file_name(name):
        return path  # reading it says what is wrong with it
    try:
        return hub.fetch_file(name)
    except ImportError as error:
        raise ModelError(INSTALL_TORCH) from error


def _spec_of_file(name: str, file: Path) -> ModelSpec:
    header = checkpoints.read_header(file)
    try:
        spec = spec_from_config(name, name, recognise(header.shapes))
    except ModelError as error:
        raise ModelError(f"{file.name}: {error}") from error
    return replace(spec, licence=header.licence or _licence_beside(file))


def _licence_beside(file: Path) -> str:
    """What the JSON file of the same name says, as OpenModelDB describes its models."""
    try:
        return str(json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["license"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _snapshot(hub_id: str, wanted: tuple[str, ...], weights: tuple[str, ...] = ()) -> Path:
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        names = ", ".join(MODELS)
        raise ModelError(
            f"no model {hub_id!r}: give one of {names}, a hub id such as owner/name, a file "
            f"({', '.join(checkpoints.SUFFIXES)}), or a directory"
        )
    try:
        return hub.fetch_folder(hub_id, wanted, weights)
    except ImportError as error:
        raise ModelError(INSTALL_TORCH) from error
