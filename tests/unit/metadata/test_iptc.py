"""IPTC records in their wrappings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.metadata.iptc import from_raw_profile, iptc_of
from tests.unit.pictures import app13, iptc_records


def test_iptc_is_found_among_other_resources() -> None:
    segment = app13(iptc_records())
    assert iptc_of(segment[4 + len(b"Photoshop 3.0\0") :]) == iptc_records()
    assert iptc_of(b"8BIM") is None
    assert iptc_of(b"") is None


@given(st.binary(max_size=60))
def test_resources_of_any_bytes(junk: bytes) -> None:
    iptc_of(b"8BIM" + junk)
    from_raw_profile(junk.decode("latin-1"))
