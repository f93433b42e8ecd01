"""What a file's header says of its picture, before anything is decoded.

Each format's header is read here and not by its codec: Pillow opens 16-bit RGB as 8 bits without
a word, WebP's decoder reserves the memory of the whole canvas, and a codec's own limits and
warnings hold for the whole process. TIFF's pages are in `read_tiff`.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import PIL.BmpImagePlugin

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import ifd, jpeg2000, pnm, read_png, read_tiff
from pipeline.images.image import Alpha, Colour, Facts

_ORIENTATION = 274
_KEYED: Alpha = "transparent_colour"
_MPF_IMAGES = 0xB001

# Frames of JPEG that hold samples; the other markers of that range are tables.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP1, _APP2, _APP14 = 0xDA, 0xD9, 0xE1, 0xE2, 0xEE
# In coded samples FF 00 is a sample's byte, FF D0 to FF D7 are restarts, FF FF is padding.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_NETPBM = re.compile(rb"P[1-6][\s#]")
_OTHERS = {
    "AVIF": re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    "HEIF": re.compile(rb".{4}ftyp(hei[cfmsx]|hev[cmx]|mif1|msf1)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "JPEG XR": re.compile(rb"II\xbc"),
    "PSD": re.compile(rb"8BPS"),
    "PAM or PFM": re.compile(rb"P[7Ff][\s#]"),
    "ICO": re.compile(rb"\0\0[\x01\x02]\0[^\0]\0"),
    "PDF": re.compile(rb"%PDF-"),
    "SVG or XML": re.compile(rb"\s*<(\?xml|svg)"),
    "EPS": re.compile(rb"%!PS"),
    "OpenEXR": re.compile(rb"\x76\x2f\x31\x01"),
}


def facts(data: bytes, page: int) -> Facts:
    """Facts of a file's picture; of a TIFF those of one page.

    Raises DecodeError or UnsupportedError, and what struct raises where the header is cut short.
    """
    kind = sniff(data)
    if page and kind != "tiff":
        raise DecodeError("decode_failed", f"page {page} of a {kind} file, which has one")
    found = read_tiff.facts(data, page) if kind == "tiff" else _READERS[kind](data)
    deep = found.bit_depth > 8
    return replace(found, mode=f"{found.mode};{found.bit_depth}") if deep else found


def sniff(data: bytes) -> str:
    """The format by a file's first bytes. Raises DecodeError or UnsupportedError."""
    if data.startswith(read_png.SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data.startswith((jpeg2000.BOXES, jpeg2000.CODESTREAM)):
        return "jpeg2000"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:2] == b"BM" and len(data) > 18:
        return "bmp"
    if _NETPBM.match(data):
        return "pnm"
    for name, first in _OTHERS.items():
        if first.match(data):
            readable = "PNG, JPEG, WebP, TIFF, JPEG 2000, GIF, BMP and PNM"
            raise UnsupportedError("unsupported_format", f"{name} is not read, {readable} are")
    raise DecodeError("not_an_image", _what_it_is(data))


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty (0 bytes)"
    return f"no picture: {len(data)} bytes that begin with {data[:16]!r}"


def orientation(exif: bytes) -> int:
    """EXIF's orientation; 1 where it says none, or is broken: then the pixels are all there is."""
    try:
        stream = ifd.stream(exif.removeprefix(b"Exif\0\0"))
        said = stream.directory(stream.first).number(_ORIENTATION, 1)
    except (DecodeError, struct.error):
        return 1
    return said if 1 <= said <= 8 else 1


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with what belongs to each, up to the end of the picture or of the file."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == _EOI:
            yield marker, b""
            return
        if marker in (0x01, 0xD8):  # these stand alone
            continue
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, data[at + 2 : at + length]
        at += length


def jpeg_is_whole(data: bytes) -> bool:
    """Whether the picture's end is marked: decoders go on in gray where it is missing."""
    try:
        return any(marker == _EOI for marker, _ in jpeg_segments(data))
    except struct.error:
        return False


def _jpeg(data: bytes) -> Facts:
    frame, adobe, turned, frames = b"", -1, 1, 1
    for marker, body in jpeg_segments(data):
        if marker in _SOF:
            frame = body
        elif marker == _APP1 and body.startswith(b"Exif\0"):
            turned = orientation(body)
        elif marker == _APP14 and body.startswith(b"Adobe"):
            adobe = body[11]
        elif marker == _APP2 and body.startswith(b"MPF\0"):
            frames = _mpf_images(body[4:])
        elif marker == _SOS:
            break
    depth, height, width, components = struct.unpack_from(">BHHB", frame)
    four: Colour = "ycck" if adobe == 2 else "cmyk"
    kinds: dict[int, tuple[Colour, str]] = {1: ("gray", "L"), 3: ("rgb", "RGB"), 4: (four, "CMYK")}
    colour, mode = kinds.get(components, ("other", f"{components}"))
    channels = 1 if components == 1 else 3
    return Facts("jpeg", mode, depth, frames, width, height, channels, colour, orientation=turned)


def _mpf_images(block: bytes) -> int:
    """How many pictures a camera put into one file: previews, gain maps, views."""
    try:
        stream = ifd.stream(block)
        return max(1, stream.directory(stream.first).number(_MPF_IMAGES, 1))
    except (DecodeError, struct.error):
        return 1


def _png(data: bytes) -> Facts:
    said = read_png.header(data)
    colour: Colour = "palette" if said.palette is not None else "rgb" if said.colours else "gray"
    mode = {"palette": "P", "rgb": "RGB", "gray": "L"}[colour] + "A" * said.has_alpha
    if mode == "L" and said.depth == 1:
        colour, mode = "bilevel", "1"
    channels = 3 if colour == "rgb" else 1
    if said.palette is not None:
        channels = palette_channels(said.palette)
    return Facts(
        "png",
        mode,
        said.depth,
        said.frames,
        said.width,
        said.height,
        channels + (said.has_alpha or said.transparent is not None),
        colour,
        "straight" if said.has_alpha else "none" if said.transparent is None else _KEYED,
        orientation(said.exif) if said.exif else 1,
    )


def palette_channels(palette: bytes) -> int:
    """1 where the palette (red, green and blue in turn) holds only grays, else 3."""
    return 1 if palette[::3] == palette[1::3] == palette[2::3] else 3


def _webp(data: bytes) -> Facts:
    kind, at, frames, exif, alpha = data[12:16], 12, 0, b"", False
    width = height = 0
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if name == b"VP8X":
            flags, *sides = struct.unpack_from("<B3x3s3s", data, body)
            width, height = (int.from_bytes(side, "little") + 1 for side in sides)
            alpha = bool(flags & 0x10)
        elif name == b"VP8L" == kind:
            (bits,) = struct.unpack_from("<I", data, body + 1)
            width, height, alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bits >> 28 & 1
        elif name == b"VP8 " == kind:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, body + 6))
        elif name == b"EXIF":
            exif = data[body : body + length]
        frames += name == b"ANMF"
        at = body + length + (length & 1)
    plain = Facts("webp", "RGB", 8, max(1, frames), width, height, 3, orientation=orientation(exif))
    if alpha:
        return replace(plain, mode="RGBA", channels=4, alpha="straight")
    return plain


def _gif(data: bytes) -> Facts:
    """Counts the frames by their descriptors, which takes no decoding."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, palette = 13, b""
    if flags & 0x80:
        palette = data[at : at + (6 << (flags & 7))]
        at += len(palette)
    frames, keyed, depth = 0, False, (flags & 7) + 1
    while at < len(data) and data[at] in b"!,":
        if data[at] == 0x2C:
            local = data[at + 9]
            at += 10
            own = data[at : at + (6 << (local & 7))] if local & 0x80 else b""
            if own and not frames:
                palette, depth = own, (local & 7) + 1
            at += len(own) + 1  # the codes' least width
            frames += 1
        else:
            if data[at + 1] == 0xF9 and not frames:
                keyed = bool(data[at + 3] & 1)
            at += 2
        at = _after_sub_blocks(data, at)
    channels = palette_channels(palette) + keyed
    alpha: Alpha = _KEYED if keyed else "none"
    return Facts("gif", "P", depth, max(1, frames), width, height, channels, "palette", alpha)


def _after_sub_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1


def _bmp(data: bytes) -> Facts:
    with PIL.BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as opened:
        mode, (width, height) = opened.mode, opened.size
    colours: dict[str, Colour] = {"1": "bilevel", "L": "gray", "P": "palette"}
    channels = {"1": 1, "L": 1, "RGBA": 4}.get(mode, 3)
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    (pixel_bits,) = struct.unpack_from("<H", data, 24 if header_bytes == 12 else 28)
    depth = 5 if pixel_bits == 16 else min(pixel_bits, 8)
    alpha: Alpha = "straight" if mode == "RGBA" else "none"
    return Facts("bmp", mode, depth, 1, width, height, channels, colours.get(mode, "rgb"), alpha)


_READERS: dict[str, Callable[[bytes], Facts]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "jpeg2000": jpeg2000.facts,
    "gif": _gif,
    "bmp": _bmp,
    "pnm": pnm.facts,
}
