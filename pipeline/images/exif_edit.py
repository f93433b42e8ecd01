"""What EXIF says of a picture that was turned upright and enlarged: corrected in its place.

Maker notes hold offsets from the stream's beginning that only their maker knows. So a stream is
not written anew: values are corrected where they are, and whatever else there is stays where it
is, byte for byte.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from pipeline.images import exif
from pipeline.images.exif import ORIENTATION, X_RESOLUTION, Y_RESOLUTION, Parsed, Value
from pipeline.images.ifd import ASCII, LONG, RATIONAL, SHORT, Directory, Entry, Order, Stream

_OWN_BLOCKS = {700, 33723, 34377, 34675}  # XMP, IPTC, Photoshop, ICC: carried on their own
_COMPRESSED_BITS = 0x9102
_STALE = {"ifd0": exif.STORAGE | _OWN_BLOCKS, "exif": frozenset({_COMPRESSED_BITS})}

_WIDTHS = {("ifd0", 0x0100), ("exif", 0xA002), ("interop", 0x1001)}
_HEIGHTS = {("ifd0", 0x0101), ("exif", 0xA003), ("interop", 0x1002)}
_DENSITIES = {  # each with its partner the other way
    ("ifd0", X_RESOLUTION): Y_RESOLUTION,
    ("ifd0", Y_RESOLUTION): X_RESOLUTION,
    ("exif", 0xA20E): 0xA20F,  # of the focal plane
    ("exif", 0xA20F): 0xA20E,
}
_ACROSS = {X_RESOLUTION, 0xA20E}
_FOCAL_PLANE = {0xA20E, 0xA20F}
_SUBJECT_AREA, _SUBJECT_LOCATION = 0x9214, 0xA214
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_THUMBNAIL_TAGS = 64  # as many as any camera writes, with room: each is held against all others
_COLOUR_SPACE, _INTEROPERABILITY = ("exif", 0xA001), ("interop", 0x0001)
_SRGB, _OF_SRGB = 1, b"R98\0"
# White, primaries, curves and gamma of samples that were converted.
_OF_OLD_COLOURS = {"ifd0": frozenset({301, 318, 319}), "exif": frozenset({0xA500})}
_PADDING = 4  # fewer bytes than this after a value are nobody's


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the picture that a stream belongs to."""

    orientation: int
    """How it stood, 1 to 8; now it is upright."""
    stored: tuple[int, int]
    """Width and height as it stood."""
    size: tuple[int, int]
    """Width and height now."""
    scale_resolution: bool
    """Whether there are more pixels an inch now, or more inches."""
    into_srgb: bool = False
    """Whether the colours were converted."""

    @property
    def turned(self) -> bool:
        """Whether width and height changed places."""
        return self.orientation >= 5

    @property
    def factors(self) -> tuple[Fraction, Fraction]:
        """New pixels for each upright one, across and down."""
        width, height = self.stored[::-1] if self.turned else self.stored
        return Fraction(self.size[0], width), Fraction(self.size[1], height)


def edit(stream: bytes, change: Change) -> bytes:
    """The stream with what the change made untrue corrected in its place.

    Upright, of the new size and resolution, without thumbnail and without what described the old
    file; what is not sound is left out. Raises BrokenExifError.
    """
    parsed = exif.parse(stream)
    buffer = bytearray(stream)
    _wipe_thumbnail(buffer, parsed)
    kept: dict[str, list[Entry]] = {}
    for name, found in parsed.entries.items():
        stale = _STALE.get(name, frozenset[int]())
        if change.into_srgb:
            stale |= _OF_OLD_COLOURS.get(name, frozenset[int]())
        kept[name] = [entry for entry in found.values() if entry.tag not in stale]
    taken = parsed.tables + [exif.span(entry) for listed in kept.values() for entry in listed]
    for name, directory in parsed.directories.items():
        records = list[bytes]()
        for entry in kept[name]:
            value = _corrected(parsed, name, entry, change)
            if value == (entry.type, entry.length, parsed.stream.value(entry)):
                records.append(parsed.stream.data[entry.at : entry.at + 12])
            elif value:
                fits = entry.size >= len(value[2]) > 4
                # Writers let tags of one value share it.
                alone = fits and sum(exif.overlap(exif.span(entry), other) for other in taken) == 1
                place = entry.start if alone else None
                records.append(exif.record(buffer, parsed.stream.order, entry.tag, value, place))
        _write_table(buffer, parsed.stream.order, directory, records)
    return bytes(buffer)


def _corrected(parsed: Parsed, name: str, entry: Entry, change: Change) -> Value | None:
    """A tag's value now; None if nothing true can be said."""
    order, place = parsed.stream.order, (name, entry.tag)
    if place == ("ifd0", ORIENTATION):
        return SHORT, 1, struct.pack(f"{order}H", 1)
    if change.into_srgb and place == _COLOUR_SPACE:
        return SHORT, 1, struct.pack(f"{order}H", _SRGB)
    if change.into_srgb and place == _INTEROPERABILITY:
        return ASCII, len(_OF_SRGB), _OF_SRGB
    if place in _WIDTHS or place in _HEIGHTS:
        return _whole(order, change.size[0 if place in _WIDTHS else 1])
    if place in _DENSITIES:
        return _density(parsed, name, entry, change)
    if name == "exif" and entry.tag in (_SUBJECT_AREA, _SUBJECT_LOCATION):
        return _subject(parsed.stream, entry, change)
    return entry.type, entry.length, parsed.stream.value(entry)


def _whole(order: Order, value: int) -> Value:
    if value < 2**16:
        return SHORT, 1, struct.pack(f"{order}H", value)
    return LONG, 1, struct.pack(f"{order}I", value)


def _density(parsed: Parsed, name: str, entry: Entry, change: Change) -> Value | None:
    stream, source = parsed.stream, entry
    if change.turned:
        other = parsed.entries[name].get(_DENSITIES[name, entry.tag])
        source = other or entry
    before, value = exif.rational(stream, entry), exif.rational(stream, source)
    # The sensor's pixels are always more than they were.
    if value and (change.scale_resolution or entry.tag in _FOCAL_PLANE):
        value *= change.factors[0 if entry.tag in _ACROSS else 1]
    if value is None or value == before:
        return entry.type, entry.length, stream.value(entry)
    return RATIONAL, 1, exif.packed(stream.order, value)


def _subject(stream: Stream, entry: Entry, change: Change) -> Value | None:
    """A point, a circle (its diameter) or a rectangle (its sides), in pixels of the picture."""
    if entry.type != SHORT or entry.length not in (2, 3, 4):
        return None
    x, y, *sides = struct.unpack(f"{stream.order}{entry.length}H", stream.value(entry))
    x, y = upright(x, y, change.orientation, change.stored)
    if change.turned:
        sides.reverse()
    across, down = change.factors
    values = [round(x * across), round(y * down)]
    values += [round(side * by) for side, by in zip(sides, (across, down), strict=False)]
    if max(values) >= 2**16 or min(values) < 0:
        return None
    return SHORT, len(values), struct.pack(f"{stream.order}{len(values)}H", *values)


def upright(
    x: float, y: float, orientation: int, stored: tuple[float, float]
) -> tuple[float, float]:
    """Where a point of a picture as stored, of that width and height, lies in the upright one."""
    width, height = stored
    if orientation in (2, 3, 7, 8):
        x = width - x
    if orientation in (3, 4, 6, 7):
        y = height - y
    return (y, x) if orientation >= 5 else (x, y)


def _write_table(
    buffer: bytearray, order: Order, directory: Directory, records: Iterable[bytes]
) -> None:
    """The directory in its old place, with no other after it."""
    listed = list(records)
    table = struct.pack(f"{order}H", len(listed)) + b"".join(listed)
    start, end = directory.span
    buffer[start:end] = table.ljust(end - start, b"\0")


def _wipe_thumbnail(buffer: bytearray, parsed: Parsed) -> None:
    """Zeroes the second directory and its picture, or cuts them off where they are the end."""
    stream, first = parsed.stream, parsed.directories["ifd0"].following
    second = exif.directory_at(parsed, first, linked=True) if first else None
    if not second:
        return
    entries = second.sound()
    few = islice(entries.values(), _THUMBNAIL_TAGS)
    spans = [second.span, *(exif.span(entry) for entry in few)]
    if _THUMBNAIL in entries and _THUMBNAIL_BYTES in entries:
        start, size = (stream.pointer(entries[tag]) for tag in (_THUMBNAIL, _THUMBNAIL_BYTES))
        spans.append((start, min(start + size, len(buffer))))
    taken = parsed.tables + [
        exif.span(entry) for found in parsed.entries.values() for entry in found.values()
    ]
    for start, end in sorted(spans, reverse=True):
        if start >= end or any(exif.overlap((start, end), other) for other in taken):
            continue
        if end + _PADDING > len(buffer):
            del buffer[start:]
        else:
            buffer[start:end] = bytes(end - start)
