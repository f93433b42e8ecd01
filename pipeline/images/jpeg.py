"""JPEG's segments: what its header says, and whether all its samples are there."""

import re
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import simplejpeg

from pipeline.errors import DecodeError
from pipeline.images import exif, ifd
from pipeline.images.image import Colour, Facts
from pipeline.images.walk import APP1, APP2, APP14, EOI, EXIF_IN_JPEG, SOS, begins, jpeg_segments

END = b"\xff\xd9"
NO_MEMORY = "Insufficient memory"
"""What libjpeg says of an allocation that failed."""

_MPF_IMAGES = 0xB001
# Frames of JPEG that hold samples; the other markers of that range are tables.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
_ARITHMETIC = {*range(0xC9, 0xD0)} - {0xCC}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
# What libjpeg says where it makes samples up, or finds too many: before a restart, a table or a
# further scan they tell of damage. At the end cameras write such bytes, so do programs in headers.
_GAP = re.compile(r"premature end|bad Huffman code|bad arithmetic code|found marker")
_LEFT_OVER = re.compile(r"extraneous bytes before marker 0x(..)")
_AT_THE_END = "d9"
# Sample bytes enough to change a picture that takes them in.
_MORE = b"\x55" * 64


def check(data: bytes, tables: bytes | None = None) -> tuple[bool, bool]:
    """Whether all of the picture is there, and whether bytes are left over that it does not need.

    Whole is what has its end marked, and misses no data before: decoders go on in gray. tables: a
    TIFF's, which stand before its strips and tiles, as a JPEG of their own.
    """
    joined = tables[: -len(END)] + data[2:] if tables else data
    markers = {marker for marker, *_ in jpeg_segments(joined)}
    if EOI not in markers:
        return False, False
    gap, left_over = _damage(joined, markers)
    return not gap, left_over


def _damage(data: bytes, markers: set[int]) -> tuple[bool, bool]:
    """Whether there is a gap, and bytes left over.

    Decodes all data, to an eighth of the size, as Pillow and imagecodecs hold warnings back. This
    binding gives the first one only. It writes lossless JPEG beyond the room for an eighth.
    """
    if markers & _LOSSLESS:
        return _takes_more(data, markers), False
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        said = str(error)
        left_over = _LEFT_OVER.search(said)
        if left_over and left_over[1] == _AT_THE_END:
            return False, True  # none can follow
        if left_over and not _is_loose_header(data):
            return True, True
        return bool(_GAP.search(said)) or _takes_more(data, markers), bool(left_over)
    return False, False


def _takes_more(data: bytes, markers: set[int]) -> bool:
    """Whether the picture changes where its samples go on, as one does that misses some.

    For warnings that hide others, and what the binding does not read: 12 bits, lossless JPEG.
    """
    # Arithmetic coding goes on in zeros, which encoders leave out.
    if markers & _ARITHMETIC:
        return False
    try:
        first, second = (
            zlib.crc32(imagecodecs.jpeg8_decode(file).data) for file in (data, _with_more(data))
        )
    except imagecodecs.Jpeg8Error as error:
        if NO_MEMORY in str(error):
            raise
        return True
    return first != second


def _places(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each segment: where what stands before it begins, its start and its end."""
    before = 2
    for _, _, start, end in jpeg_segments(data):
        yield before, start, end
        before = end


def _with_more(data: bytes) -> bytes:
    """With further bytes wherever coded samples end."""
    made, at = bytearray(data[:2]), 2
    for before, start, at in _places(data):
        coded = data[before:start].rstrip(b"\xff")
        if coded:
            made += _RESTART.sub(lambda restart: _MORE + restart[0], coded) + _MORE
        made += data[start:at]
    return bytes(made + data[at:])


def _is_loose_header(data: bytes) -> bool:
    """Whether something stands between the segments before the first samples."""
    for before, start, _ in _places(data):
        if data[before:start].strip(b"\xff"):
            return True
        if data[start + 1] == SOS:
            break
    return False


def facts(data: bytes) -> Facts:
    frame, adobe, stream, frames = memoryview(b""), -1, b"", 1
    for marker, body, _, _ in jpeg_segments(data):
        if marker in _SOF:
            frame = body
        elif marker == APP1 and begins(body, EXIF_IN_JPEG):
            stream = stream or bytes(body[len(EXIF_IN_JPEG) :])
        elif marker == APP14 and begins(body, b"Adobe"):
            adobe = body[11]
        elif marker == APP2 and begins(body, b"MPF\0"):
            frames = _mpf_images(bytes(body[4:]))
        elif marker == SOS:
            break
    depth, height, width, components = struct.unpack_from(">BHHB", frame)
    four: Colour = "ycck" if adobe == 2 else "cmyk"
    kinds: dict[int, tuple[Colour, str]] = {1: ("gray", "L"), 3: ("rgb", "RGB"), 4: (four, "CMYK")}
    colour, mode = kinds.get(components, ("other", f"{components}"))
    channels = 1 if components == 1 else 3
    turned = exif.turned(stream)
    return Facts("jpeg", mode, depth, frames, width, height, channels, colour, orientation=turned)


def _mpf_images(block: bytes) -> int:
    """How many pictures a camera put into one file: previews, gain maps, views."""
    try:
        stream = ifd.stream(block)
        return max(1, stream.directory(stream.first).number(_MPF_IMAGES, 1))
    except DecodeError:
        return 1
