"""Image file directories: the tables of numbered tags that TIFF, EXIF and MPF are made of.

A directory is read leniently: what an entry says of its value is not looked at before it is asked
for, so that pages are counted fast, and one broken tag does not take the others with it.

Formats: TIFF 6.0, of 3 June 1992; Aware Systems' BigTIFF design; CIPA DC-008-2023 (Exif 3.0).
"""

import mmap
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.errors import DecodeError, TooLargeError

Order = Literal["<", ">"]
"""Of bytes, as struct takes it."""

BYTE, ASCII, SHORT, LONG, RATIONAL, IFD, UTF8 = 1, 2, 3, 4, 5, 13, 129
LONG8, IFD8 = 16, 18
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
"""Bytes of a value of each type of TIFF and EXIF."""
_SIZES = SIZES | {LONG8: 8, 17: 8, IFD8: 8}
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I"} | {
    LONG8: "Q",
    17: "q",
    IFD8: "Q",
}
_POINTERS = {LONG: "I", IFD: "I", LONG8: "Q", IFD8: "Q"}


class _Layout:
    """How a stream's numbers stand in it."""

    def __init__(self, order: Order, *, big: bool) -> None:
        counts, offsets = ("Q", "Q") if big else ("H", "I")
        self.order: Order = order
        self.big = big
        self.counts = struct.Struct(order + counts)
        self.offsets = struct.Struct(order + offsets)
        self.head = struct.Struct(f"{order}HH{offsets}")  # of an entry: tag, type, count
        self.entry_bytes = self.head.size + self.offsets.size
        self.tags = struct.Struct(f"{order}H{self.entry_bytes - 2}x")


_LAYOUTS = {
    b"II*\0": _Layout("<", big=False),
    b"MM\0*": _Layout(">", big=False),
    b"II+\0": _Layout("<", big=True),
    b"MM\0+": _Layout(">", big=True),
}
_MOST_ENTRIES = 2**16 - 1  # which classic TIFF can count
_MOST_OF_PAGE = 4096  # cameras write some dozens
_MOST_NUMBERS = 3 * 65_536  # the longest that we ask for is a colour map
_MOST_DIRECTORIES, _MOST_CHAINED = 65_536, 2**22  # of a chain, and their entries


class Entry(NamedTuple):
    """One tag of a directory."""

    at: int
    """Where it begins."""
    tag: int
    type: int
    length: int
    """How many values it has."""
    start: int
    """Where these begin, which may be beyond the stream's end."""
    size: int
    """Their bytes; 0 where the type is unknown."""


Data = bytes | mmap.mmap
"""A file, or a map of one that several processes read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page is found: whoever knows it need not follow the chain of directories again."""

    at: int
    """The byte that its directory begins at."""
    pages: int
    """Of the file; thumbnails and masks are none."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The bytes that directories stand in, from the byte order mark on."""

    data: Data
    layout: _Layout
    first: int
    """Where the first directory stands."""

    @property
    def order(self) -> Order:
        """Of the bytes of its numbers."""
        return self.layout.order

    @property
    def big(self) -> bool:
        """BigTIFF: eight bytes for counts and offsets."""
        return self.layout.big

    def long(self, at: int) -> int:
        """The 32-bit number there, which is inside the stream."""
        (number,) = struct.unpack_from(f"{self.order}I", self.data, at)
        return number

    def value(self, entry: Entry) -> bytes:
        """Its bytes, in the stream's order."""
        return self.data[entry.start : entry.start + entry.size]

    def pointer(self, entry: Entry) -> int:
        """Where the directory stands that an entry leads to; 0 if it leads to none.

        entry: a sound one.
        """
        code = _POINTERS.get(entry.type)
        if not code or entry.length != 1:
            return 0
        (at,) = struct.unpack_from(self.order + code, self.data, entry.start)
        return at

    def directory(self, at: int, *, linked: bool = True) -> "Directory":
        """The directory there. Raises DecodeError where there is none, or a part of one.

        linked: whether the offset of a next one belongs to it. Those that are read by their
        pointers alone are often written without.
        """
        layout, data = self.layout, self.data
        start = at + layout.counts.size
        if start > len(data):
            raise _beyond(start, data)
        (stated,) = layout.counts.unpack_from(data, at)
        if stated > _MOST_ENTRIES:
            raise _too_many(stated, _MOST_ENTRIES)
        end = start + stated * layout.entry_bytes
        if end > len(data):
            raise _beyond(end, data)
        places: dict[int, int] = {}
        place = start
        for (tag,) in layout.tags.iter_unpack(data[start:end]):
            places.setdefault(tag, place)
            place += layout.entry_bytes
        following = None
        if linked and end + layout.offsets.size <= len(data):
            (following,) = layout.offsets.unpack_from(data, end)
            end += layout.offsets.size
        return Directory(self, (at, end), stated, places, following)

    def chain(self) -> Iterator["Directory"]:
        """The first directory and those that follow it.

        Raises DecodeError where the chain is broken or a circle, and TooLargeError.
        """
        at, seen, entries = self.first, set[int](), 0
        while at:
            if at in seen:
                raise DecodeError("decode_failed", f"the directory at byte {at:,} comes up again")
            seen.add(at)
            directory = self.directory(at)
            entries += directory.stated
            if len(seen) > _MOST_DIRECTORIES or entries > _MOST_CHAINED:
                message = f"more than {_MOST_DIRECTORIES:,} directories or {_MOST_CHAINED:,} tags"
                raise TooLargeError("too_many_pages", f"{message} in a TIFF")
            if directory.stated > _MOST_OF_PAGE:
                raise _too_many(directory.stated, _MOST_OF_PAGE)
            if directory.following is None:
                raise _beyond(directory.span[1] + 1, self.data)
            yield directory
            at = directory.following


@dataclass(frozen=True, slots=True)
class Directory:
    """One table of tags."""

    stream: Stream
    span: tuple[int, int]
    """Where it begins and ends, with the offset of the next one if that belongs to it."""
    stated: int
    """Entries that it says it has."""
    places: dict[int, int]
    """Where each tag's entry begins, the first of its number, in the order of the table."""
    following: int | None
    """Where the next directory stands, 0 where there is none; None where it does not say."""

    def entry(self, tag: int) -> Entry | None:
        """The tag's, sound or not."""
        at = self.places.get(tag)
        if at is None:
            return None
        layout, data = self.stream.layout, self.stream.data
        _, kind, length = layout.head.unpack_from(data, at)
        start = at + layout.head.size
        size = _SIZES.get(kind, 0) * length
        if size > layout.offsets.size:
            (start,) = layout.offsets.unpack_from(data, start)
        return Entry(at, tag, kind, length, start, size)

    def sound(self, types: Container[int] = _SIZES) -> dict[int, Entry]:
        """The entries of these types with values that lie inside the stream, by tag."""
        end = len(self.stream.data)
        return {
            entry.tag: entry
            for entry in map(self.entry, self.places)
            if entry and entry.size and entry.start + entry.size <= end and entry.type in types
        }

    def count(self, tag: int) -> int:
        """How many values the tag has."""
        entry = self.entry(tag)
        return entry.length if entry else 0

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag; none where it is missing or holds something else.

        Raises DecodeError where they lie beyond the stream's end, or are too many.
        """
        entry = self.entry(tag)
        if not entry or entry.type not in _CODES or not entry.length:
            return ()
        if entry.length > _MOST_NUMBERS:
            raise DecodeError(
                "decode_failed",
                f"tag {tag} of {entry.length:,} values, at most {_MOST_NUMBERS:,} are read",
            )
        data, end = self.stream.data, entry.start + entry.size
        if end > len(data):
            raise _beyond(end, data)
        code = f"{self.stream.order}{entry.length}{_CODES[entry.type]}"
        return struct.unpack_from(code, data, entry.start)

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        return (self.numbers(tag) or (default,))[0]


def stream(data: Data) -> Stream:
    """Raises DecodeError where the bytes begin in another way."""
    layout = _LAYOUTS.get(data[:4])
    at = 8 if layout and layout.big else 4
    if not layout or len(data) < at + layout.offsets.size:
        raise DecodeError("decode_failed", f"no TIFF: {len(data)} bytes, at first {data[:8]!r}")
    (first,) = layout.offsets.unpack_from(data, at)
    return Stream(data, layout, first)


def _too_many(tags: int, most: int) -> DecodeError:
    return DecodeError("decode_failed", f"a directory of {tags:,} tags, at most {most:,} are read")


def _beyond(end: int, data: Data) -> DecodeError:
    return DecodeError(
        "decode_failed", f"the file ends too soon: a tag reaches byte {end:,} of {len(data):,}"
    )
