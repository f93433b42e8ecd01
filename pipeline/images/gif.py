"""GIF's blocks: what its header says; frames are counted by their descriptors, not decoded."""

import struct
from dataclasses import dataclass

from pipeline.images.image import Facts
from pipeline.images.levels import palette_channels

_EXTENSION, _FRAME = 0x21, 0x2C
_GRAPHIC_CONTROL = 0xF9
_OWN_PALETTE = 0x80


@dataclass(frozen=True, slots=True)
class _Blocks:
    width: int
    height: int
    frames: int
    palette: bytes
    """The first frame's."""
    transparent: bool
    """Whether the first frame has a transparent entry."""
    end: int
    """Where the last block ends, which may lie beyond the file's."""


def facts(data: bytes) -> Facts:
    """Raises what struct and indices do where the header is cut short."""
    said = _blocks(data)
    depth = max(1, (len(said.palette) // 3 - 1).bit_length())
    return Facts(
        "gif",
        "P",
        depth,
        max(1, said.frames),
        said.width,
        said.height,
        palette_channels(said.palette) + said.transparent,
        "palette",
        "transparent_colour" if said.transparent else "none",
    )


def is_whole(data: bytes) -> bool:
    """Whether the file ends with its end mark, or goes on after the last block at least."""
    return _blocks(data).end < len(data)


def completed(data: bytes) -> bytes:
    """A file that was cut in a frame's samples, with as much of the first entry as it may need.

    A code has at most 12 bits, and that of the first entry, zero, is good at any time.
    """
    said = _blocks(data)
    missing = max(0, said.end - 1 - len(data))  # of the part that was cut
    parts = 1 + said.width * said.height * 12 // 8 // 255
    return data + bytes(missing) + (b"\xff" + bytes(255)) * parts + b"\0;"


def _blocks(data: bytes) -> _Blocks:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    palette = _palette(data, 13, flags)
    at, frames, transparent = 13 + len(palette), 0, False
    while at < len(data) and data[at] in (_EXTENSION, _FRAME):
        if data[at] == _FRAME:
            own = _palette(data, at + 10, data[at + 9])
            if not frames:
                palette = own or palette
                # Pillow makes room for what of the first frame lies beyond the screen.
                left, top, across, down = struct.unpack_from("<4H", data, at + 1)
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
            at += 10 + len(own) + 1  # and the codes' least width
        else:
            if data[at + 1] == _GRAPHIC_CONTROL and not frames:
                transparent = bool(data[at + 3] & 1)
            at += 2
        while at < len(data) and data[at]:  # the block's parts, each after its length
            at += 1 + data[at]
        at += 1
    return _Blocks(width, height, frames, palette, transparent, at)


def _palette(data: bytes, at: int, flags: int) -> bytes:
    return data[at : at + (6 << (flags & 7))] if flags & _OWN_PALETTE else b""
