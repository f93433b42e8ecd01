"""TIFF: which of its directories are pages, what each says, and its samples at their own depth.

tifffile and imagecodecs decode, in `tiff_parts`; libtiff by way of Pillow does what they do not:
YCbCr outside of JPEG, and old-style JPEG.
"""

import io
import warnings
from typing import Any

import numpy as np
import PIL.TiffImagePlugin
from numpy.typing import NDArray

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import jpeg, tiff_parts
from pipeline.images.ifd import Data, Directory, Place, stream
from pipeline.images.image import Alpha, Colour, Facts, Samples
from pipeline.images.levels import full_range

_NEW_SUBFILE, _OLD_SUBFILE = 254, 255
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PALETTE, _INKS, _EXTRA, _KIND = 274, 277, 320, 332, 338, 339
_STRIPS, _STRIP_BYTES, _JPEG_STREAM, _JPEG_BYTES = 273, 279, 513, 514
_DNG = 50706

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_WHITE_IS_ZERO, _YCBCR, _CIELAB, _ICCLAB = 0, 6, 8, 9
_OLD_JPEG, _JPEG = 6, 7
_ASSOCIATED, _UNASSOCIATED = 1, 2
_CMYK_INKS = 1

_COLOURS: dict[int, tuple[Colour, str, int]] = {
    0: ("gray", "L", 1),
    1: ("gray", "L", 1),
    2: ("rgb", "RGB", 3),
    3: ("palette", "P", 1),
    5: ("cmyk", "CMYK", 4),
    6: ("rgb", "RGB", 3),
    8: ("lab", "LAB", 3),
    9: ("lab", "LAB", 3),
}
_CHANNELS = {"gray": 1, "bilevel": 1}
_ALPHAS: dict[int, Alpha] = {_ASSOCIATED: "premultiplied", _UNASSOCIATED: "straight"}
_SAMPLE_KINDS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex floating-point"}

_MOST_SAMPLES = 16


def places(data: Data) -> list[Place]:
    """Of every page. Raises UnsupportedError, and what `Stream.chain` does."""
    source = stream(data)
    if not source.first:
        raise DecodeError("decode_failed", "a TIFF without a page")
    found = [directory for directory in source.chain() if _is_page(directory)]
    if not found:
        raise UnsupportedError(
            "unsupported_format", "a TIFF of thumbnails only; a camera's raw file perhaps"
        )
    if any(directory.count(_DNG) for directory in found):
        raise UnsupportedError("unsupported_format", "DNG, a camera's raw file, is not read")
    return [Place(directory.span[0], len(found)) for directory in found]


def place(data: Data, page: int) -> Place:
    """Of one page, from 0. Raises as `places`."""
    found = places(data)
    if page >= len(found):
        raise DecodeError("decode_failed", f"page {page} of {len(found)}, counted from 0")
    return found[page]


def facts(data: Data, place: Place) -> Facts:
    """Of one page. Raises DecodeError or UnsupportedError."""
    tags = stream(data).directory(place.at)
    colour, mode, _ = _colour(tags)
    depth = _bits(tags)
    if colour == "gray" and depth == 1:
        colour, mode = "bilevel", "1"
    kept, _ = _extra(tags)
    alpha = _ALPHAS[tags.numbers(_EXTRA)[kept]] if kept is not None else "none"
    # A palette beside other colours means nothing, and may be broken.
    channels = _palette(tags)[1] if colour == "palette" else _CHANNELS.get(colour, 3)
    turned = tags.number(_ORIENTATION, 1)
    return Facts(
        "tiff",
        mode + {"none": "", "straight": "A", "premultiplied": "a"}[alpha],
        depth,
        place.pages,
        tags.number(_WIDTH, 0),
        tags.number(_HEIGHT, 0),
        channels + (kept is not None),
        colour,
        alpha,
        turned if 1 <= turned <= 8 else 1,
        tags.number(_SAMPLES, 1),
    )


def samples(
    data: Data, place: Place, *, accept_truncated: bool
) -> tuple[Samples, bool, tuple[str, ...]]:
    """(height, width, channels) in full range, whether strips or tiles were missing, warnings.

    As stored but for palettes, which are resolved, gray whose zero is white, which is inverted,
    and YCbCr, which is RGB. Missing parts are black. Raises DecodeError.
    """
    tags = stream(data).directory(place.at)
    depth, (colour, _, _) = _bits(tags), _colour(tags)
    compression = tags.number(_COMPRESSION, 1)
    if compression == _OLD_JPEG or (
        compression != _JPEG and tags.number(_PHOTOMETRIC, -1) == _YCBCR
    ):
        whole = compression != _OLD_JPEG or _is_whole_old_jpeg(data, tags)
        if not whole and not accept_truncated:
            message = f"the file ends too soon, or has a gap in its JPEG ({len(data):,} bytes)"
            raise DecodeError("decode_failed", message)
        return _by_libtiff(data, place.at), not whole, ()
    stored, missing = tiff_parts.samples(
        data, tags, place.at, depth, accept_truncated=accept_truncated
    )
    kept, spare = _extra(tags)
    if colour == "palette":
        resolved: NDArray[Any] = _palette(tags)[0][stored[:, :, 0]]
        if kept is not None:
            alpha = full_range(stored[:, :, 1 + kept, None], 2**depth - 1)
            resolved = np.concatenate([resolved, alpha], axis=2)
        return resolved, missing, ("extra_samples_dropped",) * bool(spare)
    levels = full_range(stored, 2**depth - 1)
    if tags.number(_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        levels[:, :, 0] = np.iinfo(levels.dtype).max - levels[:, :, 0]
    wanted = [*range(_colour(tags)[2])]
    if kept is not None:
        wanted.append(wanted[-1] + 1 + kept)
    if spare:
        levels = levels[:, :, wanted]
    return levels, missing, ("extra_samples_dropped",) * bool(spare)


def is_icc_lab(data: Data, place: Place) -> bool:
    """Whether Lab's a and b are stored from 0 on and not around it."""
    return stream(data).directory(place.at).number(_PHOTOMETRIC, _CIELAB) == _ICCLAB


def _is_page(directory: Directory) -> bool:
    reduced = directory.number(_NEW_SUBFILE, 0) & (_REDUCED | _MASK)
    return not reduced and directory.number(_OLD_SUBFILE, 1) != 2


def _colour(tags: Directory) -> tuple[Colour, str, int]:
    """Colour, Pillow's name for it, and its samples a pixel."""
    photometric = tags.number(_PHOTOMETRIC, -1)
    if photometric == -1:
        photometric = 2 if tags.number(_SAMPLES, 1) >= 3 else 1
    other: tuple[Colour, str, int] = ("other", f"photometric {photometric}", 1)
    colour = _COLOURS.get(photometric, other)
    if colour[0] == "cmyk" and tags.number(_INKS, _CMYK_INKS) != _CMYK_INKS:
        return other
    return colour


def _bits(tags: Directory) -> int:
    """Bits a sample. Raises UnsupportedError where samples differ, or are no plain integers."""
    bits = tags.numbers(_BITS) or (1,)
    kinds = {*tags.numbers(_KIND)} & _SAMPLE_KINDS.keys()
    if kinds or len({*bits}) > 1 or not 1 <= bits[0] <= 16:
        kind = "".join(f"{_SAMPLE_KINDS[kind]} " for kind in sorted(kinds))
        said = ", ".join(f"{depth}" for depth in sorted({*bits}))
        raise UnsupportedError(
            "unsupported_depth", f"{kind}samples of {said} bits, unsigned ones of 1 to 16 are read"
        )
    if _colour(tags)[0] == "palette" and bits[0] > 8:
        raise UnsupportedError("unsupported_depth", f"a palette index of {bits[0]} bits, limit 8")
    return bits[0]


def _extra(tags: Directory) -> tuple[int | None, int]:
    """Which sample after the colour's is alpha, and how many mean nothing to us."""
    count, colour = tags.number(_SAMPLES, 1), _colour(tags)
    extra = count - colour[2]
    if extra < 0:
        message = f"{count} samples a pixel, {colour[1]} has {colour[2]}"
        raise DecodeError("decode_failed", message)
    if count > _MOST_SAMPLES:
        raise UnsupportedError(
            "unsupported_colour", f"{count} samples a pixel, at most {_MOST_SAMPLES} are read"
        )
    said = tags.numbers(_EXTRA)[:extra]
    # An index cannot have been multiplied by anything.
    kinds = (_UNASSOCIATED,) if colour[0] == "palette" else _ALPHAS
    place = next((index for index, kind in enumerate(said) if kind in kinds), None)
    return place, extra - (place is not None)


def _palette(tags: Directory) -> tuple[NDArray[np.uint8], int]:
    """(2 ** bits, 1 or 3) and the last. Some writers fill 8 of the 16 bits; the rest is noise."""
    numbers = tags.numbers(_PALETTE)
    count = 2 ** _bits(tags)
    if len(numbers) != 3 * count or not 0 <= min(numbers) <= max(numbers) <= 65_535:
        message = f"a palette of {len(numbers)} numbers, {3 * count} of 16 bits are needed"
        raise DecodeError("decode_failed", message)
    colours = np.array(numbers, np.uint16).reshape(3, count)
    if colours.max() > 255:
        colours = colours >> 8
    channels = 1 if (colours == colours[0]).all() else 3
    return colours[:channels].T.astype(np.uint8), channels


def _is_whole_old_jpeg(data: Data, tags: Directory) -> bool:
    """Whether all parts are in the file, and a JPEG stream that they are in is whole.

    libtiff goes on in gray. Of samples that stand apart from their tables nothing more is known.
    """
    start, size = tags.number(_JPEG_STREAM, 0), tags.number(_JPEG_BYTES, 0)
    strips = tags.numbers(_STRIPS)
    parts = [(start, size), *zip(strips, tags.numbers(_STRIP_BYTES), strict=False)]
    if any(at + count > len(data) for at, count in parts):
        return False
    inside = all(start <= at < start + size for at in strips)
    return not inside or jpeg.check(data[start : start + size])[0]


def _by_libtiff(data: Data, at: int) -> Samples:
    # Pillow would follow the chain once more, so it begins with the page.
    source = stream(data)
    head = slice(8, 16) if source.big else slice(4, 8)
    first = source.layout.offsets.pack(at)
    begins_there = b"".join((data[: head.start], first, data[head.stop :]))
    with (
        # For all threads, but few files come this way, and children that decode have one thread.
        warnings.catch_warnings(action="ignore"),
        PIL.TiffImagePlugin.TiffImageFile(io.BytesIO(begins_there)) as opened,
    ):
        # Pillow turns a page by its tag or its XMP as it loads it; `decode` turns every picture.
        opened.getexif()[_ORIENTATION] = 1
        return np.asarray(opened.convert("RGB"), np.uint8)
