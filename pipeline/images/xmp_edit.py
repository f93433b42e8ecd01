"""XMP packets: corrected, joined, and split for JPEG.

Nothing is written anew that is not ours: statements are cut out and put in at their places.
"""

import hashlib
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.images.xmp import (
    ATTRIBUTE,
    RDF,
    SPACES,
    TAG,
    BrokenXmpError,
    Packet,
    Raw,
    Statement,
    parse,
)

EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    f'<rdf:RDF xmlns:rdf="{RDF}"></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="w"?>'
).encode()
"""A packet that says nothing."""

_HISTORY, _EXTENDED = "xmpMM:History", "xmpNote:HasExtendedXMP"
_ROOM_FOR_NOTE = 2000
_WRITTEN = re.compile(r"<([\w-]+):")  # the prefixes of elements; their texts are escaped
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Edit = tuple[int, int, bytes]
"""Where the bytes that are replaced begin and end, and those instead of them."""


def edit(
    found: Packet,
    *,
    says: Mapping[str, str | Mapping[str, str]],
    corrects: Mapping[str, str | None],
    event: Mapping[str, str] | None,
    inside: Iterable[Edit] = (),
) -> bytes:
    """The packet with other statements; all that is not named stays as it is, byte for byte.

    says: statements, and structures of them, that are replaced or added. corrects: those that are
    replaced only where there are any, or, if None, taken out. event: added to the history. inside:
    further edits, of statements that are not named.
    """
    there = {statement.name for statement in found.statements()}
    ours = dict(says) | {
        name: value for name, value in corrects.items() if value is not None and name in there
    }
    history = found.find(_HISTORY) if event else None
    continued = history.list_end if history else None
    gone = says.keys() | corrects.keys()
    if event and not continued:
        gone |= {_HISTORY}
    edits = [*inside, *_cut(found, lambda statement: statement.name in gone)]
    items = "".join(_element(name, value) for name, value in ours.items())
    if event:
        item = f'<rdf:li{_spaces(event)} rdf:parseType="Resource">{_fields(event)}</rdf:li>'
        if continued:
            edits.append((continued, continued, item.encode()))
        else:
            items += f"<{_HISTORY}><rdf:Seq>{item}</rdf:Seq></{_HISTORY}>"
    if items:
        edits.append((found.insert_at, found.insert_at, _described(found, items)))
    return _spliced(found.data, edits)


def joined(packet: bytes, extension: bytes) -> bytes:
    """A JPEG's packet with what stood in its extension. Raises BrokenXmpError."""
    standard, further = parse(packet), parse(extension)
    edits = _cut(standard, lambda statement: statement.name == _EXTENDED)
    for description in further.descriptions:
        inside = extension[description.start : description.end]
        tag = TAG.match(inside)
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
        if excess > 0:
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
            parts += [_as_element(found.data[one.start : one.end]) for one in inside]
            parts.append(b"</rdf:Description>")
    return b"".join([*parts, b"</rdf:RDF></x:xmpmeta>"])


def _as_element(statement: bytes) -> bytes:
    """The same where it is an attribute, whose value an element may hold as it stands."""
    attribute = ATTRIBUTE.fullmatch(statement)
    if not attribute:
        return statement
    name, value = attribute[1], attribute[2][1:-1].replace(b"]]>", b"]]&gt;")
    return b"<%b>%b</%b>" % (name, value, name)


def _declared(spaces: Raw) -> bytes:
    return b"".join(b" " + name + b"=" + raw for name, raw in spaces.items())


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
    spaces = _spaces(_WRITTEN.findall(items))
    return f"<rdf:Description{spaces} rdf:about={about}>{items}</rdf:Description>".encode()


def _element(name: str, value: str | Mapping[str, str]) -> str:
    if isinstance(value, str):
        return f"<{name}>{_escaped(value)}</{name}>"
    return f'<{name} rdf:parseType="Resource">{_fields(value)}</{name}>'


def _fields(structure: Mapping[str, str]) -> str:
    return "".join(_element(name, value) for name, value in structure.items())


def _escaped(text: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", text))


def _spaces(names: Iterable[str]) -> str:
    """Declarations of the namespaces that names have, or that prefixes stand for."""
    prefixes = sorted({"rdf"} | {name.partition(":")[0] for name in names})
    return "".join(f' xmlns:{prefix}="{SPACES[prefix]}"' for prefix in prefixes)
