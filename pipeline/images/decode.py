"""From a file's bytes to a picture: 8-bit gray, RGB, alpha and palette in PNG, JPEG, WebP and TIFF.

Policy is decided on the header, before a sample is decoded; whatever else the file may be is an
error with a code of its own, never a guess.
"""

import io
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from pipeline.errors import DecodeError, ItemError, TooLargeError, UnsupportedError
from pipeline.images.image import Facts, Image, Metadata

# What is opened at all: those that we read, and those that we can at least name.
_READ = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "TIFF": "tiff"}
_NAMED = ("GIF", "BMP", "JPEG2000", "PPM", "AVIF", "ICO")
_OPENED = [*(_READ.keys() - {"MPO"}), *_NAMED]  # Pillow opens an MPO by way of JPEG

_TO_SAMPLES = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
}
_WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}

_BITS_PER_SAMPLE = 258
_ORIENTATION = 0x0112
_SUB_IFDS = {34665, 34853}  # EXIF and GPS


def probe(data: bytes, *, max_pixels: int) -> Facts:
    """What the header says of the picture that a file holds; no sample is decoded.

    data: the whole file. max_pixels: `limits.max_input_pixels`.
    Raises DecodeError, TooLargeError or UnsupportedError.
    """
    with _opened(data, max_pixels) as (_, facts):
        return facts


def decode(data: bytes, *, max_pixels: int) -> Image:
    """The picture that a file holds. Arguments and errors as of `probe`."""
    with _opened(data, max_pixels) as (opened, facts):
        opened.load()
        return _image(opened, facts)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Generator[tuple[PIL.Image.Image, Facts]]:
    """Whatever a codec raises inside becomes an ItemError."""
    # Pillow's guard is one for the whole process and warns on stderr; `_check` does its work.
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_OPENED) as opened:
            yield opened, _facts(opened, data, max_pixels)
    except ItemError:
        raise
    except MemoryError as error:
        raise TooLargeError("decode_memory", f"no memory to decode {len(data)} bytes") from error
    except PIL.UnidentifiedImageError as error:
        raise DecodeError("not_an_image", _what_it_is(data)) from error
    # The codec boundary: mutated files make Pillow raise nearly anything (ValueError, RuntimeError,
    # SyntaxError, struct.error, ...), and each of them means that this one file is broken.
    except Exception as error:
        message = f"{type(error).__name__}: {error} ({len(data)} bytes)"
        raise DecodeError("decode_failed", message) from error


def _facts(opened: PIL.Image.Image, data: bytes, max_pixels: int) -> Facts:
    name = opened.format or "unknown"
    if name not in _READ:
        readable = "PNG, JPEG, WebP and TIFF"
        raise UnsupportedError("unsupported_format", f"{name} is not read yet, {readable} are")
    frames = int(getattr(opened, "n_frames", 1))
    depth, samples = _bit_depth(opened, data), _samples(opened)
    facts = Facts(_READ[name], opened.mode, depth, frames, *opened.size, len(samples))
    _check(facts, name, max_pixels)
    return facts


def _check(facts: Facts, container: str, max_pixels: int) -> None:
    pixels = facts.width * facts.height
    if pixels > max_pixels:
        size = f"{facts.width} x {facts.height} = {pixels:,} pixels"
        raise TooLargeError(
            "input_too_large", f"{size}, limit {max_pixels:,} (limits.max_input_pixels)"
        )
    # The further frames of an MPO are a camera's previews and gain maps, not pages.
    if facts.frames > 1 and container != "MPO":
        kind = "pages" if container == "TIFF" else "frames of an animation"
        raise UnsupportedError("unsupported_frames", f"{facts.frames} {kind}, only 1 is read yet")
    if facts.bit_depth > 8:
        raise UnsupportedError(
            "unsupported_depth", f"{facts.bit_depth} bits a sample, only 8 are read yet"
        )
    if facts.mode not in _TO_SAMPLES:
        raise UnsupportedError(
            "unsupported_colour", f"colour mode {facts.mode}, only gray, RGB and palettes are read"
        )


def _bit_depth(opened: PIL.Image.Image, data: bytes) -> int:
    """Bits a sample as the header says: Pillow opens 16-bit RGB as 8 bits without a word."""
    if opened.format == "PNG":
        return data[24]  # IHDR: length, type, width, height, then the bit depth
    if isinstance(opened, PIL.TiffImagePlugin.TiffImageFile):
        bits = opened.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return max(bits) if isinstance(bits, tuple) else int(bits)
    return {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}.get(opened.mode, 8)


def _image(opened: PIL.Image.Image, facts: Facts) -> Image:
    samples = _samples(opened)
    upright = PIL.ImageOps.exif_transpose(opened)
    pixels = np.asarray(upright.convert(samples), dtype=np.uint8)
    return Image(
        pixels=pixels.reshape(upright.height, upright.width, -1),
        facts=facts,
        metadata=Metadata(
            icc_profile=opened.info.get("icc_profile") or None, dpi=_dpi(opened, upright)
        ),
        warnings=_warnings(opened, facts),
    )


def _samples(opened: PIL.Image.Image) -> str:
    """The mode that the picture is decoded to."""
    samples = _TO_SAMPLES.get(opened.mode, opened.mode)
    return _WITH_ALPHA.get(samples, samples) if "transparency" in opened.info else samples


def _dpi(opened: PIL.Image.Image, upright: PIL.Image.Image) -> tuple[float, float] | None:
    dpi = opened.info.get("dpi")
    if not dpi or not all(0 < value < 1e6 for value in dpi):
        return None
    across, down = (float(value) for value in dpi)
    return (down, across) if upright.size != opened.size else (across, down)


def _warnings(opened: PIL.Image.Image, facts: Facts) -> tuple[str, ...]:
    said = {
        "icc_untagged": not opened.info.get("icc_profile"),
        "exif_dropped": _says_more(opened, facts),
        "xmp_dropped": bool(opened.info.get("xmp")),
        "iptc_dropped": bool(opened.info.get("photoshop")),
        "frames_dropped": facts.frames > 1,
    }
    return tuple(code for code, holds in said.items() if holds)


def _says_more(opened: PIL.Image.Image, facts: Facts) -> bool:
    """Whether there is EXIF beyond the orientation, which is applied, and TIFF's own structure."""
    tags = set(opened.getexif())
    return bool(tags & _SUB_IFDS if facts.format == "tiff" else tags - {_ORIENTATION})


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty (0 bytes)"
    return f"no picture: {len(data)} bytes that begin with {data[:16]!r}"
