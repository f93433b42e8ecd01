"""From samples to a file's bytes."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import PIL.Image

from pipeline.config import Encode, Policy
from pipeline.errors import EncodeError, ItemError, TooLargeError
from pipeline.images import containers, png, profiles, tiff
from pipeline.images.image import Pixels, Samples, eight_bit
from pipeline.images.limits import check_kind
from pipeline.images.page import Page

CONTENT_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "tiff": "image/tiff",
    "webp": "image/webp",
}

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_BAND_SAMPLES = 2**18

Written = tuple[bytes, tuple[str, ...]]


def encode(pages: Sequence[Page], format: str, settings: Encode, policy: Policy) -> Written:
    """The file, and the codes of what it cannot say.

    pages: at least one, and one where the format is not TIFF. format: a key of CONTENT_TYPES.
    Raises EncodeError, TooLargeError or UnsupportedError.
    """
    bits = max(8 * page.samples.itemsize for page in pages)
    check_kind(format, pages=len(pages), bit_depth=bits, depth_policy=policy.depth)
    try:
        pages = [_as_its_profile(page) for page in pages]
        if format == "tiff":
            return tiff.encode(pages)
        bare, lost = _WRITERS[format](pages[0].samples, settings)
        file, dropped = containers.embed(bare, format, pages[0].said)
        return file, (*lost, *dropped)
    except ItemError:
        raise
    except MemoryError as error:
        raise TooLargeError("encode_memory", f"no memory to encode as {format}") from error
    # The codec boundary, as in decode: what an encoder raises means this one picture.
    except Exception as error:
        message = f"{format}: {type(error).__name__}: {error}"
        raise EncodeError("encode_failed", message) from error


def _as_its_profile(page: Page) -> Page:
    """Grays, of a palette, with a profile of RGB as RGB: no format has both."""
    profile, channels = page.said.icc_profile, page.samples.shape[2]
    if channels > 2 or not profile or profiles.space(profile) != profiles.RGB:
        return page
    samples = np.take(page.samples, [0, 0, 0, 1][: channels + 2], axis=2)
    return replace(page, samples=cast(Samples, samples))


def _png(samples: Samples, settings: Encode) -> Written:
    return png.encode(samples, png.EFFORTS[settings.png_effort]), ()


def _jpeg(samples: Samples, settings: Encode) -> Written:
    pixels, lost = _in_eight_bits(samples, with_alpha=False)
    quality, subsampling = settings.jpeg_quality, settings.jpeg_subsampling
    return _by_pillow(pixels, format="JPEG", quality=quality, subsampling=subsampling), lost


def _webp(samples: Samples, settings: Encode) -> Written:
    pixels, lost = _in_eight_bits(samples, with_alpha=True)
    quality, lossless = settings.webp_quality, settings.webp_lossless
    return _by_pillow(pixels, format="WEBP", quality=quality, lossless=lossless), lost


_WRITERS: dict[str, Callable[[Samples, Encode], Written]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
}


def _in_eight_bits(samples: Samples, *, with_alpha: bool) -> tuple[Pixels, tuple[str, ...]]:
    """What a format of 8 bits holds, and what that takes from the picture.

    Without alpha: the picture on white, and a warning unless nothing showed through. In bands, as
    the arithmetic takes many times the memory of its result.
    """
    height, width, channels = samples.shape
    flatten = not with_alpha and channels in (2, 4)
    deep = samples.dtype != np.uint8
    if not flatten and not deep:
        return eight_bit(samples), ()
    pixels = np.empty((height, width, channels - flatten), np.uint8)
    opaque = True
    rows = max(1, _BAND_SAMPLES // (width * channels))
    for top in range(0, height, rows):
        band = eight_bit(samples[top : top + rows])
        if flatten:
            opaque = opaque and band[..., -1].min() == 255
            band = _on_white(band)
        pixels[top : top + rows] = band
    lost = {"depth_reduced": deep, "alpha_flattened": flatten and not opaque}
    return pixels, tuple(code for code, holds in lost.items() if holds)


def _on_white(pixels: Pixels) -> Pixels:
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    darkness = (255 - colour).astype(np.uint16)
    return (255 - (darkness * alpha + 127) // 255).astype(np.uint8)


def _by_pillow(pixels: Pixels, **options: Any) -> bytes:
    channels = pixels.shape[2]
    picture = PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if picture.mode != _MODES[channels]:
        raise ValueError(f"{channels} channels became mode {picture.mode}")
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()
