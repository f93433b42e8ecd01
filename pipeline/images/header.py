"""What a file's header says of its picture, before anything is decoded.

Each format's header is read here and not by its codec: Pillow opens 16-bit RGB as 8 bits without
a word, WebP's decoder reserves the memory of the whole canvas, and a codec's own limits and
warnings hold for the whole process. TIFF's pages are in `read_tiff`.
"""

import io
import re
import struct
from collections.abc import Callable
from dataclasses import replace

import PIL.BmpImagePlugin

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import exif, gif, jpeg, jpeg2000, levels, pnm, read_png, read_tiff, webp
from pipeline.images.ifd import Data, Place
from pipeline.images.image import Alpha, Colour, Facts
from pipeline.images.walk import PNG_SIGNATURE

_KEYED: Alpha = "transparent_colour"

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


def facts(data: Data, page: int, place: Place | None = None) -> Facts:
    """Facts of a file's picture; of a TIFF those of one page.

    place: where a TIFF's page is found, if that is known.
    Raises DecodeError or UnsupportedError, and what struct raises where the header is cut short.
    """
    kind = sniff(data)
    if kind == "tiff":
        return _named(read_tiff.facts(data, place or read_tiff.place(data, page)))
    if page:
        raise DecodeError("decode_failed", f"page {page} of a {kind} file, which has one")
    assert isinstance(data, bytes), "only a TIFF is mapped"
    return _named(_READERS[kind](data))


def all_facts(data: Data) -> list[Facts]:
    """Facts of every page; what is no TIFF has one. Raises as `facts`."""
    if sniff(data) != "tiff":
        return [facts(data, 0)]
    return [_named(read_tiff.facts(data, place)) for place in read_tiff.places(data)]


def _named(found: Facts) -> Facts:
    """With the bits in its mode."""
    deep = found.bit_depth > 8
    return replace(found, mode=f"{found.mode};{found.bit_depth}") if deep else found


def sniff(data: Data) -> str:
    """The format by a file's first bytes. Raises DecodeError or UnsupportedError."""
    if data[:8] == PNG_SIGNATURE:
        return "png"
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:16].startswith((jpeg2000.BOXES, jpeg2000.CODESTREAM)):
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


def _what_it_is(data: Data) -> str:
    if not data:
        return "the file is empty (0 bytes)"
    return f"no picture: {len(data)} bytes that begin with {data[:16]!r}"


def _png(data: bytes) -> Facts:
    said = read_png.header(data)
    colour: Colour = "palette" if said.palette is not None else "rgb" if said.colours else "gray"
    mode = {"palette": "P", "rgb": "RGB", "gray": "L"}[colour] + "A" * said.has_alpha
    if mode == "L" and said.depth == 1:
        colour, mode = "bilevel", "1"
    channels = 3 if colour == "rgb" else 1
    if said.palette is not None:
        channels = levels.palette_channels(said.palette)
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
        exif.turned(said.exif),
    )


def _bmp(data: bytes) -> Facts:
    with PIL.BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as opened:
        mode, (width, height), palette = opened.mode, opened.size, opened.palette
    colours: dict[str, Colour] = {"1": "bilevel", "L": "gray", "P": "palette"}
    channels = {"1": 1, "L": 1, "RGBA": 4}.get(mode, 3)
    if palette:
        each = len(palette.rawmode or "RGB")  # Windows pads its entries
        inks = (bytes(palette.palette)[part::each] for part in range(3))
        channels = 1 if len({*inks}) == 1 else 3
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    (pixel_bits,) = struct.unpack_from("<H", data, 24 if header_bytes == 12 else 28)
    depth = 5 if pixel_bits == 16 else min(pixel_bits, 8)
    alpha: Alpha = "straight" if mode == "RGBA" else "none"
    return Facts("bmp", mode, depth, 1, width, height, channels, colours.get(mode, "rgb"), alpha)


_READERS: dict[str, Callable[[bytes], Facts]] = {
    "png": _png,
    "jpeg": jpeg.facts,
    "webp": webp.facts,
    "jpeg2000": jpeg2000.facts,
    "gif": gif.facts,
    "bmp": _bmp,
    "pnm": pnm.facts,
}
