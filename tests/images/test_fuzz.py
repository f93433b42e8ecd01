"""Headers and metadata that Hypothesis makes up: in the grammar of each format, with odd numbers.

Bytes that are changed anywhere are in test_decode and test_metadata; few of those get behind a
checksum or a length.
"""

import contextlib
import io
import struct
import zlib

import camera
import numpy as np
import PIL.Image
import pytest
import tifffile
from files import WHOLE
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Encode, Limits, Policy
from pipeline.errors import ItemError
from pipeline.images import metadata
from pipeline.images.decode import decode, probe, probe_pages
from pipeline.images.encode import CONTENT_TYPES, encode
from pipeline.images.image import Facts, Metadata
from pipeline.images.page import Page

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
LIMITS = Limits(max_input_pixels=10**5, max_metadata_bytes=10**5)
EVERYTHING = Policy(colour="convert", animation="first_frame", truncated="accept")

odd = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 16, 48, 255, 256, 2**15, 2**16 - 1, 2**31, 2**32 - 1])
words = st.one_of(odd, st.integers(0, 2**32 - 1))
bytes_ = st.binary(max_size=40)


def check(data):
    """Facts that a picture may have, or an ItemError; the same of each page, and of metadata."""
    try:
        facts = probe(data, LIMITS, EVERYTHING)
    except ItemError:
        return
    assert 0 < facts.width * facts.height <= LIMITS.max_input_pixels
    assert 1 <= facts.channels <= 4
    assert 1 <= facts.bit_depth <= 16
    assert 1 <= facts.orientation <= 8
    assert facts.frames >= 1
    with contextlib.suppress(ItemError):
        pages = probe_pages(data, LIMITS, EVERYTHING)
        assert pages[0] == facts
        assert len(pages) == (facts.frames if facts.format == "tiff" else 1)
    with contextlib.suppress(ItemError):
        image = decode(data, LIMITS, EVERYTHING)
        shape = (facts.height, facts.width)
        assert image.pixels.shape == (
            *(shape if facts.orientation < 5 else shape[::-1]),
            facts.channels,
        )


def blocks(kinds):
    """Kinds with contents, and by how much the length that is written is wrong."""
    wrong = st.one_of(st.just(0), st.just(0), st.just(0), odd, st.integers(-9, 9))
    return st.lists(st.tuples(st.sampled_from(kinds), bytes_, wrong), max_size=6)


def length(body, wrong):
    return (len(body) + wrong) % 2**32


@fuzz
@given(
    st.tuples(*[st.sampled_from([0, 1, 5, 300, 2**31])] * 2),
    st.sampled_from([0, 1, 2, 4, 8, 16, 32]),
    st.integers(0, 7),
    st.integers(0, 2),
    blocks([b"PLTE", b"tRNS", b"acTL", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"pHYs", b"IDAT"]),
    st.binary(max_size=400),
)
def test_png(size, depth, kind, interlace, more, samples):
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, interlace)
    parts = [(b"IHDR", header, 0), *more, (b"IDAT", zlib.compress(samples), 0), (b"IEND", b"", 0)]
    file = b"\x89PNG\r\n\x1a\n"
    for name, body, wrong in parts:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        file += struct.pack(">I", length(body, wrong)) + name + body + checksum
    check(file)


@fuzz
@given(blocks([*range(0xC0, 0xC5), 0xC8, 0xCC, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE]))
def test_jpeg(more):
    file = b"\xff\xd8"
    for marker, body, wrong in more:
        prefix = {0xE1: b"Exif\0\0II*\0", 0xE2: b"MPF\0II*\0", 0xEE: b"Adobe"}.get(marker, b"")
        size = (len(prefix + body) + 2 + wrong) % 2**16
        file += struct.pack(">BBH", 0xFF, marker, size) + prefix + body
    check(file + WHOLE["jpeg"][2:])
    check(file + b"\xff\xd9")


@fuzz
@given(blocks([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP", b"XMP "]))
def test_webp(more):
    for behind in (b"", WHOLE["webp"][12:], WHOLE["webp lossless"][12:]):
        body = b"WEBP"
        for name, content, wrong in more:
            padded = content + bytes(len(content) % 2)
            body += name + struct.pack("<I", length(content, wrong)) + padded
        check(b"RIFF" + struct.pack("<I", len(body + behind)) + body + behind)


@fuzz
@given(blocks([b"ihdr", b"colr", b"pclr", b"cmap", b"cdef", b"res ", b"uuid", b"jp2h", b"jp2c"]))
def test_jpeg2000(more):
    inner = b"".join(
        struct.pack(">I4s", (length(body, wrong) + 8) % 2**32, name) + body
        for name, body, wrong in more
    )
    stream = WHOLE["j2k"]
    header = WHOLE["jp2"][: WHOLE["jp2"].index(b"jp2h") - 4]
    wrapped = struct.pack(">I4s", 8 + len(inner), b"jp2h") + inner
    for said in (wrapped, inner):
        check(header + said + struct.pack(">I4s", 8 + len(stream), b"jp2c") + stream)


TAGS = [254, 255, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324]
TAGS += [325, 330, 332, 338, 339, 347, 700, 32997, 33723, 34377, 34665, 34675, 34853, 50706]
PLAIN = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
entries = st.lists(
    st.tuples(st.sampled_from(TAGS), st.integers(0, 18), st.one_of(st.just(1), odd), words),
    max_size=8,
)


@fuzz
@given(st.sampled_from("<>"), st.lists(entries, min_size=1, max_size=3), st.integers(0, 3))
def test_tiff(order, directories, back):
    """Directories of a sound page in which some tags are others; the last may lead back."""
    file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 24) + bytes(16)
    starts = []
    for index, directory in enumerate(directories):
        rows = {tag: (4, 1, value) for tag, value in PLAIN.items()}
        rows |= {tag: row for tag, *row in directory}
        starts.append(len(file))
        following = len(file) + 6 + 12 * len(rows)
        if index == len(directories) - 1:
            following = starts[back] if back < len(starts) else 0
        file += struct.pack(order + "H", len(rows))
        for tag, (kind, count, value) in sorted(rows.items()):
            file += struct.pack(order + "HHII", tag, kind, count, value)
        file += struct.pack(order + "I", following)
    check(file)


@fuzz
@given(st.binary(max_size=30), st.sampled_from([b"BM", b"GIF89a", b"GIF87a", b"P5 ", b"P1\n"]))
def test_the_others(more, start):
    check(start + more)
    whole = {b"BM": "bmp", b"GI": "gif", b"P5": "ppm", b"P1": "pbm"}[start[:2]]
    check(start + more + WHOLE[whole][len(start) + len(more) :])


# --- Writers -------------------------------------------------------------------------------------

rationals = st.floats(0, 2**33, allow_nan=False)
blocks_of_metadata = st.builds(
    Metadata,
    icc_profile=st.one_of(st.none(), bytes_, st.just(camera.icc()), st.just(camera.icc("gray"))),
    exif=st.one_of(st.none(), bytes_.map(lambda more: b"II*\0\x08\0\0\0" + more), bytes_),
    xmp=st.one_of(st.none(), bytes_, st.just(camera.XMP), st.just(camera.XMP[:-2100])),
    iptc=st.one_of(st.none(), bytes_, st.just(camera.IPTC)),
    dpi=st.one_of(st.none(), st.tuples(rationals, rationals)),
)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, which looks for a resolution there
@pytest.mark.parametrize("format", CONTENT_TYPES)
@fuzz
@given(blocks_of_metadata, st.integers(1, 4), st.booleans())
def test_whatever_is_said_a_result_has_its_pixels(format, said, channels, as_read):
    """Of blocks as they come from a source, and of such as `derive` would not let through."""
    samples = np.arange(6 * 5 * channels, dtype=np.uint8).reshape(6, 5, channels)
    if not as_read:
        facts = Facts("png", "RGB", 8, 1, 5, 6, channels)
        made = metadata.Provenance("model", "a1" * 32, 1.0, "b2" * 32, "0")
        said, _ = metadata.derive(said, source=facts, size=(5, 6), provenance=made, policy=Policy())
    try:
        file, _ = encode([Page(samples, said)], format, Encode(webp_lossless=True), Policy())
    except ItemError:
        assert as_read, "what is derived can be written"
        return
    back = decode(file, LIMITS, Policy())
    assert back.pixels.shape[:2] == (6, 5)
    assert back.facts.orientation == 1 or as_read
    if format == "tiff":
        with tifffile.TiffFile(io.BytesIO(file)) as opened:
            found = opened.asarray().reshape(6, 5, -1)
        if channels < 3 and (said.icc_profile or b"")[16:20] == b"RGB ":  # grays as RGB
            samples = samples[:, :, [0, 0, 0, 1][: channels + 2]]
        np.testing.assert_array_equal(found, samples)
    else:
        with PIL.Image.open(io.BytesIO(file)) as opened:
            opened.load()
            assert opened.size == (5, 6)
