"""Colours as people see their differences: CIELAB and CIEDE2000."""

import numpy as np
from numpy.typing import NDArray

_Doubles = NDArray[np.float64]

# IEC 61966-2-1, linear RGB to XYZ; divided by the white, which makes gray have no colour at all.
_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float64
)
_TO_WHITE = _XYZ / _XYZ.sum(axis=1, keepdims=True)


def lab(levels: NDArray[np.float32]) -> _Doubles:
    """CIELAB under D65 of sRGB or gray in levels of 255: (..., 3)."""
    encoded = levels.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    if linear.shape[-1] == 1:
        linear = linear.repeat(3, axis=-1)
    xyz = linear @ _TO_WHITE.T
    delta = 6 / 29
    root = np.where(xyz > delta**3, np.cbrt(xyz), xyz / (3 * delta**2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def delta_e2000(first: _Doubles, second: _Doubles) -> _Doubles:
    """CIEDE2000 of two colours in CIELAB, (..., 3) to (...).

    G. Sharma, W. Wu, E. N. Dalal, "The CIEDE2000 Color-Difference Formula" (2005), whose steps and
    names these are.
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    g = 0.5 * (1 - _chroma_weight((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    colourless = c1 * c2 == 0
    turn = np.where(colourless, 0, (h2 - h1 + 180) % 360 - 180)
    # Opposite hues have no shortest way between them; the paper turns by +180.
    turn = np.where(turn == -180, np.sign(h2 - h1) * 180, turn)
    delta_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    h = np.where(colourless, h1 + h2, _mean_hue(h1, h2))
    c, l_off = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    t = 1 + sum(
        gain * np.cos(np.radians(times * h + phase))
        for gain, times, phase in ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    )
    s_l, s_c, s_h = 1 + 0.015 * l_off / np.sqrt(20 + l_off), 1 + 0.045 * c, 1 + 0.015 * c * t
    theta = np.radians(60 * np.exp(-(((h - 275) / 25) ** 2)))
    light, chroma, hue = (l2 - l1) / s_l, (c2 - c1) / s_c, delta_h / s_h
    rotated = -np.sin(theta) * 2 * _chroma_weight(c) * chroma * hue
    return np.sqrt(light**2 + chroma**2 + hue**2 + rotated)


def _chroma_weight(c: _Doubles) -> _Doubles:
    return np.sqrt(c**7 / (c**7 + 25.0**7))


def _mean_hue(h1: _Doubles, h2: _Doubles) -> _Doubles:
    mean = (h1 + h2) / 2
    across = np.where(h1 + h2 < 360, mean + 180, mean - 180)
    return np.where(np.abs(h1 - h2) <= 180, mean, across)
