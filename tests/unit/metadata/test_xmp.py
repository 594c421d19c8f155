"""XMP packets: true of the result, and otherwise as they were."""

from __future__ import annotations

import pytest

from core.metadata.carried import MAX_BLOCK
from core.metadata.xmp import corrected_xmp
from tests.unit.pictures import XMP


def test_xmp_becomes_true_of_the_result() -> None:
    after = corrected_xmp(XMP, 40, 24)
    assert after is not None
    assert b'tiff:Orientation="1"' in after
    assert b'exif:PixelXDimension="40"' in after
    assert b"<exif:PixelYDimension>24<" in after
    # And nothing else changed.
    for old, new in ((b'"6"', b'"1"'), (b'"20"', b'"40"'), (b">12<", b">24<")):
        after = after.replace(new, old)
    assert after == XMP


def test_xmp_without_the_place() -> None:
    after = corrected_xmp(XMP, 40, 24, drop_gps=True)
    assert after is not None
    assert b"GPS" not in after
    assert b"T\xc3\xaftle" in after
    nested = XMP.replace(b"<dc:title>", b"<exif:GPSx><rdf:Seq>1</rdf:Seq></exif:GPSx><dc:title>")
    assert corrected_xmp(nested, 40, 24, drop_gps=True) == after
    hidden = XMP.replace(b"<dc:title>", b"<exif:GPSx><rdf:Seq>1</rdf:Seq><dc:title>")
    assert corrected_xmp(hidden, 40, 24, drop_gps=True) is None
    assert corrected_xmp("<exif:GPSLatitude>".encode("utf-16"), 40, 24, drop_gps=True) is None


def test_xmp_loses_the_thumbnail() -> None:
    packet = b"<a><xmp:Thumbnails><rdf:Alt>AAAA</rdf:Alt></xmp:Thumbnails></a>"
    assert corrected_xmp(packet, 1, 1) == b"<a></a>"


@pytest.mark.parametrize(
    "piece",
    [b"tiff:Orientation=", b" exif:GPSA='", b"<exif:GPSA>", b"</exif:GPSA><exif:GPSA>", b"<xmp:Thumbnails", b"GPS" * 9],
)
def test_a_hostile_packet_costs_no_more_than_its_length(piece: bytes) -> None:
    packet = piece * (MAX_BLOCK // len(piece))
    corrected_xmp(packet, 1, 1, True)  # a pattern that backtracks would take hours
