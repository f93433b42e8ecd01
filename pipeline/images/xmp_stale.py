"""What an XMP packet says of its picture's pixels and file: made true of the result, or taken out.

Formats: Adobe, XMP Specification, Part 2; Metadata Working Group, Guidelines 2.0 (regions); Google,
Photo Sphere XMP, Motion Photo 1.0 and Ultra HDR 1.1; IPTC Photo Metadata Standard 2024.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from pipeline.images.exif_edit import Change, upright
from pipeline.images.xmp import (
    ATTRIBUTE,
    PANORAMA_PIXELS,
    TAG,
    BrokenXmpError,
    Packet,
    short,
)
from pipeline.images.xmp_edit import Edit

_REGIONS, _DIMENSIONS, _AREA = "mwg-rs:Regions", "stDim:", "stArea:"
_OTHER_REGIONS = ("MP:RegionInfo", "Iptc4xmpExt:ImageRegion")
_IN_PIXELS = re.compile(rb"[>\"']\s*pixel\s*[<\"']")
# What lies in the source's file beside the picture: gain maps, depths, videos.
_ATTACHED = ("Container:", "DynamicContainer:", "Device:", "hdrgm:", "HDRGainMap:")
_VIDEO = ("GCamera:MotionPhoto", "GCamera:MicroVideo")
_OF_COLOURS = ("photoshop:ICCProfile", "tiff:WhitePoint", "tiff:PrimaryChromaticities")
_OF_CURVES = ("tiff:TransferFunction", "exif:Gamma")
_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{0,30})?([eE]-?\d{1,2})?")


def corrections(
    packet: Packet, change: Change, dpi: tuple[float, float] | None, *, plain: bool
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Statements with what is true now, or None, and the codes of what they tell of.

    dpi: of the result. plain: whether the source's samples were gray or RGB, as the result's are.
    Codes: attachments_dropped: gain maps, depths or videos, which a result has not;
    panorama_dropped: what a panorama that stood turned shows; regions_dropped: of other
    kinds than MWG's those in pixels, and all of a picture that stood turned.
    """
    names = {one.name for one in packet.statements()}
    attached = {one: None for one in names if one.startswith((*_ATTACHED, *_VIDEO))}
    regions = dict.fromkeys(_lost_regions(packet, change))
    panorama = _of_a_panorama(packet, change, names)
    codes = {
        "attachments_dropped": bool(attached),
        "panorama_dropped": None in panorama.values(),
        "regions_dropped": bool(regions),
    }
    said = _of_the_file(change, dpi) | panorama | attached | regions
    if change.into_srgb:
        said |= {"exif:ColorSpace": "1"} | dict.fromkeys((*_OF_COLOURS, *_OF_CURVES))
    if not plain:
        said["photoshop:ColorMode"] = None
    return said, tuple(code for code, lost in codes.items() if lost)


def _of_the_file(change: Change, dpi: tuple[float, float] | None) -> dict[str, str | None]:
    width, height = map(str, change.size)
    across, down = (f"{round(side * 100)}/100" for side in dpi) if dpi else (None, None)
    return {
        "tiff:Orientation": "1",
        "tiff:ImageWidth": width,
        "tiff:ImageLength": height,
        "exif:PixelXDimension": width,
        "exif:PixelYDimension": height,
        "tiff:XResolution": across,
        "tiff:YResolution": down,
        "tiff:ResolutionUnit": "2" if dpi else None,
        "tiff:BitsPerSample": None,
        "tiff:Compression": None,
        "tiff:PhotometricInterpretation": None,
        "tiff:SamplesPerPixel": None,
        "tiff:PlanarConfiguration": None,
        "tiff:YCbCrSubSampling": None,
        "tiff:NativeDigest": None,
        "exif:NativeDigest": None,
        "exif:CompressedBitsPerPixel": None,
        "exif:FocalPlaneXResolution": None,
        "exif:FocalPlaneYResolution": None,
        "exif:SubjectArea": None,
        "exif:SubjectLocation": None,
        "xmp:Thumbnails": None,
        "dc:format": None,
    }


def _of_a_panorama(packet: Packet, change: Change, names: set[str]) -> dict[str, str | None]:
    """Scaled. In one that stood turned the places were counted from another corner."""
    said = dict[str, str | None]()
    for name, way in PANORAMA_PIXELS.items():
        if name not in names:
            continue
        before = packet.text(name)
        known = change.orientation == 1 and _NUMBER.fullmatch(before)
        said[name] = str(round(float(before) * change.factors[way])) if known else None
    return said


def _lost_regions(packet: Packet, change: Change) -> Iterator[str]:
    for one in packet.statements():
        if one.name in _OTHER_REGIONS and (
            change.orientation > 1 or _IN_PIXELS.search(packet.data, one.start, one.end)
        ):
            yield one.name


def regions_turned(packet: Packet, change: Change) -> list[Edit]:
    """The edits that put faces and other regions (mwg-rs) where they are in the upright picture.

    Regions are parts of the picture as stored, but where the size that they say they were made for
    is that of the turned one. Raises BrokenXmpError.
    """
    edits = list[Edit]()
    regions = [
        range(one.start, one.end)
        for one in packet.statements()
        if one.name == _REGIONS and not one.is_attribute
    ]
    for structures in _Structures(packet.data, regions).read() if regions else ():
        edits += _region_edits(structures, change)
    return edits


def _region_edits(structures: "list[_Structure]", change: Change) -> Iterator[Edit]:
    orientation = change.orientation
    for one in structures:
        stated = one.numbers("stDim:w", "stDim:h")
        if change.turned and stated == change.stored[::-1] != change.stored:
            orientation = 1
    for one in structures:
        if one.numbers("stDim:w", "stDim:h"):
            yield from one.say({"stDim:w": change.size[0], "stDim:h": change.size[1]})
        if orientation > 1 and (centre := one.numbers("stArea:x", "stArea:y")):
            x, y = upright(*centre, orientation, (1.0, 1.0))
            said = {"stArea:x": x, "stArea:y": y}
            sides = one.numbers("stArea:w", "stArea:h")
            if sides and orientation >= 5:
                said |= {"stArea:w": sides[1], "stArea:h": sides[0]}
            yield from one.say(said)


@dataclass(slots=True)
class _Structure:
    """The fields of an area or of dimensions, whether they are elements or attributes."""

    fields: dict[str, tuple[int, int, str]] = field(default_factory=dict[str, tuple[int, int, str]])
    """Where each value begins and ends, without quotes, and the value."""

    def numbers(self, *names: str) -> tuple[float, float] | None:
        """Two of them; None if they are not both there."""
        texts = [self.fields[name][2].strip() for name in names if name in self.fields]
        if len(texts) != 2 or not all(_NUMBER.fullmatch(text) for text in texts):
            return None
        return float(texts[0]), float(texts[1])

    def say(self, values: dict[str, float]) -> Iterator[Edit]:
        """The edits that make it say this."""
        for name, value in values.items():
            start, end, _ = self.fields[name]
            yield start, end, f"{round(value, 9):.9f}".rstrip("0").rstrip(".").encode()


class _Structures:
    """Goes through a packet once, and finds the structures inside some of its statements."""

    def __init__(self, data: bytes, spans: list[range]) -> None:
        """spans: where the statements begin and end, in order."""
        self._data, self._spans, self._current = data, spans, 0
        self._parser = parser = expat.ParserCreate("UTF-8", " ")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self._open = list[_Structure]()
        self._found = [list[_Structure]() for _ in spans]
        self._text, self._text_at = list[str](), 0

    def read(self) -> list[list[_Structure]]:
        """Those of each statement."""
        self._parser.Parse(self._data, True)
        return [[one for one in found if one.fields] for found in self._found]

    def _is_inside(self, at: int) -> bool:
        """Whether that is inside the statement that has been come to. Never goes back."""
        while at >= self._spans[self._current].stop and self._current + 1 < len(self._spans):
            self._current += 1
        return at in self._spans[self._current]

    def _start(self, _: str, pairs: list[str]) -> None:
        structure = _Structure()
        self._open.append(structure)
        at = self._parser.CurrentByteIndex
        if not self._is_inside(at):
            return
        self._found[self._current].append(structure)
        tag = TAG.match(self._data, at)
        if not tag:
            raise BrokenXmpError(f"no tag at {at} of {len(self._data)}")
        self._text, self._text_at = [], tag.end()
        others = [
            one
            for one in ATTRIBUTE.finditer(self._data, tag.start(2), tag.end(2))
            if one[1] != b"xmlns" and not one[1].startswith(b"xmlns:")
        ]
        if 2 * len(others) != len(pairs):
            raise BrokenXmpError(f"attributes that cannot be told apart at {at}")
        for one, name, value in zip(others, pairs[::2], pairs[1::2], strict=True):
            self._note(structure, short(name), one.start(2) + 1, one.end(2) - 1, value)

    def _end(self, name: str) -> None:
        self._open.pop()
        at = self._parser.CurrentByteIndex
        # Of an element that holds nothing but its text.
        if self._is_inside(at) and self._text and b"<" not in self._data[self._text_at : at]:
            self._note(self._open[-1], short(name), self._text_at, at, "".join(self._text))
        self._text = []

    def _characters(self, text: str) -> None:
        self._text.append(text)

    def _note(self, structure: _Structure, name: str, start: int, end: int, value: str) -> None:
        if name.startswith((_AREA, _DIMENSIONS)):
            structure.fields.setdefault(name, (start, end, value))
