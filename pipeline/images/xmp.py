"""XMP packets: read, joined, corrected, and split for JPEG.

Nothing is written anew that is not ours: a packet is read with its places, and statements are cut
out and put in there. There are no entities and nothing external: a document type is an error.

Formats: Adobe, XMP Specification, Parts 1 to 3; IPTC Photo Metadata Standard 2024.1.
"""

import hashlib
import html
import re
from collections.abc import Callable, Mapping, Sequence
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
}
"""Namespaces by their usual prefixes. Names below are like `xmp:CreatorTool`."""

EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="w"?>'
).encode()
"""A packet that says nothing."""

_PREFIXES = {space: prefix for prefix, space in SPACES.items()}
_READ_AS_TEXT = frozenset(
    {
        "Iptc4xmpExt:DigitalSourceType",
        "xmpMM:DocumentID",
        "xmpMM:InstanceID",
        "xmpMM:OriginalDocumentID",
        "xmpNote:HasExtendedXMP",
    }
)
_HISTORY, _EXTENDED = "xmpMM:History", "xmpNote:HasExtendedXMP"
_LISTS = ("rdf:Seq", "rdf:Bag", "rdf:Alt")
_ROOM_FOR_NOTE = 2000
_MOST_STATEMENTS, _MOST_DEPTH = 2**16, 200
_END = b"<?xpacket end"
_TAG = re.compile(rb"<([^\s/>]++)((?:[^>\"']++|\"[^\"]*+\"|'[^']*+')*+)>")
_ATTRIBUTE = re.compile(rb"\s++([^\s=]++)\s*+=\s*+(\"[^\"]*+\"|'[^']*+')")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

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
        self._depth = 0
        self._rdf_depth = _MOST_DEPTH + 1
        self._scopes = list[Raw]()
        self._closed = set[int]()  # levels whose open element closes itself
        self._left = _MOST_STATEMENTS
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
        if self._packet and (self._packet.insert_at or not 0 < self._level <= 3):
            return
        start = self._parser.CurrentByteIndex
        tag = _TAG.match(self._data, start)
        if not tag:
            raise BrokenXmpError(f"no tag at {start} of {len(self._data)}")
        spaces, attributes = self._attributes(tag, pairs)
        if not self._packet:
            self._scopes = [*self._scopes[: self._depth - 1], spaces]
            if _short(name) != "rdf:RDF":
                return
            self._rdf_depth = self._depth
            around = {key: raw for scope in self._scopes for key, raw in scope.items()}
            self._packet = Packet(self._data, around, 0, [])
        elif self._level == 1:
            self._packet.descriptions.append(Description(start, tag.end(), spaces=spaces))
            for attribute, value, raw, *span in attributes:
                self._describe(attribute, value, raw, *span)
        elif self._level == 2:
            statement = self._state(Statement(_short(name), start, 0))
            for attribute, value, *_ in attributes:
                if attribute == "rdf:resource" and statement.name in _READ_AS_TEXT:
                    statement.text = value
        if tag[2].endswith(b"/"):
            self._closed.add(self._level)

    def _attributes(
        self, tag: re.Match[bytes], pairs: list[str]
    ) -> tuple[Raw, list[tuple[str, str, bytes, int, int]]]:
        """Namespaces, and the other attributes: name, value, the value as it stands, and where."""
        spaces, others = Raw(), list[re.Match[bytes]]()
        for found in _ATTRIBUTE.finditer(self._data, tag.start(2), tag.end(2)):
            if found[1] == b"xmlns" or found[1].startswith(b"xmlns:"):
                spaces[found[1]] = found[2]
            else:
                others.append(found)
        if 2 * len(others) != len(pairs):
            raise BrokenXmpError(f"attributes that cannot be told apart at {tag.start()}")
        return spaces, [
            (_short(name), value, found[2], found.start(), found.end())
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
        elif description and level == 3 and not closed and _short(name) in _LISTS:
            description.statements[-1].list_end = at

    def _text(self, text: str) -> None:
        if not self._packet or self._level != 2 or self._packet.insert_at:
            return
        statement = self._packet.descriptions[-1].statements[-1]
        if statement.name in _READ_AS_TEXT:
            statement.text += text

    def _doctype(self, name: str, *_: object) -> None:
        raise BrokenXmpError(f"a document type ({name}), which no packet needs")


def _short(name: str) -> str:
    """A name as above; `namespace local` where the namespace is none of ours."""
    space, _, local = name.rpartition(" ")
    prefix = _PREFIXES.get(space)
    return f"{prefix}:{local}" if prefix else name


def edit(
    packet: bytes,
    *,
    says: Mapping[str, str | Mapping[str, str]],
    corrects: Mapping[str, str | None],
    event: Mapping[str, str] | None,
) -> bytes:
    """The packet with other statements; all that is not named stays as it is, byte for byte.

    says: statements, and structures of them, that are replaced or added. corrects: those that are
    replaced only where there are any, or, if None, taken out. event: added to the history.
    Raises BrokenXmpError.
    """
    found = parse(packet)
    there = {statement.name for statement in found.statements()}
    ours = dict(says) | {
        name: value for name, value in corrects.items() if value is not None and name in there
    }
    history = found.find(_HISTORY) if event else None
    continued = history.list_end if history else None
    gone = says.keys() | corrects.keys()
    if event and not continued:
        gone |= {_HISTORY}
    edits = _cut(found, lambda statement: statement.name in gone)
    items = "".join(_element(name, value) for name, value in ours.items())
    if event:
        item = f'<rdf:li{_spaces(event)} rdf:parseType="Resource">{_fields(event)}</rdf:li>'
        if continued:
            edits.append((continued, continued, item.encode()))
        else:
            items += f"<{_HISTORY}><rdf:Seq>{item}</rdf:Seq></{_HISTORY}>"
    if items:
        edits.append((found.insert_at, found.insert_at, _described(found, items)))
    return _spliced(packet, edits)


def joined(packet: bytes, extension: bytes) -> bytes:
    """A JPEG's packet with what stood in its extension. Raises BrokenXmpError."""
    standard, further = parse(packet), parse(extension)
    edits = _cut(standard, lambda statement: statement.name == _EXTENDED)
    for description in further.descriptions:
        inside = extension[description.start : description.end]
        tag = _TAG.match(inside)
        assert tag
        own = description.spaces
        missing = {key: raw for key, raw in further.spaces.items() if key not in own}
        at = tag.end(1)
        whole = inside[:at] + _declared(missing) + inside[at:]
        edits.append((standard.insert_at, standard.insert_at, whole))
    return _spliced(packet, edits)


def split(packet: bytes, most: int) -> tuple[bytes, bytes]:
    """The packet in at most so many bytes, and its extension with what is too large for that.

    The extension is empty if there is none. Raises BrokenXmpError if it cannot be done.
    """
    if len(packet) <= most:
        return packet, b""
    found = parse(packet)
    largest = sorted(found.statements(), key=lambda one: (one.start - one.end, one.start))
    excess = len(packet) - most + _ROOM_FOR_NOTE
    moved = set[int]()
    for statement in largest:
        if excess > 0 and not statement.is_attribute:
            moved.add(statement.start)
            excess -= statement.end - statement.start
    if excess > 0:
        raise BrokenXmpError(f"{len(packet):,} bytes that cannot be split to {most:,}")
    extension = _extension(found, moved)
    guid = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper()
    edits = _cut(found, lambda statement: statement.start in moved)
    note = _described(found, _element(_EXTENDED, guid))
    edits.append((found.insert_at, found.insert_at, note))
    return _spliced(packet, edits), extension


def _extension(found: Packet, moved: set[int]) -> bytes:
    """A packet of the statements that begin there."""
    parts = [b'<x:xmpmeta xmlns:x="adobe:ns:meta/">', f'<rdf:RDF xmlns:rdf="{RDF}">'.encode()]
    for description in found.descriptions:
        inside = [one for one in description.statements if one.start in moved]
        if inside:
            spaces = found.spaces | description.spaces
            spaces.pop(b"xmlns:rdf", None)
            about = b" rdf:about=" + description.about
            parts.append(b"<rdf:Description" + about + _declared(spaces) + b">")
            parts += [found.data[one.start : one.end] for one in inside]
            parts.append(b"</rdf:Description>")
    return b"".join([*parts, b"</rdf:RDF></x:xmpmeta>"])


def _declared(spaces: Raw) -> bytes:
    return b"".join(b" " + name + b"=" + raw for name, raw in spaces.items())


Edit = tuple[int, int, bytes]


def _cut(found: Packet, gone: Callable[[Statement], bool]) -> list[Edit]:
    """Takes statements out, and descriptions that are left without any."""
    edits = list[Edit]()
    for description in found.descriptions:
        leaving = [one for one in description.statements if gone(one)]
        if leaving and len(leaving) == len(description.statements):
            edits.append((description.start, description.end, b""))
        else:
            edits += [(one.start, one.end, b"") for one in leaving]
    return edits


def _spliced(data: bytes, edits: Sequence[Edit]) -> bytes:
    parts, at = list[bytes](), 0
    for start, end, new in sorted(edits, key=lambda one: one[:2]):
        kept = data[at:start]
        # With an element goes the line that holds nothing else.
        parts += [kept.rstrip() if data[start:end].startswith(b"<") else kept, new]
        at = end
    return b"".join([*parts, data[at:]])


def _described(found: Packet, items: str) -> bytes:
    """A description of its own, of what the others describe."""
    about = found.descriptions[0].about.decode() if found.descriptions else '""'
    return f"<rdf:Description{_spaces(SPACES)} rdf:about={about}>{items}</rdf:Description>".encode()


def _element(name: str, value: str | Mapping[str, str]) -> str:
    if isinstance(value, str):
        return f"<{name}>{_escaped(value)}</{name}>"
    return f'<{name} rdf:parseType="Resource">{_fields(value)}</{name}>'


def _fields(structure: Mapping[str, str]) -> str:
    return "".join(_element(name, value) for name, value in structure.items())


def _escaped(text: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", text))


def _spaces(names: Mapping[str, str]) -> str:
    """Declarations of the namespaces that names have, or that prefixes stand for."""
    prefixes = sorted({"rdf"} | {name.partition(":")[0] for name in names})
    return "".join(f' xmlns:{prefix}="{SPACES[prefix]}"' for prefix in prefixes)
