"""What a TIFF file's tags say beside its samples: classic and BigTIFF, of any page.

Formats: TIFF 6.0, of 3 June 1992; Aware Systems' BigTIFF design.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.images import exif
from pipeline.images.exif import Order, Value
from pipeline.images.ifd import Data

XMP, IPTC, PHOTOSHOP, ICC, C2PA = 700, 33723, 34377, 34675, 52545
BLOCKS = frozenset({XMP, IPTC, PHOTOSHOP, ICC})
"""Tags that hold other metadata whole."""

IMAGE_DESCRIPTION = 270
# What a person or a camera said of the picture. All else says how the file stores it, belongs to
# the program that wrote it, or points into the file.
_WORTH_KEEPING = frozenset(
    {269, 270, 271, 272, 274, 282, 283, 285, 286, 287, 296, 305, 306, 315, 316, 318, 319, 33432}
    | {18246, 18249, *range(40091, 40096)}  # Windows' rating, title, comment, author, ...
    | {33434, 33437, 34850, 34855, *range(36864, 36884), *range(37377, 37397), *range(37510, 37523)}
)
_SAYS_LITTLE = frozenset({274, 282, 283, 296})  # the orientation and the resolution
_POINTERS = frozenset({34665, 34853})
_STRUCTURE = exif.STORAGE | {256, 257, 301}
_KNOWN = _WORTH_KEEPING | _POINTERS | _STRUCTURE | BLOCKS | {C2PA}
# How files of microscopes say what their pages are; not true of the result.
_LAYOUTS = (b'{"shape"', b"ImageJ=", b"<?xml version")

_MOST_ENTRIES = 2**16
_HEADER, _INLINE = 8, 8  # bytes before all values of a stream, and that an entry itself may hold
_MOST_PADDED = 2**16 - 2**10  # of a JPEG's segment, with room for corrected values
_BIG_SIZES = exif.SIZES | {16: 8, 17: 8, 18: 8}


@dataclass(frozen=True, slots=True)
class Tags:
    """What is worth keeping of a page."""

    exif: bytes | None
    """A stream of its own, with the directories below; None where it would say next to nothing."""
    resolution: tuple[float, float] | None
    """Pixels an inch, across and down as stored."""
    blocks: dict[int, bytes]
    """Of BLOCKS those that there are."""
    incomplete: bool
    """Whether something was cut short or circular."""
    others: bool
    """Whether there are tags that are not kept, beyond those of the file's structure."""
    signed: bool
    """Whether there is a C2PA manifest."""
    moved: bool
    """Whether the maker note stands elsewhere in `exif` than in the file: its offsets may fail."""


def read(data: Data, page: int, take: Callable[[int], None], *, at: int = 0) -> Tags:
    """The tags of a page, from 0.

    at: where its directory begins, if that is known; then the page's number is not looked at.
    take: told the size of every value before it is read; raises what its caller wants raised.
    Raises exif.BrokenExifError if there is no such page.
    """
    file = _File(data, take)
    table = file.table(at or file.page(page))
    tables = {"ifd0": table}
    for name, (parent, tag) in exif.POINTERS.items():
        at = file.pointer(tables.get(parent, {}).get(tag))
        if at and at not in file.visited:
            tables[name] = file.table(at)
    kept = {name: file.values(found, name == "ifd0") for name, found in tables.items()}
    description = kept["ifd0"].get(IMAGE_DESCRIPTION)
    layout = description is not None and description[2].startswith(_LAYOUTS)
    if layout:
        del kept["ifd0"][IMAGE_DESCRIPTION]
    stream, moved = _stream(kept, file.order, tables.get("exif", {}).get(exif.MAKER_NOTE))
    says_little = kept["ifd0"].keys() <= _SAYS_LITTLE and not any(list(kept.values())[1:])
    return Tags(
        exif=None if says_little else stream,
        resolution=exif.resolution(stream),
        blocks={tag: file.value(table[tag])[2] for tag in sorted(BLOCKS & table.keys())},
        incomplete=file.incomplete,
        others=layout or not table.keys() <= _KNOWN,
        signed=C2PA in table,
        moved=moved,
    )


def _stream(
    kept: dict[str, dict[int, Value]], order: Order, note: "_Entry | None"
) -> tuple[bytes, bool]:
    """EXIF that says this, and whether its maker note stands elsewhere than in the file.

    A note's own offsets count from the file's beginning, so it stays as far from there as it was,
    unless EXIF became too large for a JPEG by that.
    """
    stream = exif.build(kept, order)
    if not note or note.size <= _INLINE or exif.MAKER_NOTE not in kept["exif"]:
        return stream, False
    if note.start < _HEADER or note.start + len(stream) > _MOST_PADDED:
        return stream, True
    return exif.build(kept, order, note_at=note.start), False


@dataclass(frozen=True, slots=True)
class _Entry:
    type: int
    count: int
    start: int
    size: int


class _File:
    """A TIFF file, and what was wrong with it so far."""

    def __init__(self, data: Data, take: Callable[[int], None]) -> None:
        orders: dict[bytes, tuple[Order, bool]] = {
            b"II*\0": ("<", False),
            b"MM\0*": (">", False),
            b"II+\0": ("<", True),
            b"MM\0+": (">", True),
        }
        if data[:4] not in orders or len(data) < 16:
            raise exif.BrokenExifError(f"{len(data)} bytes that begin with {data[:8]!r}")
        self.order: Order
        self.order, self._big = orders[data[:4]]
        self._data, self._take = data, take
        # The widths of counts and offsets, and an entry's bytes.
        self._count, self._offset, self._entry = ("Q", "Q", 20) if self._big else ("H", "I", 12)
        self.visited = set[int]()
        self.incomplete = False

    def page(self, number: int) -> int:
        """Where the directory of a page begins."""
        at = self._read(self._offset, 8 if self._big else 4)
        for _ in range(number):
            if at in self.visited or not at:
                raise exif.BrokenExifError(f"page {number} of {len(self.visited)}")
            self.visited.add(at)
            at = self._read(self._offset, self._end(at))
        return at

    def table(self, at: int) -> dict[int, _Entry]:
        """The sound entries of the directory there, by tag."""
        self.visited.add(at)
        end, found = self._end(at), dict[int, _Entry]()
        inline = struct.calcsize(f"={self._offset}")
        for place in range(end - self._stated(at) * self._entry, end, self._entry):
            tag, kind = self._read("H", place), self._read("H", place + 2)
            count = self._read(self._offset, place + 4)
            size = _BIG_SIZES.get(kind, 0) * count
            start = place + 4 + inline
            if size > inline:
                start = self._read(self._offset, start)
            if not size or start + size > len(self._data) or tag in found:
                self.incomplete = True
            else:
                found[tag] = _Entry(kind, count, start, size)
        return found

    def pointer(self, entry: _Entry | None) -> int:
        """The offset that an entry holds; 0 if it holds none that leads anywhere."""
        letter = {4: "I", 13: "I", 16: "Q", 18: "Q"}.get(entry.type) if entry else None
        if not entry or not letter or entry.count != 1:
            self.incomplete |= entry is not None
            return 0
        at = self._read(letter, entry.start)
        try:
            self._end(at)
        except exif.BrokenExifError:
            self.incomplete = True
            return 0
        return at

    def values(self, table: dict[int, _Entry], only_worth_keeping: bool) -> dict[int, Value]:
        """What entries say that classic TIFF, so EXIF, can say too."""
        pointers = {tag for _, tag in exif.POINTERS.values()}
        return {
            tag: self.value(entry)
            for tag, entry in table.items()
            if entry.type in exif.SIZES
            and tag not in pointers
            and (tag in _WORTH_KEEPING or not only_worth_keeping)
        }

    def value(self, entry: _Entry) -> Value:
        """Type, count and bytes, in the file's order."""
        self._take(entry.size)
        return entry.type, entry.count, self._data[entry.start : entry.start + entry.size]

    def _stated(self, at: int) -> int:
        return self._read(self._count, at)

    def _end(self, at: int) -> int:
        """Where the entries of the directory there end."""
        stated = self._stated(at)
        end = at + struct.calcsize(f"={self._count}") + stated * self._entry
        if stated >= _MOST_ENTRIES or end > len(self._data):
            raise exif.BrokenExifError(f"{stated} tags at {at} of {len(self._data)} bytes")
        return end

    def _read(self, letter: str, at: int) -> int:
        if at + struct.calcsize(f"={letter}") > len(self._data):
            raise exif.BrokenExifError(f"an offset of {at}, there are {len(self._data)} bytes")
        (value,) = struct.unpack_from(f"{self.order}{letter}", self._data, at)
        return value
