"""Metadata as a camera and an archive write it, put together by hand: nothing of ours in it."""

import struct
import zlib

import PIL.ImageCms

ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7
THUMBNAIL = b"\xff\xd8thumbnail of the old picture\xff\xd9"
RIGHTS = "© Archiv der Stadt, alle Rechte <vorbehalten>"
CAPTION = "Das Rathaus im Jahr 1912"


def icc(kind="sRGB"):
    if kind == "gray":
        # A minimal gray profile: a header and no tags.
        head = bytearray(132)
        head[:4] = struct.pack(">I", 132)
        head[12:24], head[36:40] = b"mntrGRAYXYZ ", b"acsp"
        return bytes(head)
    return PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile(kind)).tobytes()


def swapped():
    """sRGB with red for blue: whoever converts from it to another space is found out."""
    profile = icc()
    for old, new in ((b"rXYZ", b"here"), (b"bXYZ", b"rXYZ"), (b"here", b"bXYZ")):
        profile = profile.replace(old, new)
    return profile


def exif(
    order="<", *, orientation=1, size=(40, 30), dpi=(300, 200), thumbnail=True, more=(), below=()
):
    """A Canon's: its maker note is a directory whose offsets count from the stream's beginning."""
    pack = lambda letters, *values: struct.pack(order + letters, *values)  # noqa: E731
    stream = bytearray((b"II*\0" if order == "<" else b"MM\0*") + pack("I", 8))

    def table(entries, following):
        """Appends a directory whose values follow it; where each value went."""
        start = len(stream)
        room = start + 2 + 12 * len(entries) + 4
        rows, values, places = [], bytearray(), {}
        for tag, kind, count, data in sorted(entries):
            if len(data) <= 4:
                rows.append(pack("HHI", tag, kind, count) + data.ljust(4, b"\0"))
                places[tag] = start + 2 + 12 * (len(rows) - 1) + 8
            else:
                places[tag] = room + len(values)
                rows.append(pack("HHII", tag, kind, count, places[tag]))
                values += data + bytes(len(data) % 2)
        stream.extend(pack("H", len(rows)) + b"".join(rows) + pack("I", following) + values)
        return places

    def link(place, at):
        stream[place : place + 4] = pack("I", at)

    text = lambda tag, value: (tag, ASCII, len(value) + 1, value + b"\0")  # noqa: E731
    short = lambda tag, *values: (tag, SHORT, len(values), pack("H" * len(values), *values))  # noqa: E731
    ratio = lambda tag, *values: (  # noqa: E731
        tag,
        RATIONAL,
        len(values) // 2,
        pack("I" * len(values), *values),
    )
    first = table(
        [
            text(0x010F, b"Canon"),
            text(0x0110, b"Canon EOS 5D"),
            short(0x0112, orientation),
            ratio(0x011A, dpi[0], 1),
            ratio(0x011B, dpi[1], 1),
            short(0x0128, 2),
            text(0x8298, b"Archiv"),
            (0x8769, LONG, 1, bytes(4)),
            (0x8825, LONG, 1, bytes(4)),
            *more,
        ],
        0,
    )
    next_at = 8 + 2 + 12 * (9 + len(more))
    link(first[0x8769], len(stream))
    second = table(
        [
            ratio(0x829A, 1, 125),
            text(0x9003, b"2009:08:07 06:05:04"),
            (0x927C, UNDEFINED, 200, bytes(200)),
            (0x9286, UNDEFINED, 20, b"ASCII\0\0\0" + b"scanned box 7".ljust(12)[:12]),
            (0xA002, LONG, 1, pack("I", size[0])),
            short(0xA003, size[1]),
            ratio(0xA20E, 5000, 1),
            ratio(0xA20F, 4000, 1),
            short(0x9214, 10, 5, 4, 2),
            (0xA005, LONG, 1, bytes(4)),
            *below,
        ],
        0,
    )
    note = second[0x927C]
    kept, stream = stream, bytearray(note)  # the note's own directory, at its place
    table([text(0x0006, b"IMG:EOS 5D JPEG"), text(0x0009, b"Owner of the camera")], 0)
    made, stream = stream[note:], kept
    stream[note : note + len(made)] = made
    link(second[0xA005], len(stream))
    table([text(0x0001, b"R98"), short(0x1001, size[0]), short(0x1002, size[1])], 0)
    link(first[0x8825], len(stream))
    table([text(0x0001, b"N"), ratio(0x0002, 48, 1, 8, 1, 0, 1)], 0)
    if thumbnail:
        link(next_at, len(stream))
        places = table(
            [
                short(0x0103, 6),
                ratio(0x011A, 72, 1),
                (0x0201, LONG, 1, bytes(4)),
                (0x0202, LONG, 1, pack("I", len(THUMBNAIL))),
            ],
            0,
        )
        link(places[0x0201], len(stream))
        stream += THUMBNAIL
    return bytes(stream)


XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 5.6">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
    xmlns:mm="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmp:CreatorTool="Scanner 3" tiff:Orientation="6" tiff:ImageWidth='40'
   mm:DocumentID="xmp.did:source" mm:InstanceID="xmp.iid:source" xmp:Rating="4">
   <dc:rights>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{RIGHTS.replace("<", "&lt;")}</rdf:li>
    </rdf:Alt>
   </dc:rights>
   <tiff:ImageLength>30</tiff:ImageLength>
   <mm:History>
    <rdf:Seq>
     <rdf:li stEvt:action="created" stEvt:softwareAgent="Scanner 3"/>
    </rdf:Seq>
   </mm:History>
   <Iptc4xmpExt:DigitalSourceType rdf:resource="http://cv.iptc.org/newscodes/digitalsourcetype/print"/>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
{" " * 2000}
<?xpacket end="w"?>""".encode()

IPTC = b"".join(
    struct.pack(">BBBH", 0x1C, record, dataset, len(value)) + value
    for record, dataset, value in (
        (1, 90, b"\x1b%G"),  # what follows is UTF-8
        (2, 0, b"\0\4"),
        (2, 120, CAPTION.encode()),
    )
)


def jpeg_segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def photoshop(iptc, number=0x0404):
    resource = b"8BIM" + struct.pack(">HHI", number, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    return b"Photoshop 3.0\0" + resource


def jpeg(bare, *, exif=None, xmp=None, iptc=None, icc=None):
    """A JPEG file with blocks, all in one segment each."""
    blocks = b""
    if exif:
        blocks += jpeg_segment(0xE1, b"Exif\0\0" + exif)
    if xmp:
        blocks += jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    if icc:
        blocks += jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + icc)
    if iptc:
        blocks += jpeg_segment(0xED, photoshop(iptc))
    end = 4 + int.from_bytes(bare[4:6], "big")  # behind the JFIF segment
    return bare[:end] + blocks + bare[end:]


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bare, *chunks):
    """A PNG file with chunks behind its header."""
    return bare[:33] + b"".join(png_chunk(kind, body) for kind, body in chunks) + bare[33:]
