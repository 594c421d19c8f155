"""What is declared of models against checkpoints and measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core import models

LIGHTWEIGHT = Path(__file__).parents[2] / "../shared/models/swin2SR-lightweight-x2-64"


@pytest.mark.skipif(not LIGHTWEIGHT.is_dir(), reason=f"no checkpoint at {LIGHTWEIGHT}")
def test_published_numbers_are_those_of_the_checkpoint() -> None:
    known, read = models.MODELS["swin2sr-lightweight-x2"], models.spec_of(str(LIGHTWEIGHT))
    # A folder does not say these.
    read = replace(read, name=known.name, source=known.source, about=known.about, licence=known.licence)
    assert read == known


def test_receptive_fields_as_measured() -> None:
    """Whole pictures through transformers with one changed pixel gave these; see docs of each model."""
    field = {name: spec.receptive_field for name, spec in models.MODELS.items()}
    assert field["swin2sr-classical-x2"] == 153
    assert field["swin2sr-realworld-x4"] == 153
    assert field["swin2sr-compressed-x4"] == 155
    assert field["swin2sr-lightweight-x2"] == 103
