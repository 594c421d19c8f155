"""XMP packets made true of the result. Follows XMP part 2 and Exif 2.32 for XMP (CIPA DC-010)."""

from __future__ import annotations

import bisect
import re


def corrected_xmp(packet: bytes, width: int, height: int, drop_gps: bool = False) -> bytes | None:
    """An XMP packet that is true of the result; None when places cannot be taken out of it for certain.

    Done on the text, so that everything else stays as it was to the byte. The patterns look ahead only to the next
    quote or bracket, so that a hostile packet costs no more than its length.
    """
    for names, value in (
        (rb"tiff:Orientation", 1),
        (rb"(?:exif:PixelXDimension|tiff:ImageWidth)", width),
        (rb"(?:exif:PixelYDimension|tiff:ImageLength)", height),
    ):
        packet = re.sub(rb"(" + names + rb"\s{0,9}(?:=\s{0,9}[\"']|>))\d{1,9}", rb"\g<1>%d" % value, packet)
    start = packet.find(b"<xmp:Thumbnails")
    end = packet.rfind(b"</xmp:Thumbnails>")
    if 0 <= start < end:
        packet = packet[:start] + packet[end + len(b"</xmp:Thumbnails>") :]
    if drop_gps:
        if b"\0" in packet:  # UTF-16 or 32
            return None
        packet = _without(packet, _PLACES)
        if re.search(rb"GPS|[:<\s]" + _PLACES + rb"[\s=>/]", packet):
            return None
    return packet


#: Properties that say where a picture was taken or what place it shows (Exif for XMP, IPTC Core and Extension).
_PLACES = (
    rb"(?:exif|exifEX|Iptc4xmpExt|Iptc4xmpCore|photoshop|GettyImagesGIFT|mwg-rs|geo|location|digiKam|lr|x|drone-dji|"
    rb"rdf|apple-fi|mediapro|MicrosoftPhoto|xmpDM):(?:GPS\w{1,40}|City|State|Country|CountryCode|CountryName|Location|"
    rb"Sublocation|ProvinceState|WorldRegion|LocationId|LocationName|LocationCreated|LocationShown|GPSLatitude|"
    rb"GpsLatitude|GpsLongitude|GpsLongtitude|lat|long|shotLocation)"
)
#: What speaks of a motion photo's video or of a gain map, which are left out.
_GONE = (
    rb"(?:G?Camera:(?:MotionPhoto|MicroVideo)\w{0,40}|(?:G?Container):Directory|hdrgm:\w{1,40}|"
    rb"(?:HDRGainMap|apdi):\w{1,40}|xmpNote:HasExtendedXMP)"
)


def without_others(packet: bytes) -> bytes:
    """A packet that no longer speaks of the gain map, the video or the further pictures that were behind it."""
    return _without(packet, _GONE)


def _without(packet: bytes, names: bytes) -> bytes:
    """A packet without properties, whether these are attributes, empty elements or elements with content.

    Elements are cut from their tag to the next end tag of the same name, which is theirs: no property holds itself.
    """
    packet = re.sub(rb"\s" + names + rb"\s{0,9}=\s{0,9}(?:\"[^\"<]*\"|'[^'<]*')", b"", packet)
    ends: dict[bytes, list[int]] = {}  # of the end tags, in order, so that the cost stays that of one pass
    for close in re.finditer(rb"</(" + names + rb")\s{0,9}>", packet):
        ends.setdefault(close[1], []).append(close.end())
    found = bytearray()
    at = 0
    for start in re.finditer(rb"<(" + names + rb")(?:\s[^<>]{0,1000})?(/?)>", packet):
        if start.start() < at:
            continue  # it lay in what was cut
        end = start.end()
        if not start[2] and not packet.endswith(b"/>", start.start(), end):
            behind = ends.get(start[1], [])
            index = bisect.bisect(behind, end)
            if index == len(behind):
                continue
            end = behind[index]
        found += packet[at : start.start()]
        at = end
    return bytes(found + packet[at:])
