"""XMP packets made true of the result. Follows XMP part 2 and Exif 2.32 for XMP (CIPA DC-010)."""

from __future__ import annotations

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
        packet = re.sub(rb"\s(?:exif|exifEX):GPS\w{1,40}\s{0,9}=\s{0,9}(?:\"[^\"<]*\"|'[^'<]*')", b"", packet)
        packet = re.sub(rb"<((?:exif|exifEX):GPS\w{1,40})>[^<]*</\1>", b"", packet)
        if b"GPS" in packet or b"G\0P\0S" in packet:
            return None
    return packet
