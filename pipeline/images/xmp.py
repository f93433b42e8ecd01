"""XMP packets, read with the places of their statements.

There are no entities and nothing external: a document type is an error.

Formats: Adobe, XMP Specification, Parts 1 to 3; IPTC Photo Metadata Standard 2024.1.
"""

import re
from dataclasses import dataclass, field
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
SPACES = {
    "rdf": RDF,
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "stRef": "http://ns.adobe.com/xap/1.0/sType/ResourceRef#",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "remaster": "urn:remaster:1.0:",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "Container": "http://ns.google.com/photos/1.0/container/",
    "DynamicContainer": "http://ns.google.com/photos/dd/1.0/container/",
    "Device": "http://ns.google.com/photos/dd/1.0/device/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "HDRGainMap": "http://ns.apple.com/HDRGainMap/1.0/",
    "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "MP": "http://ns.microsoft.com/photo/1.2/",
}
"""Namespaces by their usual prefixes. Names below are like `xmp:CreatorTool`."""

_PREFIXES = {space: prefix for prefix, space in SPACES.items()}
PANORAMA_PIXELS = {
    f"GPano:{name}": way
    for way, names in (
        (0, "FullPanoWidth CroppedAreaImageWidth CroppedAreaLeft"),
        (1, "FullPanoHeight CroppedAreaImageHeight CroppedAreaTop"),
    )
    for name in (f"{part}Pixels" for part in names.split())
} | {
    f"GPano:LargestValidInteriorRect{side}": way
    for side, way in (("Left", 0), ("Width", 0), ("Top", 1), ("Height", 1))
}
"""What counts pixels of a panorama, 0 across, 1 down."""

_READ_AS_TEXT = frozenset(
    {
        *PANORAMA_PIXELS,
        "Iptc4xmpExt:DigitalSourceType",
        "xmpMM:DocumentID",
        "xmpMM:InstanceID",
        "xmpMM:OriginalDocumentID",
        "xmpNote:HasExtendedXMP",
    }
)
_LISTS = ("rdf:Seq", "rdf:Bag", "rdf:Alt")
_MOST_STATEMENTS, _MOST_DEPTH = 2**16, 200
# With attributes and declarations. Photoshop's longest lists of ancestors have some hundred
# thousand. Packets are gone through outside of the sandbox, too, while other threads wait.
_MOST_ELEMENTS = 2**18
# The parser writes out the namespace of every name.
_MOST_SPACE = 1000
_MOST_TEXT = 2**16  # of a statement that is read
_END = b"<?xpacket end"
TAG = re.compile(rb"<([^\s/>]++)((?:[^>\"']++|\"[^\"]*+\"|'[^']*+')*+)>")
ATTRIBUTE = re.compile(rb"\s++([^\s=]++)\s*+=\s*+(\"[^\"]*+\"|'[^']*+')")

Raw = dict[bytes, bytes]
"""Namespace declarations as they stand: `xmlns:tiff` -> the quoted name."""


class BrokenXmpError(ValueError):
    """Not a well-formed packet, or one with what no packet needs."""


@dataclass(slots=True)
class Statement:
    """A property of the picture: an element, or an attribute of a description."""

    name: str
    start: int
    end: int
    is_attribute: bool = False
    text: str = ""
    """Of those in _READ_AS_TEXT."""
    list_end: int | None = None
    """Where its list, if it is a list that is not empty, ends."""


@dataclass(slots=True)
class Description:
    """A group of statements; there may be several."""

    start: int
    open_end: int
    """Where its start tag ends."""
    end: int = 0
    about: bytes = b'""'
    """What it describes, quoted as it stands."""
    spaces: Raw = field(default_factory=Raw)
    statements: list[Statement] = field(default_factory=list[Statement])


@dataclass(slots=True)
class Packet:
    """A packet with its places."""

    data: bytes
    spaces: Raw
    """Declared around the descriptions."""
    insert_at: int
    """Where further descriptions may be put."""
    descriptions: list[Description]

    def find(self, name: str) -> Statement | None:
        """The first statement of that name."""
        return next((one for one in self.statements() if one.name == name), None)

    def text(self, name: str) -> str:
        """What a statement says; empty if there is none."""
        found = self.find(name)
        return found.text.strip() if found else ""

    def statements(self) -> list[Statement]:
        """All of them, in order."""
        return [one for description in self.descriptions for one in description.statements]


def normalised(packet: bytes) -> bytes:
    """The packet in UTF-8, without what containers pad it with. Raises BrokenXmpError."""
    try:
        if packet[:2] in (b"\xff\xfe", b"\xfe\xff"):
            packet = packet.decode("utf-16").encode()
        elif b"\0" in packet[:2]:
            packet = packet.decode("utf-16-be" if packet[0] == 0 else "utf-16-le").encode()
    except UnicodeError as error:
        raise BrokenXmpError(f"{len(packet)} bytes, no UTF-16: {error}") from error
    packet = packet.removeprefix(b"\xef\xbb\xbf").strip(b"\0\t\n\r ")
    if packet.startswith(b"<?xml "):  # it may name another encoding
        packet = packet[packet.find(b"?>") + 2 :].lstrip()
    at = packet.rfind(_END)
    if at > 0:  # room to write in, which nobody will
        packet = packet[:at].rstrip() + packet[at:]
    parse(packet)
    return packet


def parse(packet: bytes) -> Packet:
    """Finds the statements. Raises BrokenXmpError."""
    return _Reader(packet).read()


class _Reader:
    """Goes through a packet once. Levels: 0 the RDF element, 1 descriptions, 2 statements, 3 lists.

    What lies around the RDF element has levels below 0, what lies inside the lists is passed over.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._parser = parser = expat.ParserCreate("UTF-8", " ")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartNamespaceDeclHandler = self._space
        self._depth = 0
        self._rdf_depth = _MOST_DEPTH + 1
        self._scopes = list[Raw]()
        self._closed = set[int]()  # levels whose open element closes itself
        self._left = _MOST_STATEMENTS
        self._elements_left = _MOST_ELEMENTS
        self._packet: Packet | None = None

    def read(self) -> Packet:
        try:
            self._parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise BrokenXmpError(f"{len(self._data)} bytes: {error}") from error
        if not self._packet or not self._packet.insert_at:
            raise BrokenXmpError(f"{len(self._data)} bytes without statements in RDF")
        return self._packet

    @property
    def _level(self) -> int:
        return self._depth - self._rdf_depth

    def _start(self, name: str, pairs: list[str]) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise BrokenXmpError(f"elements in elements, {self._depth} deep")
        self._count(1 + len(pairs) // 2)
        if self._packet and (self._packet.insert_at or not 0 < self._level <= 3):
            return
        start = self._parser.CurrentByteIndex
        tag = TAG.match(self._data, start)
        if not tag:
            raise BrokenXmpError(f"no tag at {start} of {len(self._data)}")
        spaces, attributes = self._attributes(tag, pairs)
        if not self._packet:
            self._scopes = [*self._scopes[: self._depth - 1], spaces]
            if short(name) != "rdf:RDF":
                return
            self._rdf_depth = self._depth
            around = {key: raw for scope in self._scopes for key, raw in scope.items()}
            self._packet = Packet(self._data, around, 0, [])
        elif self._level == 1:
            self._packet.descriptions.append(Description(start, tag.end(), spaces=spaces))
            for attribute, value, raw, *span in attributes:
                self._describe(attribute, value, raw, *span)
        elif self._level == 2:
            statement = self._state(Statement(short(name), start, 0))
            for attribute, value, *_ in attributes:
                if attribute == "rdf:resource" and statement.name in _READ_AS_TEXT:
                    statement.text = value
        if tag[2].endswith(b"/"):
            self._closed.add(self._level)

    def _space(self, _: str | None, space: str | None) -> None:
        self._count(1)
        if space and len(space) > _MOST_SPACE:
            raise BrokenXmpError(f"a namespace of {len(space):,} letters, limit {_MOST_SPACE:,}")

    def _count(self, elements: int) -> None:
        self._elements_left -= elements
        if self._elements_left < 0:
            raise BrokenXmpError(f"more than {_MOST_ELEMENTS:,} elements and attributes")

    def _attributes(
        self, tag: re.Match[bytes], pairs: list[str]
    ) -> tuple[Raw, list[tuple[str, str, bytes, int, int]]]:
        """Namespaces, and the other attributes: name, value, the value as it stands, and where."""
        spaces, others = Raw(), list[re.Match[bytes]]()
        for found in ATTRIBUTE.finditer(self._data, tag.start(2), tag.end(2)):
            if found[1] == b"xmlns" or found[1].startswith(b"xmlns:"):
                spaces[found[1]] = found[2]
            else:
                others.append(found)
        if 2 * len(others) != len(pairs):
            raise BrokenXmpError(f"attributes that cannot be told apart at {tag.start()}")
        return spaces, [
            (short(name), value, found[2], found.start(), found.end())
            for found, name, value in zip(others, pairs[::2], pairs[1::2], strict=True)
        ]

    def _describe(self, name: str, value: str, raw: bytes, start: int, end: int) -> None:
        """An attribute of a description."""
        assert self._packet
        if name in ("rdf:about", "about"):
            self._packet.descriptions[-1].about = raw
        elif not name.startswith(("rdf:", "http://www.w3.org/XML/")):
            text = value if name in _READ_AS_TEXT else ""
            self._state(Statement(name, start, end, is_attribute=True, text=text))

    def _state(self, statement: Statement) -> Statement:
        assert self._packet
        self._left -= 1
        if self._left < 0:
            raise BrokenXmpError(f"more than {_MOST_STATEMENTS:,} statements")
        self._packet.descriptions[-1].statements.append(statement)
        return statement

    def _end(self, name: str) -> None:
        level, at = self._level, self._parser.CurrentByteIndex
        self._depth -= 1
        if not self._packet or self._packet.insert_at or not 0 <= level <= 3:
            return
        # After a tag that closes itself the parser is behind it, else before the end tag.
        closed = level in self._closed
        self._closed.discard(level)
        end = at if closed else self._data.index(b">", at) + 1
        description = self._packet.descriptions[-1] if level else None
        if level == 0 and not closed:
            self._packet.insert_at = at
        elif description and level == 1:
            description.end = end
        elif description and level == 2:
            description.statements[-1].end = end
        elif description and level == 3 and not closed and short(name) in _LISTS:
            description.statements[-1].list_end = at

    def _text(self, text: str) -> None:
        if not self._packet or self._level != 2 or self._packet.insert_at:
            return
        statement = self._packet.descriptions[-1].statements[-1]
        if statement.name in _READ_AS_TEXT:
            statement.text += text
            if len(statement.text) > _MOST_TEXT:
                raise BrokenXmpError(f"{statement.name} of more than {_MOST_TEXT:,} letters")

    def _doctype(self, name: str, *_: object) -> None:
        raise BrokenXmpError(f"a document type ({name}), which no packet needs")


def short(name: str) -> str:
    """A name as above of one that the parser gives; that itself where we know no prefix."""
    space, _, local = name.rpartition(" ")
    prefix = _PREFIXES.get(space)
    return f"{prefix}:{local}" if prefix else name
