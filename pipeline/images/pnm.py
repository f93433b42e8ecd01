"""Netpbm's bitmaps, graymaps and pixmaps: plain and raw, up to 16 bits."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.images.image import Colour, Facts, Samples
from pipeline.images.levels import full_range

# A comment, or else a group: whole words, not too many, as each of them becomes an object.
_PIECE = re.compile(rb"#[^\r\n]*|([^#]{1,65000}[^\s#]*)")
_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})")
_KINDS: dict[int, tuple[Colour, str, int]] = {
    1: ("bilevel", "1", 1),
    2: ("gray", "L", 1),
    3: ("rgb", "RGB", 3),
}


def facts(data: bytes) -> Facts:
    """Raises DecodeError."""
    kind, width, height, highest, _ = _header(data)
    colour, mode, channels = _KINDS[(kind - 1) % 3 + 1]
    return Facts("pnm", mode, highest.bit_length(), 1, width, height, channels, colour)


def samples(data: bytes, *, accept_truncated: bool) -> tuple[Samples, bool]:
    """(height, width, 1 or 3) in full range, and whether the end was missing (then it is black)."""
    kind, width, height, highest, start = _header(data)
    channels = _KINDS[(kind - 1) % 3 + 1][2]
    count = width * height * channels
    found: NDArray[Any]
    if kind <= 3:
        found = _plain(data, start, count, digits=kind == 1)
    elif kind == 4:
        count = height * ((width + 7) // 8)
        found = np.frombuffer(data[start : start + count], np.uint8)
    else:
        stored = np.dtype(">u2" if highest > 255 else np.uint8)
        whole = max(0, min(count, (len(data) - start) // stored.itemsize))
        found = np.frombuffer(data, stored, whole, start)
    missing = count - len(found)
    if missing and not accept_truncated:
        message = f"{len(found):,} samples of {count:,}: the file ends too soon"
        raise DecodeError("decode_failed", message)
    found = np.concatenate([found, np.zeros(missing, found.dtype)]) if missing else found
    if kind == 4:
        found = np.unpackbits(found.reshape(height, -1), axis=1, count=width)
    levels = full_range(found.reshape(height, width, channels), highest)
    if kind in (1, 4):  # a set bit is black
        np.subtract(255, levels, out=levels)
    return levels, bool(missing)


def rest(data: bytes) -> bytes:
    """What follows the picture: none in the plain kinds. Raises DecodeError."""
    kind, width, height, highest, start = _header(data)
    return b"" if kind <= 3 else data[start + _raw_bytes(kind, width, height, highest) :]


def _raw_bytes(kind: int, width: int, height: int, highest: int) -> int:
    """Of the samples of a raw kind."""
    line = (width + 7) // 8 if kind == 4 else width * _KINDS[kind - 3][2] * (1 + (highest > 255))
    return height * line


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    """Kind (1 to 6), width, height, highest level, and where the samples begin."""
    kind, at, numbers = data[1] - ord("0"), 2, list[int]()
    while len(numbers) < (2 if kind in (1, 4) else 3):
        found = _NUMBER.match(data, at)
        if not found:
            raise DecodeError("decode_failed", f"no header of P{kind}: {data[:32]!r}")
        numbers.append(int(found[1]))
        at = found.end()
    width, height, highest = (*numbers, 1)[:3]
    if not (width and height and 0 < highest < 65_536):
        message = f"a header of {width} x {height} pixels, highest level {highest}"
        raise DecodeError("decode_failed", message)
    return kind, width, height, highest, at + _space(data, at, kind, width, height, highest)


def _space(data: bytes, at: int, *raw: int) -> int:
    """Bytes between the header and the samples.

    Netpbm says, and its readers read, one. But programs write lines that end in two, and then the
    file is one byte too long: read like that, each sample would be its neighbour's.
    """
    two = raw[0] > 3 and data[at : at + 2] == b"\r\n"
    return 2 if two and len(data) == at + 2 + _raw_bytes(*raw) else 1


def _plain(data: bytes, start: int, count: int, *, digits: bool) -> NDArray[np.uint16]:
    """So many numbers from there on, or as many as there are; at most 65,535, or 1 if digits."""
    made, filled = np.zeros(count, np.uint16), 0
    for piece in (found[1] for found in _PIECE.finditer(data, start) if found[1]):
        if digits:  # of a bitmap, which need no space between them
            text = piece.translate(None, b" \t\r\n\v\f")
            found = np.frombuffer(text, np.uint8)[: count - filled] - ord("0")
        else:
            words = piece.split(maxsplit=count - filled)[: count - filled]
            found = np.array(words, np.uint32)
        if len(found) and found.max() > (1 if digits else 65_535):
            raise DecodeError("decode_failed", "characters that are no samples")
        made[filled : filled + len(found)] = found
        filled += len(found)
        if filled == count:
            break
    return made[:filled]
