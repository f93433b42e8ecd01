"""WebP's chunks: what its header says, and whether what its picture is coded in is all there."""

import struct
from collections.abc import Iterator
from dataclasses import replace

import imagecodecs

from pipeline.images import exif
from pipeline.images.image import Facts
from pipeline.images.walk import riff_chunks

# Shorter ends of zeros are not looked into: any coded picture may have them.
_BLANK_BYTES = 16
_BITSTREAMS = (b"VP8 ", b"VP8L")
_FRAME, _FRAME_HEADER = b"ANMF", 16


def facts(data: bytes) -> Facts:
    """Raises DecodeError, and what struct does where the header is cut short."""
    kind, at, frames, stream, alpha = data[12:16], 12, 0, b"", False
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
            stream = stream or data[body : body + length]
        frames += name == _FRAME
        at = body + length + (length & 1)
    plain = Facts(
        "webp", "RGB", 8, max(1, frames), width, height, 3, orientation=exif.turned(stream)
    )
    if alpha:
        return replace(plain, mode="RGBA", channels=4, alpha="straight")
    return plain


def is_whole(data: bytes) -> bool:
    """Whether no picture's end is blank. What is cut off the decoder misses itself.

    The format has neither checksums nor an end mark: where room was made for a file and not filled,
    its decoder takes zeros for samples. It does not use all of them, as it does a flat picture's.
    """
    (length,) = struct.unpack_from("<I", data, 4)
    for kind, body in _chunks(data[: 8 + length]):
        if not any(kind):
            return False  # blank from here on
        if kind in _BITSTREAMS and _is_blank_at_its_end(kind, body):
            return False
    return True


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Those of a file, and in place of an animation's frames those that a frame is made of."""
    for kind, body in riff_chunks(data):
        if kind == _FRAME:
            # A frame's header is longer than a file's, behind which its walk begins.
            yield from riff_chunks(bytes(body[_FRAME_HEADER - 12 :]))
        else:
            yield kind, body


def _is_blank_at_its_end(kind: bytes, body: memoryview) -> bool:
    """Whether zeros at the end are more than the samples need, or not what they need."""
    if any(body[-_BLANK_BYTES:]):
        return False
    return _decodes(kind, body[: -_BLANK_BYTES // 2]) or not _decodes(kind, body)


def _decodes(kind: bytes, body: memoryview) -> bool:
    padding = bytes(len(body) % 2)
    size = struct.pack("<I", 12 + len(body) + len(padding))
    chunk = kind + struct.pack("<I", len(body)) + body + padding
    try:
        imagecodecs.webp_decode(b"RIFF" + size + b"WEBP" + chunk)
    except imagecodecs.WebpError:
        return False
    return True
