"""WebP's chunks: what its header says, and whether what its picture is coded in is all there."""

import struct
from collections.abc import Iterator
from dataclasses import replace

import imagecodecs

from pipeline.images import exif
from pipeline.images.image import Facts
from pipeline.images.walk import Block, riff_chunks

# Shorter ends of zeros are not looked into: any coded picture may have them.
_BLANK_BYTES = 16
_BITSTREAMS = (b"VP8 ", b"VP8L")
_FRAME, _FRAME_HEADER = b"ANMF", 16


def facts(data: bytes) -> Facts:
    """Raises DecodeError, and what struct does where the header is cut short."""
    first, frames, stream, alpha = data[12:16], 0, b"", False
    width = height = 0
    for kind, body, _ in riff_chunks(data):
        if kind == b"VP8X":
            flags, *sides = struct.unpack_from("<B3x3s3s", body)
            width, height = (int.from_bytes(side, "little") + 1 for side in sides)
            alpha = bool(flags & 0x10)
        elif kind == b"VP8L" == first:
            (bits,) = struct.unpack_from("<I", body, 1)
            width, height, alpha = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bits >> 28 & 1
        elif kind == b"VP8 " == first:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        elif kind == b"EXIF":
            stream = stream or bytes(body)
        frames += kind == _FRAME
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
    for kind, body, there in _chunks(memoryview(data)[: 8 + length]):
        if not there:
            continue
        if not any(kind):
            return False  # blank from here on
        if kind in _BITSTREAMS and _is_blank_at_its_end(kind, body):
            return False
    return True


def _chunks(data: memoryview) -> Iterator[Block]:
    """Those of a file, and in place of an animation's frames those that a frame is made of."""
    for block in riff_chunks(data):
        kind, body, is_whole = block
        if is_whole and kind == _FRAME:
            # A frame's header is longer than a file's, behind which its walk begins.
            yield from riff_chunks(body[_FRAME_HEADER - 12 :])
        else:
            yield block


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
