"""EXIF, read and built: a TIFF stream of directories of tagged values.

Formats: TIFF 6.0, of 3 June 1992; CIPA DC-008-2023 (Exif 3.0).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from pipeline.errors import DecodeError
from pipeline.images import ifd
from pipeline.images.ifd import LONG, RATIONAL, SHORT, SIZES, Directory, Entry, Order, Stream

Value = tuple[int, int, bytes]
"""Type, count, and the bytes of a tag's value."""

_UNITS = {1: 1, 2: 1, 5: 4, 6: 1, 7: 1, 10: 4, 11: 4, 12: 8}  # what a change of order turns round

ORIENTATION = 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
MAKER_NOTE = 0x927C
NO_UNIT, INCH, CENTIMETRE = 1, 2, 3
POINTERS = {"exif": ("ifd0", 0x8769), "gps": ("ifd0", 0x8825), "interop": ("exif", 0xA005)}
"""The directories below the first, each with where its offset stands."""

STORAGE = frozenset(
    {254, 255, *range(258, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 317, 320}
    | {*range(322, 326), 330, 332, 334, *range(338, 342), 347, *range(512, 522), 529, 530, 532}
)
"""Tags of the first directory that say how a file stores its samples."""
MAX_LONG = 2**32 - 1
_HEADER = 0, 8


class BrokenExifError(ValueError):
    """Not a TIFF stream with a readable first directory."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A stream with its directories found; they lie inside it and over no other one."""

    stream: Stream
    directories: dict[str, Directory] = field(default_factory=dict[str, Directory])
    entries: dict[str, dict[int, Entry]] = field(default_factory=dict[str, dict[int, Entry]])
    """Those of each directory that are sound, by tag."""

    @property
    def tables(self) -> list[tuple[int, int]]:
        """Where the header and the directories lie."""
        return [_HEADER, *(directory.span for directory in self.directories.values())]

    @property
    def broken(self) -> bool:
        """Whether entries had to be left out."""
        return any(
            found.stated > len(self.entries[name]) for name, found in self.directories.items()
        )


def check(stream: bytes) -> bool:
    """Whether everything in it is sound. Raises BrokenExifError if nothing is."""
    return not parse(stream).broken


def entries(stream: bytes, order: Order = "<") -> dict[str, dict[int, Value]]:
    """What it says: directory -> tag -> value, the bytes in the order asked for.

    Directories: ifd0, exif, gps, interop; those that exist. The offsets that join them are left
    out, and the thumbnail's directory. Maker notes (0x927C) are as they are, in their own order.
    Raises BrokenExifError.
    """
    parsed = parse(stream)
    pointers = {tag for _, tag in POINTERS.values()}
    return {
        name: {
            tag: (entry.type, entry.length, _ordered(parsed.stream, entry, order))
            for tag, entry in found.items()
            if tag not in pointers
        }
        for name, found in parsed.entries.items()
    }


def maker_note(stream: bytes) -> tuple[int, bytes] | None:
    """Where it begins, and its bytes; None if there is none outside its entry."""
    try:
        parsed = parse(stream)
    except BrokenExifError:
        return None
    entry = parsed.entries.get("exif", {}).get(MAKER_NOTE)
    return (entry.start, parsed.stream.value(entry)) if entry and entry.size > 8 else None


def _ordered(stream: Stream, entry: Entry, order: Order) -> bytes:
    """A value's bytes in the order asked for."""
    value = stream.value(entry)
    unit = _UNITS.get(entry.type, SIZES[entry.type])
    if order == stream.order or unit == 1:
        return value
    return b"".join(value[at : at + unit][::-1] for at in range(0, len(value), unit))


def orientation(stream: bytes) -> int:
    """1 to 8; 1 where there is none, or none that means anything. Raises BrokenExifError."""
    value = _number(parse(stream), ORIENTATION)
    return value if value in range(1, 9) else 1


def turned(block: bytes) -> int:
    """The orientation that a container's block says; 1 where it is broken, as it is dropped then.

    block: the first that is not empty, which is the one that is kept and edited.
    """
    try:
        return orientation(block.removeprefix(b"Exif\0\0"))
    except BrokenExifError:
        return 1


def resolution(stream: bytes) -> tuple[float, float] | None:
    """Pixels an inch, across and down as stored; None if not said. Raises BrokenExifError."""
    parsed = parse(stream)
    per_inch = inches(_number(parsed, RESOLUTION_UNIT, default=INCH))
    return _densities(parsed, per_inch) if per_inch else None


def aspect(stream: bytes) -> tuple[float, float] | None:
    """The same where it has no unit, so that only one in relation to the other says something."""
    parsed = parse(stream)
    unit = _number(parsed, RESOLUTION_UNIT, default=INCH)
    return _densities(parsed, Fraction(1)) if unit == NO_UNIT else None


def _densities(parsed: Parsed, factor: Fraction) -> tuple[float, float] | None:
    across, down = (
        rational(parsed.stream, parsed.entries["ifd0"].get(tag))
        for tag in (X_RESOLUTION, Y_RESOLUTION)
    )
    return (float(across * factor), float(down * factor)) if across and down else None


def inches(unit: int) -> Fraction | None:
    """How many of TIFF's resolution units an inch has; None for "no unit"."""
    return {INCH: Fraction(1), CENTIMETRE: Fraction(254, 100)}.get(unit)


def with_resolution(stream: bytes | None, dpi: tuple[float, float]) -> bytes:
    """The stream with another resolution, or one that says nothing else.

    The first directory moves to the end, all else stays. Raises BrokenExifError.
    """
    before = resolution(stream) if stream else None
    if stream and before and max(abs(a - b) for a, b in zip(before, dpi, strict=True)) < 0.01:
        return stream
    parsed = parse(stream) if stream else None
    order: Order = parsed.stream.order if parsed else "<"
    said: dict[int, Value] = {
        tag: (RATIONAL, 1, packed(order, Fraction(side)))
        for tag, side in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True)
    }
    said[RESOLUTION_UNIT] = SHORT, 1, struct.pack(f"{order}H", INCH)
    if not parsed:
        return build({"ifd0": said}, order)
    buffer = bytearray(parsed.stream.data)
    records = {
        tag: parsed.stream.data[entry.at : entry.at + 12]
        for tag, entry in parsed.entries["ifd0"].items()
    }
    for tag, value in said.items():
        records[tag] = record(buffer, order, tag, value, None)
    _align(buffer)
    struct.pack_into(f"{order}I", buffer, 4, len(buffer))
    buffer += struct.pack(f"{order}H", len(records))
    buffer += b"".join(records[tag] for tag in sorted(records)) + bytes(4)
    return bytes(buffer)


def build(
    directories: Mapping[str, Mapping[int, Value]], order: Order, *, note_at: int | None = None
) -> bytes:
    """A stream that says this; the bytes of the values are in that order already.

    note_at: where the maker note shall begin, not before 8: what its own offsets count on.
    """
    buffer = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4)
    if note_at is not None:
        buffer += bytes(note_at - len(buffer)) + directories["exif"][MAKER_NOTE][2]
    at = _build(buffer, "ifd0", directories, order, note_at)
    struct.pack_into(f"{order}I", buffer, 4, at)
    return bytes(buffer)


def _build(
    buffer: bytearray,
    name: str,
    directories: Mapping[str, Mapping[int, Value]],
    order: Order,
    note_at: int | None,
) -> int:
    """Appends a directory and those below it; where it begins."""
    values = dict(directories.get(name, {}))
    for below, (parent, tag) in POINTERS.items():
        if parent == name and directories.get(below):
            at = _build(buffer, below, directories, order, note_at)
            values[tag] = LONG, 1, struct.pack(f"{order}I", at)
    places = {MAKER_NOTE: note_at} if name == "exif" else {}
    records = [record(buffer, order, tag, values[tag], places.get(tag)) for tag in sorted(values)]
    _align(buffer)
    at = len(buffer)
    buffer += struct.pack(f"{order}H", len(records)) + b"".join(records) + bytes(4)
    return at


def parse(data: bytes) -> Parsed:
    """Finds the directories that are sound.

    Raises BrokenExifError if the first one is not, or if values lie over each other so much that
    they add up to more than the whole stream: 200 KB could stand for gigabytes.
    """
    try:
        stream = ifd.stream(data)
    except DecodeError as error:
        raise BrokenExifError(str(error)) from error
    if stream.big or len(data) > MAX_LONG:
        raise BrokenExifError(f"a stream of {len(data):,} bytes, at first {data[:8]!r}")
    parsed = Parsed(stream)
    first = directory_at(parsed, stream.first, linked=True)
    if not first:
        raise BrokenExifError(f"no directory at {stream.first} of {len(data)} bytes")
    _add(parsed, "ifd0", first)
    for name, (parent, tag) in POINTERS.items():
        above = parsed.entries.get(parent, {})
        if tag not in above:
            continue
        if below := directory_at(parsed, stream.pointer(above[tag])):
            _add(parsed, name, below)
        else:
            del above[tag]
    total = sum(entry.size for found in parsed.entries.values() for entry in found.values())
    if total > len(data):
        raise BrokenExifError(f"{total:,} bytes of values in a stream of {len(data):,}")
    return parsed


def _add(parsed: Parsed, name: str, found: Directory) -> None:
    parsed.directories[name] = found
    parsed.entries[name] = found.sound(SIZES)  # BigTIFF's types are none of EXIF's


def directory_at(parsed: Parsed, at: int, *, linked: bool = False) -> Directory | None:
    """The directory there, unless it is cut short or lies over the header or one that was found.

    linked: as of `ifd.Stream.directory`.
    """
    try:
        found = parsed.stream.directory(at, linked=linked)
    except DecodeError:
        return None
    return None if any(overlap(found.span, table) for table in parsed.tables) else found


def span(entry: Entry) -> tuple[int, int]:
    """Where a value lies that stands outside its entry; else empty."""
    return (entry.start, entry.start + entry.size) if entry.size > 4 else (0, 0)


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two ranges, each to before its end, have a byte in common."""
    return one[0] < other[1] and other[0] < one[1]


def _number(parsed: Parsed, tag: int, default: int = 0) -> int:
    """A tag of the first directory that holds one whole number."""
    entry = parsed.entries["ifd0"].get(tag)
    if not entry or entry.length != 1 or entry.type not in (SHORT, LONG):
        return default
    letter = "H" if entry.type == SHORT else "I"
    (value,) = struct.unpack_from(parsed.stream.order + letter, parsed.stream.data, entry.start)
    return value


def rational(stream: Stream, entry: Entry | None) -> Fraction | None:
    """An entry's one value; None where it is none, or divided by zero."""
    if not entry or entry.type != RATIONAL or entry.length != 1:
        return None
    above, below = stream.long(entry.start), stream.long(entry.start + 4)
    return Fraction(above, below) if below else None


def ratio(aspect: float) -> tuple[int, int]:
    """Two whole numbers of 16 bits in that relation, or near it. aspect: 1e-4 to 1e4."""
    near = Fraction(aspect).limit_denominator(int(65_535 / max(1, aspect)))
    return near.numerator, near.denominator


def packed(order: Order, value: Fraction) -> bytes:
    """Two 32-bit numbers, as near as they come."""
    value = min(value, Fraction(MAX_LONG))
    value = value.limit_denominator(max(1, min(10**6, int(MAX_LONG // (value + 1)))))
    return struct.pack(f"{order}II", value.numerator, value.denominator)


def record(buffer: bytearray, order: Order, tag: int, value: Value, place: int | None) -> bytes:
    """A directory's entry; a value that does not fit in goes to its place, or to the end."""
    kind, count, data = value
    head = struct.pack(f"{order}HHI", tag, kind, count)
    if len(data) <= 4:
        return head + data.ljust(4, b"\0")
    if place is None:
        _align(buffer)
        place = len(buffer)
    buffer[place : place + len(data)] = data
    return head + struct.pack(f"{order}I", place)


def _align(buffer: bytearray) -> None:
    buffer += bytes(len(buffer) % 2)
