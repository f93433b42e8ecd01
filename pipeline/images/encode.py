"""From samples to a file's bytes."""

import io
from typing import Any

import numpy as np
import PIL.Image

from pipeline.config import Encode
from pipeline.errors import EncodeError, TooLargeError
from pipeline.images import png
from pipeline.images.image import Pixels

CONTENT_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "tiff": "image/tiff",
    "webp": "image/webp",
}

# Pixels a side: libjpeg-turbo's limit (the format's is 65,535), and WebP's 14 bits.
_MAX_SIDE = {"jpeg": 65_500, "webp": 16_383}
_MAX_DPI = 65_535  # JPEG's two bytes
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_TIFF_PREDICTOR, _HORIZONTAL = 317, 2
_CLASSIC_TIFF_BYTES = 3_500_000_000


def check_size(format: str, width: int, height: int, *, max_pixels: int) -> None:
    """Raises TooLargeError if a result of this size cannot be written, before it is computed.

    max_pixels: `limits.max_output_pixels`.
    """
    if width * height > max_pixels:
        size = f"the result has {width} x {height} = {width * height:,} pixels"
        raise TooLargeError(
            "output_too_large",
            f"{size}, limit {max_pixels:,} (limits.max_output_pixels, scale, long_side)",
        )
    limit = _MAX_SIDE.get(format)
    if limit and max(width, height) > limit:
        raise TooLargeError(
            "output_too_large",
            f"the result has {width} x {height} pixels, {format} holds {limit:,} a side "
            "(format: png or tiff)",
        )


def encode(
    pixels: Pixels,
    format: str,
    settings: Encode,
    *,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> tuple[bytes, tuple[str, ...]]:
    """The file, and the codes of what it cannot say.

    pixels: (height, width, 1 to 4), uint8. dpi: pixels per inch, across and down.
    Raises EncodeError.
    """
    samples, warnings = _presentable(pixels, format)
    if icc_profile and format == "webp" and samples.shape[2] < 3:
        # WebP makes RGB of gray, which a gray profile does not fit
        icc_profile, warnings = None, (*warnings, "icc_dropped")
    if dpi and (format == "webp" or max(dpi) > _MAX_DPI):
        dpi, warnings = None, (*warnings, "dpi_dropped")
    try:
        if format == "png":
            effort = png.EFFORTS[settings.png_effort]
            file = png.encode(samples, effort, icc_profile=icc_profile, dpi=dpi)
        else:
            file = _encode_by_pillow(samples, format, settings, icc_profile=icc_profile, dpi=dpi)
    except MemoryError as error:
        raise TooLargeError("encode_memory", f"no memory to encode as {format}") from error
    # The codec boundary, as in decode: what an encoder raises means this one picture.
    except Exception as error:
        message = f"{format}: {type(error).__name__}: {error}"
        raise EncodeError("encode_failed", message) from error
    return file, warnings


def _presentable(pixels: Pixels, format: str) -> tuple[Pixels, tuple[str, ...]]:
    """JPEG has no alpha: the picture on white, and a warning unless nothing showed through."""
    if format != "jpeg" or pixels.shape[2] not in (2, 4):
        return pixels, ()
    colour, alpha = pixels[:, :, :-1], pixels[:, :, -1:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colour), ()
    share = alpha.astype(np.float32) / 255
    on_white = colour * share + 255 * (1 - share)
    return np.rint(on_white).astype(np.uint8), ("alpha_flattened",)


def _encode_by_pillow(
    samples: Pixels,
    format: str,
    settings: Encode,
    *,
    icc_profile: bytes | None,
    dpi: tuple[float, float] | None,
) -> bytes:
    channels = samples.shape[2]
    picture = PIL.Image.fromarray(samples[:, :, 0] if channels == 1 else samples)
    if picture.mode != _MODES[channels]:
        raise ValueError(f"{channels} channels became mode {picture.mode}")
    options = _options(format, settings, samples.nbytes)
    if icc_profile:
        options["icc_profile"] = icc_profile
    if dpi:
        options["dpi"] = dpi
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def _options(format: str, settings: Encode, raw_bytes: int) -> dict[str, Any]:
    if format == "jpeg":
        return {"format": "JPEG", "quality": settings.jpeg_quality, "subsampling": 0}
    if format == "webp":
        return {
            "format": "WEBP",
            "quality": settings.webp_quality,
            "lossless": settings.webp_lossless,
        }
    return {
        "format": "TIFF",
        "compression": "tiff_adobe_deflate",
        "tiffinfo": {_TIFF_PREDICTOR: _HORIZONTAL},
        "big_tiff": raw_bytes > _CLASSIC_TIFF_BYTES,
    }
