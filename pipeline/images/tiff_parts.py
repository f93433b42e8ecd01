"""A TIFF page's strips and tiles: decoded one by one, so that one that is missing is known."""

import io
import logging
import math
import re
from collections.abc import Callable
from typing import IO, Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import jpeg, jpeg2000, webp
from pipeline.images.ifd import Data, Directory

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_STRIPS, _SAMPLES, _ROWS, _PLANAR = 273, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES = 322, 323, 324
_DEPTH = 32997

_LZW, _JPEG, _WEBP = 5, 7, 50001
_JPEG_2000 = (33003, 33004, 33005, 34712)
_LZW_BEGINS = re.compile(rb"\x80[\0-\x7f]")  # the code 256, of TIFF 6's order of bits
_LZW_END = 257


def samples(
    data: Data, tags: Directory, at: int, depth: int, *, accept_truncated: bool
) -> tuple[NDArray[Any], bool]:
    """(height, width, samples) as stored, and whether some strip or tile was not there.

    tags: the page's directory. at: the byte that it begins at. depth: bits a sample, up to 16.
    Raises DecodeError or UnsupportedError, and what codecs raise.
    """
    _check(tags)
    # It tells what it thinks of a file at length; what matters raises.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    file = io.BytesIO(data) if isinstance(data, bytes) else cast(IO[bytes], data)
    with tifffile.TiffFile(file) as opened:
        opened.filehandle.seek(at)  # not by its number: that follows the chain
        page = tifffile.TiffPage(opened, index=0)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        shape = (planes, page.imagelength, page.imagewidth, page.samplesperpixel // planes)
        result = np.zeros(shape, np.uint8 if depth <= 8 else np.uint16)
        missing = False
        for index in range(_count(tags)):
            try:
                missing |= _decode(data, page, index, result, accept=accept_truncated)
            except (DecodeError, IndexError, ValueError, RuntimeError):
                if not accept_truncated:
                    raise
                missing = True
    return np.concatenate([*result], axis=2) if planes > 1 else result[0], missing


def _decode(
    data: Data, page: tifffile.TiffPage, index: int, result: NDArray[Any], *, accept: bool
) -> bool:
    """One strip or tile, into its place; whether its end was missing (accept: then what there is).

    Some decoders go on in gray or in noise where their data end, so that the end is looked for.
    """
    start, size = page.dataoffsets[index], page.databytecounts[index]
    part = data[start : start + size]
    is_whole = _IS_WHOLE.get(page.compression)
    whole = 0 < size == len(part) and (is_whole is None or is_whole(part))
    if whole and page.compression == _JPEG:
        whole, _ = jpeg.check(part, page.jpegtables)
    if not whole and accept and part:
        part = part + jpeg.END if page.compression == _JPEG else part.ljust(size, b"\0")
    elif not whole:
        message = f"part {index}, perhaps with a gap, lies at byte {start:,} with {size:,} bytes"
        raise DecodeError(
            "decode_failed", f"the file ends too soon: {message}, of {len(data):,} in all"
        )
    decoded, (plane, _, top, left, _), _ = page.decode(
        part, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader
    )
    if decoded is None:
        raise DecodeError("decode_failed", f"part {index} is empty")
    room = result[plane, top : top + decoded.shape[1], left : left + decoded.shape[2]]
    room[:] = decoded[0, : room.shape[0], : room.shape[1]]
    return not whole


def _is_whole_lzw(part: bytes) -> bool:
    """Whether there is an end mark before zeros at the end, where some were not filled in.

    Eight bytes of zeros are four codes of the level 0 at least: an encoder has one for a run of it.
    """
    if any(part[-8:]) or not _LZW_BEGINS.match(part):
        return any(part)
    last = int.from_bytes(part.rstrip(b"\0")[-3:])
    return (last // (last & -last)) & 0x1FF == _LZW_END


_IS_WHOLE: dict[int, Callable[[bytes], bool]] = {
    _LZW: _is_whole_lzw,
    **dict.fromkeys(_JPEG_2000, jpeg2000.is_whole),
    _WEBP: webp.is_whole,
}


def _check(tags: Directory) -> None:
    """Raises before anything is allocated by what the strips or tiles say of themselves."""
    compression = tags.number(_COMPRESSION, 1)
    if compression != 1 and compression not in tifffile.TIFF.DECOMPRESSORS:
        raise UnsupportedError("unsupported_format", f"compression {compression} of TIFF")
    if tags.number(_DEPTH, 1) != 1:
        raise UnsupportedError("unsupported_format", "a volume of voxels in a TIFF")
    width, height = tags.number(_WIDTH, 0), tags.number(_HEIGHT, 0)
    across, down = tags.number(_TILE_WIDTH, width), tags.number(_TILE_HEIGHT, 1)
    # A tile may reach over the picture's edges, which costs memory; more than this is no tiling.
    if across * down > 4 * max(width * height, 2**20):
        message = f"tiles of {across:,} x {down:,} in {width:,} x {height:,} pixels"
        raise DecodeError("decode_failed", message)
    found = max(tags.count(_STRIPS), tags.count(_TILES))
    if not found or found < _count(tags):
        raise DecodeError(
            "decode_failed", f"{found:,} strips or tiles, {_count(tags):,} are needed"
        )


def _count(tags: Directory) -> int:
    """How many strips or tiles make up the page."""
    width, height = tags.number(_WIDTH, 0), tags.number(_HEIGHT, 0)
    planes = tags.number(_SAMPLES, 1) if tags.number(_PLANAR, 1) == 2 else 1
    if tags.count(_TILE_WIDTH):
        across, down = tags.number(_TILE_WIDTH, 1), tags.number(_TILE_HEIGHT, 1)
        return planes * math.ceil(width / across) * math.ceil(height / down)
    rows = min(tags.number(_ROWS, height), height)
    return planes * math.ceil(height / rows)
