"""GIF's blocks: what its header says; frames are counted by their descriptors, not decoded."""

import struct
from dataclasses import dataclass

from pipeline.images.image import Facts
from pipeline.images.levels import palette_channels
from pipeline.images.walk import gif_blocks, gif_palette_bytes

_GRAPHIC_CONTROL = 0xF9


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
    width, height = struct.unpack_from("<HH", data, 6)
    palette = data[13 : 13 + gif_palette_bytes(data, 10)]
    end, frames, transparent = 13 + len(palette), 0, False
    for block in gif_blocks(data):
        end = block.end
        if block.label == _GRAPHIC_CONTROL and not frames:
            transparent = bool(data[block.start + 3] & 1)
        elif block.label is None:
            if not frames:
                palette = data[block.start + 10 : block.parts - 1] or palette
                # Pillow makes room for what of the first frame lies beyond the screen.
                left, top, across, down = struct.unpack_from("<4H", data, block.start + 1)
                width, height = max(width, left + across), max(height, top + down)
            frames += 1
    return _Blocks(width, height, frames, palette, transparent, end)
