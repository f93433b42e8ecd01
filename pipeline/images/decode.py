"""From a file's bytes to a picture: facts by its header, then samples as good as they were stored.

Policy is decided on the header, before a sample is decoded; whatever a codec raises after that
means that this one file is broken, and is an error with a code of its own, never a guess.
"""

import io
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.ImageFile
import PIL.JpegImagePlugin
import PIL.WebPImagePlugin
from numpy.typing import NDArray

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError, ItemError, TooLargeError, UnsupportedError
from pipeline.images import (
    colour,
    gif,
    header,
    image,
    jpeg,
    jpeg2000,
    levels,
    metadata,
    pnm,
    read_png,
    read_tiff,
    webp,
)
from pipeline.images.ifd import Data, Place
from pipeline.images.image import Facts, Image, Metadata, Samples

_CONVERTED = ("cmyk", "ycck", "lab")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_IS_WHOLE: dict[str, Callable[[bytes], bool]] = {
    "gif": gif.is_whole,
    "jpeg2000": jpeg2000.is_whole,
    "webp": webp.is_whole,
}
_FIRST_OF_PALETTE = {1: (0,), 2: (0, 3), 3: (0, 1, 2), 4: (0, 1, 2, 3)}


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Samples as stored, in full range, palettes resolved."""

    samples: Samples
    truncated: bool = False
    warnings: tuple[str, ...] = ()


def places(data: Data) -> tuple[Place, ...]:
    """Where a TIFF's pages are found; of other files nothing. Errors as of `probe`."""
    with _codec_boundary(data):
        return tuple(read_tiff.places(data)) if header.sniff(data) == "tiff" else ()


def probe(data: Data, limits: Limits, policy: Policy, *, page: int = 0) -> Facts:
    """What the header says of the picture that a file holds; no sample is decoded.

    data: the whole file. page: of a TIFF, counted from 0.
    Raises DecodeError, TooLargeError or UnsupportedError.
    """
    with _codec_boundary(data):
        place = read_tiff.place(data, page) if header.sniff(data) == "tiff" else None
        facts = header.facts(data, page, place)
        _check(facts, limits, policy)
        return _counted(data, [facts], [place], limits)[0]


def probe_pages(data: Data, limits: Limits, policy: Policy) -> tuple[Facts, ...]:
    """The same of every page; of what is no TIFF there is one. Errors as of `probe`."""
    with _codec_boundary(data):
        found = header.all_facts(data)
        for facts in found:
            _check(facts, limits, policy)
        pages = read_tiff.places(data) if found[0].format == "tiff" else [None]
        return _counted(data, found, pages, limits)


def _counted(
    data: Data, pages: Sequence[Facts], places: Sequence[Place | None], limits: Limits
) -> tuple[Facts, ...]:
    """With the bytes of their metadata."""
    counted, left = list[Facts](), limits.max_metadata_bytes
    for facts, place in zip(pages, places, strict=True):
        if left > 0:
            at, limit = place.at if place else 0, limits.max_metadata_bytes
            said = metadata.count(data, facts.format, at=at, limit=limit)
            facts, left = replace(facts, metadata_bytes=said), left - said
        counted.append(facts)
    return tuple(counted)


def decode(
    data: Data, limits: Limits, policy: Policy, *, page: int = 0, place: Place | None = None
) -> Image:
    """The picture that a file holds, the right way up. Arguments and errors as of `probe`.

    place: of the page, one of `places`; without it a TIFF's chain of directories is followed.
    """
    with _codec_boundary(data):
        if place is None and header.sniff(data) == "tiff":
            place = read_tiff.place(data, page)
        facts = header.facts(data, page, place)
        _check(facts, limits, policy)
        at, limit = place.at if place else 0, limits.max_metadata_bytes
        said, codes = metadata.read(data, facts.format, at=at, limit=limit)
        decoded = _decoded(data, facts, place, accept=policy.truncated == "accept")
        stored = (facts.height, facts.width)
        if decoded.samples.shape[:2] != stored:
            raise DecodeError("decode_failed", f"{decoded.samples.shape} samples, not {stored}")
        samples = decoded.samples
        if facts.alpha == "premultiplied":  # as inks are, not the colours that they become
            samples = levels.straight(samples)
        samples, said, converted = _in_rgb(samples, facts, said, data, place)
        if facts.orientation > 4:
            dpi, aspect = said.dpi and said.dpi[::-1], said.aspect and 1 / said.aspect
            said = replace(said, dpi=dpi, aspect=aspect)
        pixels = levels.upright(samples, facts.orientation)
        image.check(pixels, facts)
        return Image(
            pixels=pixels,
            facts=facts,
            metadata=said,
            warnings=(
                *codes,
                *decoded.warnings,
                *converted,
                *("truncated_accepted",) * decoded.truncated,
                *("frames_dropped",) * (facts.frames > 1 and facts.format != "tiff"),
            ),
        )


@contextmanager
def _codec_boundary(data: Data) -> Generator[None]:
    """Whatever a codec raises inside becomes an ItemError."""
    try:
        yield
    except ItemError:
        raise
    except MemoryError as error:
        raise TooLargeError("decode_memory", f"no memory to decode {len(data)} bytes") from error
    # An allocation of libjpeg's that failed is no MemoryError.
    except imagecodecs.Jpeg8Error as error:
        if jpeg.NO_MEMORY not in str(error):
            raise _failed(data, error) from error
        raise TooLargeError("decode_memory", f"no memory to decode {len(data)} bytes") from error
    # Mutated files make codecs raise nearly anything (ValueError, RuntimeError, SyntaxError,
    # struct.error, ...), and each of them means that this one file is broken.
    except Exception as error:
        raise _failed(data, error) from error


def _failed(data: Data, error: Exception) -> DecodeError:
    return DecodeError("decode_failed", f"{type(error).__name__}: {error} ({len(data)} bytes)")


def _check(facts: Facts, limits: Limits, policy: Policy) -> None:
    """Raises TooLargeError or UnsupportedError."""
    if facts.format == "tiff" and facts.frames > limits.max_pages:
        raise TooLargeError(
            "too_many_pages",
            f"{facts.frames:,} pages, limit {limits.max_pages:,} (limits.max_pages)",
        )
    pixels = facts.width * facts.height
    if not pixels:
        raise DecodeError("decode_failed", f"{facts.width} x {facts.height} pixels")
    if pixels > limits.max_input_pixels:
        size = f"{facts.width} x {facts.height} = {pixels:,} pixels"
        raise TooLargeError(
            "input_too_large",
            f"{size}, limit {limits.max_input_pixels:,} (limits.max_input_pixels)",
        )
    # The further frames of a JPEG are a camera's previews and gain maps.
    animated = facts.frames > 1 and facts.format not in ("tiff", "jpeg")
    if animated and policy.animation == "reject":
        raise UnsupportedError(
            "unsupported_frames",
            f"{facts.frames} frames of an animation (policy.animation: first_frame takes one)",
        )
    if facts.bit_depth > 16:
        raise UnsupportedError("unsupported_depth", f"{facts.bit_depth} bits a sample, limit 16")
    if facts.colour == "other":
        raise UnsupportedError(
            "unsupported_colour", f"colour model {facts.mode}, only gray, RGB and palettes are read"
        )
    if facts.colour in _CONVERTED and policy.colour == "reject":
        raise UnsupportedError(
            "unsupported_colour", f"{facts.mode} samples (policy.colour: convert makes them sRGB)"
        )


def _decoded(data: Data, facts: Facts, place: Place | None, *, accept: bool) -> _Decoded:
    """By the codec of the format. accept: what there is of a file that ends too soon."""
    if place:
        return _Decoded(*read_tiff.samples(data, place, accept_truncated=accept))
    assert isinstance(data, bytes), "only a TIFF is mapped"
    if facts.format == "png":
        return _Decoded(*read_png.samples(data, accept_truncated=accept))
    if facts.format == "pnm":
        return _Decoded(*pnm.samples(data, accept_truncated=accept))
    whole, left_over = _check_end(data, facts.format)
    if not whole and not accept:
        message = f"the file ends too soon, or has a gap ({len(data):,} bytes)"
        raise DecodeError("decode_failed", message)
    if facts.format == "jpeg2000":
        samples, dropped = jpeg2000.samples(data, facts)
        return _Decoded(samples, not whole, dropped)
    if facts.format == "jpeg":
        codes = ("jpeg_bytes_left_over",) * left_over
        return _Decoded(_jpeg(data if whole else data + jpeg.END, facts), not whole, codes)
    if facts.format == "gif" and not whole:
        return _Decoded(_by_pillow(gif.completed(data), facts), truncated=True)
    try:
        return _Decoded(_by_pillow(data, facts), not whole)
    except OSError:
        if not accept or facts.format != "bmp":
            raise
        blank = bytes(4 * (facts.width + 1) * facts.height)
        return _Decoded(_by_pillow(data + blank, facts), truncated=True)


def _check_end(data: bytes, format: str) -> tuple[bool, bool]:
    """Whether a file is whole, where its decoder does not mind, and has bytes left over."""
    if format == "jpeg":
        return jpeg.check(data)
    return format not in _IS_WHOLE or _IS_WHOLE[format](data), False


def _jpeg(data: bytes, facts: Facts) -> Samples:
    if facts.bit_depth > 8:
        found = imagecodecs.jpeg8_decode(data)
        return levels.full_range(found.reshape(*found.shape[:2], -1), 2**facts.bit_depth - 1)
    # Pillow inverts the inks that Adobe's programs store the other way round.
    with (
        # It reads EXIF for a resolution, and warns of what `metadata` judges.
        warnings.catch_warnings(action="ignore"),
        PIL.JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as opened,
    ):
        found = np.asarray(opened, np.uint8)
    return found.reshape(*found.shape[:2], -1)


def _by_pillow(data: bytes, facts: Facts) -> Samples:
    """GIF, BMP and WebP, of 8 bits all of them, with palettes resolved.

    The format's own class is opened and not Pillow's general `open`, whose guard against large
    pictures is one for the whole process; `_check` has done its work.
    """
    opener = _OPENERS[facts.format]
    with opener(io.BytesIO(data)) as opened:
        if facts.colour == "palette":
            resolved = np.asarray(opened.convert("RGBA"))
            return resolved[:, :, _FIRST_OF_PALETTE[facts.channels]]
        found = np.asarray(opened.convert(_MODES[facts.channels]))
    return found.reshape(*found.shape[:2], -1)


_OPENERS: dict[str, type[PIL.ImageFile.ImageFile]] = {
    "gif": PIL.GifImagePlugin.GifImageFile,
    "bmp": PIL.BmpImagePlugin.BmpImageFile,
    "webp": PIL.WebPImagePlugin.WebPImageFile,
}


def _in_rgb(
    samples: NDArray[Any], facts: Facts, said: Metadata, data: Data, place: Place | None
) -> tuple[Samples, Metadata, tuple[str, ...]]:
    """CMYK and Lab as sRGB, which is then the picture's profile; all else as it is."""
    if facts.colour not in _CONVERTED:
        return samples, said, ()
    codes: tuple[str, ...] = ("colour_converted",)
    if facts.colour == "lab":
        from_zero = place is None or read_tiff.is_icc_lab(data, place)  # JPEG 2000's are
        made = colour.lab_to_srgb(samples[:, :, :3], from_zero=from_zero)
        rest = samples[:, :, 3:]
    else:
        made, fits = colour.cmyk_to_srgb(samples[:, :, :4], said.icc_profile)
        codes += ("icc_unusable",) * bool(said.icc_profile and not fits)
        rest = samples[:, :, 4:]
    said = replace(said, icc_profile=colour.srgb_profile())
    joined: NDArray[Any] = np.concatenate([made, rest], axis=2)
    return joined, said, codes
