"""What JP2's boxes make of a codestream's components: a picture's colours, its alpha, the rest.

Format: ISO/IEC 15444-1 annex I (colr, pclr, cmap and cdef).
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images.image import Alpha, Colour, Samples
from pipeline.images.levels import bands, full_range

_ENUMERATED: dict[int, Colour] = {12: "cmyk", 14: "lab", 16: "rgb", 17: "gray", 18: "rgb"}
_SYCC = 18
_UNSTATED = 0  # to OpenJPEG, which writes it of what it does not know
_PROFILED: dict[bytes, Colour] = {b"CMYK": "cmyk", b"Lab ": "lab", b"RGB ": "rgb", b"GRAY": "gray"}
_BY_NUMBER, _BY_PROFILE = 1, (2, 3)
_NAMES = {"gray": ("L", 1), "rgb": ("RGB", 3), "cmyk": ("CMYK", 4), "lab": ("LAB", 3)}

_COLOUR = 0
_ALPHAS: dict[int, Alpha] = {1: "straight", 2: "premultiplied"}
_OF_ALL = (0, 65_535)
_MOST_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class _Palette:
    """A table of colours."""

    depths: tuple[int, ...]
    """Bits of each column."""
    columns: tuple[NDArray[np.uint16], ...]


@dataclass(frozen=True)
class Channels:
    """How components become samples."""

    colour: Colour
    """Of the samples, palettes resolved."""
    space: str
    """Pillow's name for it."""
    is_sycc: bool
    alpha: Alpha
    component_depth: int
    """Bits."""
    palette: _Palette | None
    """None also where no channel goes by it."""
    wanted: tuple[tuple[int, int | None], ...]
    """The colours in order, then alpha: the component, and its column of the palette or None."""
    spare: int
    """How many channels mean nothing to us."""

    @property
    def depth(self) -> int:
        """Bits of a component, or of a palette's entries where either has more than 8."""
        entries = max(self.palette.depths) if self.palette else 0
        deep = self.palette and max(entries, self.component_depth) > 8
        return entries if deep else self.component_depth

    @cached_property
    def palette_is_gray(self) -> bool:
        """Whether red, green and blue of a palette are alike in all its entries."""
        colours = self.wanted[:3]
        if self.colour != "rgb" or not self.palette or any(part is None for _, part in colours):
            return False
        tables = [self._table(column) for _, column in colours]
        same = all((table == tables[0]).all() for table in tables)
        return same and len({component for component, _ in colours}) == 1

    def resolved(self, stored: NDArray[Any]) -> Samples:
        """The samples that they stand for, in full range.

        stored: (height, width, components) as decoded. Indices behind the palette's end are of its
        last entry.
        """
        wanted = self.wanted[2:] if self.palette_is_gray else self.wanted
        if not self.palette:
            order = [component for component, _ in wanted]
            if order != [*range(stored.shape[2])]:
                stored = stored[:, :, order]
            return full_range(stored, 2**self.component_depth - 1)
        dtype: Any = np.uint8 if self.depth <= 8 else np.uint16
        made: NDArray[Any] = np.empty((*stored.shape[:2], len(wanted)), dtype)
        for place, (component, column) in enumerate(wanted):
            table = self._table(column)
            for band in bands(stored):
                made[band][:, :, place] = table.take(stored[band][:, :, component], mode="clip")
        return made

    def _table(self, column: int | None) -> Samples:
        """The samples that a column's entries are, or that a component's levels are themselves."""
        if column is None or not self.palette:
            numbers, depth = np.arange(2**self.component_depth), self.component_depth
        else:
            numbers, depth = self.palette.columns[column], self.palette.depths[column]
        highest, full = 2**depth - 1, 255 if self.depth <= 8 else 65_535
        levels = (np.minimum(numbers, highest).astype(np.uint64) * full + highest // 2) // highest
        return levels.astype(np.uint8 if full == 255 else np.uint16)


def read(boxes: dict[bytes, bytes], components: int, depth: int) -> Channels:
    """boxes: by kind, what is in each. components, depth: of the codestream, its bits each.

    A channel is alpha where a channel definition says so. Without one, more channels than the
    colour space has are of no kind that the file tells (I.5.3.6). Raises DecodeError or
    UnsupportedError.
    """
    palette = _palette(boxes[b"pclr"]) if b"pclr" in boxes else None
    mapped = _mapped(boxes, palette, components)
    if all(column is None for _, column in mapped):
        palette = None
    colour, space, is_sycc = _colour(boxes.get(b"colr", b""), len(mapped))
    if palette and (colour not in ("gray", "rgb") or is_sycc):
        raise UnsupportedError(
            "unsupported_colour", f"a palette of {'YCC' if is_sycc else space}, not gray or RGB"
        )
    colours = _NAMES[colour][1] if colour in _NAMES else len(mapped)
    order, alpha = _order(boxes.get(b"cdef", b""), len(mapped), colours)
    return Channels(
        colour=colour,
        space=space,
        is_sycc=is_sycc,
        alpha=alpha,
        component_depth=depth,
        palette=palette,
        wanted=tuple(mapped[channel] for channel in order),
        spare=len(mapped) - len(order),
    )


def _palette(body: bytes) -> _Palette:
    entries, columns = struct.unpack_from(">HB", body)
    if not 1 <= columns <= _MOST_COLUMNS:
        message = f"a palette of {columns} columns, 1 to {_MOST_COLUMNS} are read"
        raise DecodeError("decode_failed", message)
    depths = tuple((part & 127) + 1 for part in body[3 : 3 + columns])
    if max(depths) > 16 or any(part & 128 for part in body[3 : 3 + columns]):
        signs = ", ".join(
            f"{'signed ' * (part >> 7)}{depth}"
            for part, depth in zip(body[3 : 3 + columns], depths, strict=True)
        )
        raise UnsupportedError("unsupported_depth", f"a palette of {signs} bits, limit 16")
    line = np.dtype(
        [(f"{column}", ">u2" if bits > 8 else "u1") for column, bits in enumerate(depths)]
    )
    rest = body[3 + columns :]
    if not entries or len(rest) < entries * line.itemsize:
        message = f"a palette of {entries} entries in {len(rest)} bytes"
        raise DecodeError("decode_failed", message)
    table = np.frombuffer(rest, line, entries)
    return _Palette(
        depths, tuple(table[f"{column}"].astype(np.uint16) for column in range(columns))
    )


def _mapped(
    boxes: dict[bytes, bytes], palette: _Palette | None, components: int
) -> list[tuple[int, int | None]]:
    """Each channel's component, and its column of the palette or None. Raises DecodeError."""
    if not palette:
        return [(component, None) for component in range(components)]
    said = [*struct.iter_unpack(">HBB", boxes.get(b"cmap", b""))]
    mapped = [(component, column if by_palette else None) for component, by_palette, column in said]
    columns = len(palette.columns)
    if not mapped or any(at >= components or (part or 0) >= columns for at, part in mapped):
        message = f"{len(mapped)} channels of {components} components and {columns} columns"
        raise DecodeError("decode_failed", f"a palette without a use: {message}")
    return mapped


def _colour(stated: bytes, channels: int) -> tuple[Colour, str, bool]:
    """Colour, Pillow's name for it, and whether it is sYCC. Raises DecodeError.

    By the number of channels where nothing is stated, or gray and RGB where they do not suffice.
    """
    counted: Colour = "gray" if channels < 3 else "rgb"
    method, space, profile = stated[:1], int.from_bytes(stated[3:7]), stated[3:]
    colour: Colour = counted
    if method == bytes([_BY_NUMBER]) and len(stated) >= 7 and space != _UNSTATED:
        colour = _ENUMERATED.get(space, "other")
    elif method and method[0] in _BY_PROFILE and profile[36:40] == b"acsp":
        colour = _PROFILED.get(profile[16:20], "other")
    if colour == "other":
        name = f"JPEG 2000's {space}" if method[0] == _BY_NUMBER else f"{profile[16:20]!r}"
        return colour, name, False
    if channels < _NAMES[colour][1]:
        if colour != "rgb":
            message = f"{channels} components, {_NAMES[colour][0]} has {_NAMES[colour][1]}"
            raise DecodeError("decode_failed", message)
        colour = counted
    is_sycc = colour == "rgb" and method == bytes([_BY_NUMBER]) and space == _SYCC
    return colour, _NAMES[colour][0], is_sycc


def _order(definitions: bytes, channels: int, colours: int) -> tuple[list[int], Alpha]:
    """The channels that are colours, in order, then alpha, if there is one. Raises DecodeError.

    A definition says which colour, from 1, a channel belongs to; 0 is all of them.
    """
    said = {
        channel: (kind, of) for channel, kind, of in struct.iter_unpack(">HHH", definitions[2:])
    }
    if not said:
        return [*range(colours)], "none"
    if said.keys() != {*range(channels)}:
        raise DecodeError("decode_failed", f"{len(said)} of {channels} components defined")
    inks = [channel for channel, (kind, _) in said.items() if kind == _COLOUR]
    order = sorted(inks, key=lambda channel: said[channel][1])[:colours]
    if len(order) < colours:
        raise DecodeError("decode_failed", f"{len(order)} of {colours} colours defined")
    for kind, alpha in _ALPHAS.items():
        for channel in range(channels):
            if said[channel][0] == kind and said[channel][1] in _OF_ALL:
                return [*order, channel], alpha
    return order, "none"
