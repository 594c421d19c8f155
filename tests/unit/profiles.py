"""ICC profiles with known numbers, and colour differences, for tests that compare colours and not bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
#: Chromaticities of red, green and blue, and the exponent of the transfer curve.
DISPLAY_P3 = (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 2.2)
ADOBE_RGB = (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256)
SRGB = (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), 0.0)  # 0: the curve of IEC 61966-2-1

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Space = tuple[tuple[tuple[float, float], tuple[float, float], tuple[float, float]], float]


def _xyz(x: float, y: float) -> Array:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def matrix(space: Space) -> Array:
    """(3, 3): linear RGB to XYZ, adapted to D50 as ICC profiles are."""
    primaries = np.stack([_xyz(*point) for point in space[0]], axis=1)
    white = _xyz(*D65)
    to_xyz = primaries * np.linalg.solve(primaries, white)
    cones = np.diag((_BRADFORD @ D50) / (_BRADFORD @ white))
    found: Array = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ to_xyz
    return found


def linear(values: Array, space: Space) -> Array:
    """RGB in [0, 1] without its transfer curve."""
    if space[1]:
        return np.asarray(values ** space[1])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(values: Array, space: Space = SRGB) -> Array:
    """RGB in [0, 1], (..., 3), to CIE Lab under D50."""
    return xyz_to_lab(linear(np.asarray(values, float), space) @ matrix(space).T)


def xyz_to_lab(xyz: Array) -> Array:
    """XYZ, (..., 3), to CIE Lab under D50."""
    t = xyz / D50
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def delta_e(first: Array, second: Array) -> Array:
    """CIEDE2000 of Lab colours, (..., 3) (Sharma, Wu and Dalal 2005)."""
    l1, a1, b1 = np.moveaxis(np.asarray(first, float), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(second, float), -1, 0)
    mean7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    g = 0.5 * (1 - np.sqrt(mean7 / (mean7 + 25.0**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    dh = (h2 - h1 + 180) % 360 - 180
    both = c1 * c2 > 0
    dh = np.where(both, dh, 0)
    mean_h = np.where(both, (h1 + dh / 2) % 360, h1 + h2)
    dl, dc, dhh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2))
    ml, mc = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )
    sl = 1 + 0.015 * (ml - 50) ** 2 / np.sqrt(20 + (ml - 50) ** 2)
    sc, sh = 1 + 0.045 * mc, 1 + 0.015 * mc * t
    rt = -2 * np.sqrt(mc**7 / (mc**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2))))
    return np.asarray(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dhh / sh) ** 2 + rt * dc / sc * dhh / sh))


def _profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC 2.4 profile (ICC.1:2001-04)."""
    tags = {b"desc": _description(space), b"cprt": b"text" + bytes(4) + b"CC0\0", **tags}
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _description(name: bytes) -> bytes:
    words = b"test " + name + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(8) + bytes(3) + bytes(67)


def _curve(exponent: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256)) + bytes(2)


def _srgb_curve() -> bytes:
    values = linear(np.linspace(0, 1, 1024), SRGB)
    return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.rint(values * 65535).astype(int).tolist())


def rgb_profile(space: Space) -> bytes:
    """A matrix profile of an RGB space."""
    columns = matrix(space)
    tags = {b"wtpt": _xyz_tag(D50)}
    for index, name in enumerate((b"r", b"g", b"b")):
        tags[name + b"XYZ"] = _xyz_tag(columns[:, index])
        tags[name + b"TRC"] = _curve(space[1]) if space[1] else _srgb_curve()
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(exponent: float) -> bytes:
    """A greyscale profile with a power curve."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"wtpt": _xyz_tag(D50), b"kTRC": _curve(exponent)})


def _xyz_tag(values: Array) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


#: CIE Lab of paper under full single inks, of a press that nobody has: far from what inversion would give.
INKS = np.array([[60.0, -30.0, -40.0], [50.0, 60.0, 5.0], [85.0, 5.0, 75.0], [20.0, 2.0, 3.0]])
PAPER = np.array([100.0, 0.0, 0.0])  # relative colorimetry: paper is white


def cmyk_lab(inks: Array) -> Array:
    """CIE Lab of ink amounts in [0, 1], (..., 4), on that press: each ink filters the light that the others leave."""
    inks = np.asarray(inks, float)
    found = np.zeros((*inks.shape[:-1], 3))
    for corner in range(16):
        bits = [corner >> index & 1 for index in range(4)]
        weight = np.prod([inks[..., i] if bit else 1 - inks[..., i] for i, bit in enumerate(bits)], axis=0)
        found += weight[..., None] * _corner(bits)
    return found


def _corner(bits: list[int]) -> Array:
    lightness, a, b = PAPER.copy()
    for bit, ink in zip(bits, INKS, strict=True):
        if bit:
            lightness, a, b = lightness * ink[0] / PAPER[0], a + ink[1], b + ink[2]
    chroma = 0.25 if bits[3] else 1.0
    return np.array([lightness, a * chroma, b * chroma])


def cmyk_profile() -> bytes:
    """An output profile whose table is `cmyk_lab` (lut8Type, two grid points for each ink)."""
    table = []
    for corner in range(16):  # the first channel varies least rapidly
        bits = [corner >> (3 - index) & 1 for index in range(4)]
        lightness, a, b = np.clip(_corner(bits), (0, -128, -128), (100, 127, 127))
        table += [round(lightness * 255 / 100), round(a + 128), round(b + 128)]
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", *(65536 if index % 4 == 0 else 0 for index in range(9)))
    lut += identity * 4 + bytes(table) + identity * 3
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"wtpt": _xyz_tag(D50), b"A2B0": lut})
