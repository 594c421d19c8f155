"""Everything that `core` raises on purpose.

UpscaleError
├── InputError                the caller's picture
│   ├── UnreadableImage       not an image that we read, or damaged
│   └── TooLarge              more bytes or pixels than the limits allow
├── OptionsError              options that make no sense, alone or for this picture
├── OutputError               the result cannot be written
├── ModelError                a model cannot be found or loaded, or does not work
│   ├── NotHereYet            its download goes on
│   └── NonFiniteOutput       a network gave NaN or infinity even in fp32
├── OutOfMemory               the smallest tile does not fit
└── Cancelled                 the caller's progress function asked to stop

Each message is one line that says what to do; nothing else is ever shown to a user.
"""

from __future__ import annotations

import re


class UpscaleError(Exception):
    """Base of the tree.

    Attributes:
        code: stable name for programs (`error.code` in JSON, the problem code over HTTP).
    """

    code = "upscale_error"


class InputError(UpscaleError):
    """The picture that was handed in is at fault."""

    code = "bad_input"


class UnreadableImage(InputError):
    """Not an image in a format that we read, or damaged."""

    code = "unreadable_image"


class TooLarge(InputError):
    """More bytes or pixels than the limits allow."""

    code = "too_large"


class OptionsError(UpscaleError):
    """Options that make no sense, alone or for this picture."""

    code = "bad_options"


class OutputError(UpscaleError):
    """The result cannot be written where it was asked for; nothing is left there half-written."""

    code = "cannot_write"


class ModelError(UpscaleError):
    """A model cannot be found, loaded or run."""

    code = "model_unavailable"


class NotHereYet(ModelError):
    """A model is being downloaded, for longer than anybody wanted to wait."""


class NonFiniteOutput(ModelError):
    """A network gave NaN or infinity, also when the tile was repeated in fp32."""

    code = "non_finite_output"


class OutOfMemory(UpscaleError):
    """Even the smallest tile does not fit into memory."""

    code = "out_of_memory"


class Cancelled(UpscaleError):
    """The progress function asked to stop between two tiles."""

    code = "cancelled"


def describe(error: BaseException) -> str:
    """One short line of plain characters about an exception; a decoder's text may quote the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    text = re.sub(r"[^ -~]", "?", lines[0] if lines else "")[:200]
    return text or type(error).__name__
