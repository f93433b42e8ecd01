"""CMYK and Lab to sRGB, for those who ask for it (`policy.colour`)."""

import io
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
from numpy.typing import NDArray

from pipeline.images.image import Samples
from pipeline.images.levels import bands

_MADE = slice(24, 36)  # of an ICC profile's header: when it was made
_MADE_ALWAYS = bytes.fromhex("07d000010001000000000000")  # the year 2000


def srgb_profile() -> bytes:
    """sRGB as an ICC profile, the same bytes at any time."""
    made = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    return made[: _MADE.start] + _MADE_ALWAYS + made[_MADE.stop :]


def cmyk_to_srgb(inks: NDArray[Any], profile: bytes | None) -> tuple[Samples, bool]:
    """(height, width, 3) of (height, width, 4), and whether the profile said how.

    inks: none is 0. Without a profile that fits, light is what each ink and black let through.
    """
    if profile:
        convert = _by_profile if inks.dtype == np.uint8 else _deep_by_profile
        # No profile, or one of another colour space.
        with suppress(OSError, PIL.ImageCms.PyCMSError, imagecodecs.CmsError):
            return convert(inks, profile), True
    full = np.iinfo(inks.dtype).max
    made = np.empty((*inks.shape[:2], 3), inks.dtype)
    for band in bands(inks):
        light = (full - inks[band]).astype(np.uint32)  # 65,535 squared and a half fit
        made[band] = (light[:, :, :3] * light[:, :, 3:] + full // 2) // full
    return made, False


def _by_profile(inks: NDArray[Any], profile: bytes) -> Samples:
    transform = PIL.ImageCms.buildTransform(
        PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        PIL.ImageCms.createProfile("sRGB"),
        "CMYK",
        "RGB",
        renderingIntent=PIL.ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=PIL.ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    made = np.empty((*inks.shape[:2], 3), np.uint8)
    for band in bands(inks):
        opened = PIL.Image.fromarray(inks[band], "CMYK")
        made[band] = np.asarray(transform.apply(opened))
    return made


def _deep_by_profile(inks: NDArray[Any], profile: bytes) -> Samples:
    """The same of 16 bits, which ImageCms does not know."""
    made = np.empty((*inks.shape[:2], 3), np.uint16)
    for band in bands(inks):
        made[band] = imagecodecs.cms_transform(
            inks[band],
            profile,
            srgb_profile(),
            colorspace="cmyk",
            outcolorspace="rgb",
            outdtype="uint16",
            intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
            flags=imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION,
        )
    return made


# XYZ of the ICC's white (D50) to linear sRGB, adapted by Bradford's method
# (B. Lindbloom, RGB/XYZ Matrices).
_TO_LINEAR = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ],
    np.float32,
)
_WHITE_XYZ = np.array([0.9642, 1.0, 0.8249], np.float32)


def lab_to_srgb(stored: NDArray[Any], *, from_zero: bool) -> Samples:
    """(height, width, 3) of as many; colours beyond sRGB are cut off.

    stored: TIFF's L, a and b; from_zero: a and b begin at 0 (ICCLab) instead of being signed.
    """
    made = np.empty(stored.shape, stored.dtype)
    for band in bands(stored):
        made[band] = _lab_band(stored[band], from_zero=from_zero)
    return made


def _lab_band(stored: NDArray[Any], *, from_zero: bool) -> NDArray[np.float32]:
    """As `lab_to_srgb`; in whole levels."""
    full = int(np.iinfo(stored.dtype).max)
    step, half = (full + 1) // 256, (full + 1) // 2
    light = stored[:, :, 0].astype(np.float32) * (100 / full)
    signed = stored[:, :, 1:].astype(np.int32)
    signed = signed - half if from_zero else (signed + half) % (full + 1) - half
    a, b = np.moveaxis(signed.astype(np.float32) / step, 2, 0)
    middle = (light + 16) / 116
    curve = np.stack([middle + a / 500, middle, middle - b / 200], axis=2)
    xyz = np.where(curve > 6 / 29, curve**3, (curve - 4 / 29) * 3 * (6 / 29) ** 2) * _WHITE_XYZ
    linear = np.clip(xyz @ _TO_LINEAR.T, 0, 1)
    return np.rint(_gamma(linear) * full)


def _gamma(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    """IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
