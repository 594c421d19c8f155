"""Upscale pictures: exact tiling, nothing of the picture lost, an estimate before the run.

    import core
    result = core.upscale("photo.jpg", core.Options(scale=2), output="photo-x2.png")

Importing this package is cheap; torch is imported by the first call that runs a network.
"""

from __future__ import annotations

from core.codecs.read import probe
from core.errors import (
    Cancelled,
    InputError,
    ModelError,
    NonFiniteOutput,
    OptionsError,
    OutOfMemory,
    OutputError,
    TooLarge,
    UnreadableImage,
    UpscaleError,
)
from core.estimation import estimate
from core.kept import BandStore, Keeping
from core.limits import Limits
from core.options import Estimate, Options, Result
from core.picture import Probe
from core.pipeline import upscale, upscale_part

#: The one place of the version: pyproject.toml, `--version` and the service read it here.
__version__ = "0.2.0"

__all__ = [
    "BandStore",
    "Cancelled",
    "Estimate",
    "InputError",
    "Keeping",
    "Limits",
    "ModelError",
    "NonFiniteOutput",
    "Options",
    "OptionsError",
    "OutOfMemory",
    "OutputError",
    "Probe",
    "Result",
    "TooLarge",
    "UnreadableImage",
    "UpscaleError",
    "__version__",
    "estimate",
    "probe",
    "upscale",
    "upscale_part",
]
