"""Models for the image: fetch them into a folder, and prove that our forward is that of transformers.

    python infra/check_models.py fetch FOLDER MODEL...   hub ids, or folders or files of the current directory
    python infra/check_models.py check FOLDER            every model in it; exit code 1 where one differs

Steps of the Dockerfile: what fails here does not get into an image. A folder or a file ends up as FOLDER/<its name>, a
hub id in FOLDER/hub, which is a cache of huggingface_hub.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
#: Files of weights whose network is recognised in them.
FILE_ENDINGS = (".safetensors", ".pth", ".pt")
#: Largest difference of a pixel in [0, 1]: a sixteenth of a grey level of 8 bits.
TOLERANCE = 1 / 255 / 16
#: Height and width of the probe picture; multiples of the window.
PROBE = (40, 56)


def fetch(folder: Path, names: Sequence[str]) -> None:
    """Put models into a folder: the configuration, and the weights in one format.

    Raises:
        SystemExit: a folder without a model.
        huggingface_hub.errors.HfHubHTTPError, OSError: the hub does not give it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        source = Path(name)
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
            if source.with_suffix(".json").is_file():  # says its licence
                shutil.copyfile(source.with_suffix(".json"), folder / source.with_suffix(".json").name)
        elif source.is_dir():
            weights = next((source / file for file in WEIGHT_FILES if (source / file).is_file()), None)
            if weights is None or not (source / "config.json").is_file():
                raise SystemExit(f"{name} needs config.json and {' or '.join(WEIGHT_FILES)}")
            target = folder / source.name
            target.mkdir()
            for file in (source / "config.json", weights):
                shutil.copyfile(file, target / file.name)
        else:
            from huggingface_hub import HfApi, snapshot_download

            there = HfApi().list_repo_files(name)
            chosen = next((weight for weight in WEIGHT_FILES if weight in there), None)
            if chosen is None or "config.json" not in there:
                raise SystemExit(f"{name} holds no model")
            snapshot_download(name, allow_patterns=["config.json", chosen], cache_dir=folder / "hub")


def found(folder: Path) -> Iterator[Path]:
    """The directories below a folder that hold a model."""
    for config in sorted(folder.rglob("config.json")):
        if any((config.parent / file).is_file() for file in WEIGHT_FILES):
            yield config.parent


def files(folder: Path) -> Iterator[Path]:
    """The files of weights that are a model each."""
    return (path for path in sorted(folder.iterdir()) if path.suffix in FILE_ENDINGS)


def works(file: Path) -> str:
    """What a model in a file is, after it has made a picture: a network that runs here, and finite numbers.

    Raises:
        core.ModelError: it does not.
    """
    import torch

    from core import ModelError, models
    from core.engine import load

    spec = models.spec_of(str(file))
    net = load.build(spec, file)
    with torch.inference_mode():
        made = net(torch.rand(1, 3, *PROBE, generator=torch.Generator().manual_seed(1)))
    if not bool(made.isfinite().all()):
        raise ModelError(f"{file.name} gave no finite numbers")
    return f"{spec.about}, x{spec.scale}"


def difference(directory: Path) -> float:
    """The largest difference between our forward and that of transformers, of pixels in [0, 1].

    Raises:
        core.ModelError: ours does not load it.
        OSError, RuntimeError: transformers does not load it.
    """
    import torch
    from transformers import Swin2SRForImageSuperResolution

    from core import models
    from core.engine import pytorch

    ours = pytorch.build(models.spec_of(str(directory)), directory)
    reference = Swin2SRForImageSuperResolution.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    reference.eval()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        probe = torch.rand(1, 3, *PROBE, generator=torch.Generator().manual_seed(1))  # (1, 3, h, w)
        expected = reference(probe).reconstruction  # (1, 3, scale * h, scale * w)
        return float((ours(probe) - expected).abs().max())


def check(folder: Path) -> bool:
    """Print a line for each model, and say whether all equal transformers'."""
    good = True
    for file in files(folder):
        print(f"{file.relative_to(folder)}: {works(file)}")
    for directory in found(folder):
        apart = difference(directory)
        good = good and apart <= TOLERANCE
        verdict = "as transformers" if apart <= TOLERANCE else "NOT as transformers"
        print(f"{directory.relative_to(folder)}: {verdict}, at most {apart:.1e} apart")
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Fetch models for the image, and compare them with transformers.")
    parser.add_argument("action", choices=["fetch", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args(arguments)
    if asked.action == "fetch":
        fetch(asked.folder, asked.models)
        return 0
    return 0 if check(asked.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
