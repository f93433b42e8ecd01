"""What a TIFF file's tags say beside its samples: classic and BigTIFF, of any page.

Formats: TIFF 6.0, of 3 June 1992; Aware Systems' BigTIFF design.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from pipeline.errors import DecodeError
from pipeline.images import exif, ifd
from pipeline.images.exif import Value
from pipeline.images.ifd import Data, Directory, Entry, Order, Stream

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

_HEADER, _INLINE = 8, 8  # bytes before all values of a stream, and that an entry itself may hold
_MOST_PADDED = 2**16 - 2**10  # of a JPEG's segment, with room for corrected values


@dataclass(frozen=True, slots=True)
class Tags:
    """What is worth keeping of a page."""

    exif: bytes | None
    """A stream of its own, with the directories below; None where it would say next to nothing."""
    resolution: tuple[float, float] | None
    """Pixels an inch, across and down as stored."""
    aspect: tuple[float, float] | None
    """The same where there is no unit."""
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
    first = _page(data, page, at)
    file = _Page(first.stream, take)
    table = file.sound(first)
    tables = {"ifd0": table}
    for name, (parent, tag) in exif.POINTERS.items():
        pointer = tables.get(parent, {}).get(tag)
        if pointer and (below := file.below(pointer)):
            tables[name] = file.sound(below)
    kept = {name: file.values(found, name == "ifd0") for name, found in tables.items()}
    description = kept["ifd0"].get(IMAGE_DESCRIPTION)
    layout = description is not None and description[2].startswith(_LAYOUTS)
    if layout:
        del kept["ifd0"][IMAGE_DESCRIPTION]
    stream, moved = _stream(kept, first.stream.order, tables.get("exif", {}).get(exif.MAKER_NOTE))
    says_little = kept["ifd0"].keys() <= _SAYS_LITTLE and not any(list(kept.values())[1:])
    return Tags(
        exif=None if says_little else stream,
        resolution=exif.resolution(stream),
        aspect=exif.aspect(stream),
        blocks={tag: file.value(table[tag])[2] for tag in sorted(BLOCKS & table.keys())},
        incomplete=file.incomplete,
        others=layout or not table.keys() <= _KNOWN,
        signed=C2PA in table,
        moved=moved,
    )


def _stream(
    kept: dict[str, dict[int, Value]], order: Order, note: Entry | None
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


def _page(data: Data, number: int, at: int) -> Directory:
    """A page's directory; at: where it begins, if that is known. Raises BrokenExifError."""
    try:
        source = ifd.stream(data)
        if at:
            return source.directory(at)
        found = [*islice(source.chain(), number + 1)]
    except DecodeError as error:
        raise exif.BrokenExifError(str(error)) from error
    if len(found) <= number:
        raise exif.BrokenExifError(f"page {number} of {len(found)}")
    return found[number]


@dataclass(slots=True)
class _Page:
    """What is read of a page's directories, and whether something was wrong with them."""

    stream: Stream
    take: Callable[[int], None]
    visited: set[int] = field(default_factory=set[int])
    """Where the directories stand that were read."""
    incomplete: bool = False

    def sound(self, directory: Directory) -> dict[int, Entry]:
        """The sound entries of a directory, by tag."""
        self.visited.add(directory.span[0])
        found = directory.sound()
        self.incomplete |= directory.stated > len(found)
        return found

    def below(self, entry: Entry) -> Directory | None:
        """The directory that an entry leads to; None if there is none that is new."""
        try:
            found = self.stream.directory(self.stream.pointer(entry), linked=False)
        except DecodeError:
            self.incomplete = True
            return None
        return None if found.span[0] in self.visited else found

    def values(self, table: dict[int, Entry], only_worth_keeping: bool) -> dict[int, Value]:
        """What entries say that classic TIFF, so EXIF, can say too."""
        pointers = {tag for _, tag in exif.POINTERS.values()}
        return {
            tag: self.value(entry)
            for tag, entry in table.items()
            if entry.type in ifd.SIZES
            and tag not in pointers
            and (tag in _WORTH_KEEPING or not only_worth_keeping)
        }

    def value(self, entry: Entry) -> Value:
        """Type, count and bytes, in the file's order."""
        self.take(entry.size)
        return entry.type, entry.length, self.stream.value(entry)
