"""Image file directories: the tables of numbered tags that TIFF and MPF are made of."""

import mmap
import struct
from dataclasses import dataclass

from pipeline.errors import DecodeError

_ORDERS = {b"II": "<", b"MM": ">"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I"} | {
    16: "Q",
    17: "q",
    18: "Q",
}

_MOST_ENTRIES = 4096  # cameras write some dozens
_MOST_NUMBERS = 3 * 65_536  # the longest that we ask for is a colour map


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
    order: str
    """`<` or `>`, as struct takes it."""
    big: bool
    """BigTIFF: eight bytes for counts and offsets."""
    first: int
    """Where the first directory stands."""

    def directory(self, offset: int) -> "Directory":
        """Raises DecodeError or struct.error where there is none."""
        count_code, entry_code, next_code = ("Q", "HHQ8s", "Q") if self.big else ("H", "HHI4s", "I")
        (count,) = struct.unpack_from(self.order + count_code, self.data, offset)
        if count > _MOST_ENTRIES:
            raise DecodeError(
                "decode_failed",
                f"a directory of {count:,} tags, at most {_MOST_ENTRIES:,} are read",
            )
        start = offset + struct.calcsize(self.order + count_code)
        size = struct.calcsize(self.order + entry_code)
        end = start + count * size
        if end > len(self.data):
            raise _beyond(end, self.data)
        # The value's bytes are the last of an entry, or it tells where they are.
        room = 8 if self.big else 4
        entries = struct.iter_unpack(self.order + entry_code, self.data[start:end])
        tags = {
            tag: (kind, length, start + (index + 1) * size - room)
            for index, (tag, kind, length, _) in enumerate(entries)
        }
        (following,) = struct.unpack_from(self.order + next_code, self.data, end)
        return Directory(self, tags, following)


@dataclass(frozen=True, slots=True)
class Directory:
    """One table of tags."""

    stream: Stream
    tags: dict[int, tuple[int, int, int]]
    """Type, count and the place of the value or its offset, by number."""
    following: int
    """Where the next directory stands, 0 where there is none."""

    def count(self, tag: int) -> int:
        """How many values the tag has."""
        return self.tags[tag][1] if tag in self.tags else 0

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag; none where it is missing or holds something else."""
        kind, count, place = self.tags.get(tag, (0, 0, 0))
        if kind not in _CODES or not count:
            return ()
        if count > _MOST_NUMBERS:
            raise DecodeError(
                "decode_failed",
                f"tag {tag} of {count:,} values, at most {_MOST_NUMBERS:,} are read",
            )
        data, order = self.stream.data, self.stream.order
        room, code = (8, "Q") if self.stream.big else (4, "I")
        if count * _SIZES[kind] > room:
            (place,) = struct.unpack_from(order + code, data, place)
        if place + count * _SIZES[kind] > len(data):
            raise _beyond(place + count * _SIZES[kind], data)
        return struct.unpack_from(f"{order}{count}{_CODES[kind]}", data, place)

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        return (self.numbers(tag) or (default,))[0]


def stream(data: Data) -> Stream:
    """Raises DecodeError or struct.error where the bytes begin in another way."""
    order = _ORDERS.get(data[:2])
    if order is None:
        raise DecodeError("decode_failed", f"no byte order in {data[:2]!r}")
    version, short = struct.unpack_from(order + "HI", data, 2)
    if version == 42:
        return Stream(data, order, big=False, first=short)
    if version != 43:
        raise DecodeError("decode_failed", f"version {version} of TIFF, 42 and 43 are known")
    (first,) = struct.unpack_from(order + "Q", data, 8)
    return Stream(data, order, big=True, first=first)


def _beyond(end: int, data: Data) -> DecodeError:
    return DecodeError(
        "decode_failed", f"the file ends too soon: a tag reaches byte {end:,} of {len(data):,}"
    )
