"""Files as no program should write them, each with what is to become of it: the fault corpus."""

import struct
import zlib
from dataclasses import dataclass
from itertools import accumulate

import camera
import imagecodecs
import numpy as np
import PIL.Image
from files import WHOLE, gradient, saved, tiff

from pipeline.config import Limits

LIMITS = Limits(
    max_source_bytes=2**24,
    max_input_pixels=2_000_000,
    max_output_pixels=4_000_000,
    max_metadata_bytes=2**22,
    decode_bytes=2**28,
    decode_s=20,
)
BROKEN = frozenset({"decode_failed", "not_an_image"})
DONE = frozenset({"done"})
SUFFIXES = {"progressive": "jpg", "jpeg": "jpg", "png16": "png", "bmp1": "bmp"}
MEGABYTE = 10**6


@dataclass(frozen=True)
class Fault:
    """One file."""

    name: str
    suffix: str
    data: bytes
    wanted: frozenset[str]
    """What it may end as: `done`, or codes of errors."""
    says: str = ""
    """In the message."""
    output: str = "png"

    @property
    def group(self):
        return self.name.partition(":")[0]


def suffix(kind):
    return SUFFIXES.get(kind) or {"tiff": "tif"}.get(kind.split()[0], kind.split()[0])


# --- Whole files and what became of them ---------------------------------------------------------

PLAIN = b"P3\n12 9\n255\n" + b" ".join(b"%d" % (100 + n % 150) for n in range(12 * 9 * 3))
FORMATS = WHOLE | {"ppm plain": PLAIN}
# Cuts of which nothing in the file tells: the lines of a bitmap are padded to four bytes, and the
# last number of a text may have had more digits.
UNSEEN = {("bmp1", 1), ("ppm plain", 1)}


def whole():
    for kind, data in FORMATS.items():
        yield Fault(f"whole: {kind}", suffix(kind), data, DONE)


def cut():
    """At ten places, the last of them before the last byte."""
    for kind, data in FORMATS.items():
        places = [1, *(len(data) * share // 9 for share in range(1, 9)), len(data) - 1]
        for place in places:
            wanted = DONE if (kind, len(data) - place) in UNSEEN else BROKEN
            yield Fault(f"cut: {kind} at {place}", suffix(kind), data[:place], wanted)


def followed():
    """What follows the end of a picture is no part of it. A text has no end but the file's."""
    for kind, data in WHOLE.items():
        yield Fault(f"followed: {kind}", suffix(kind), data + b"\0trailing\xff" * 20, DONE)


def flipped(seeds=range(4)):
    """One bit in each of a few bytes; the first seeds near the beginning, where headers are."""
    for kind, data in FORMATS.items():
        for seed in seeds:
            rng = np.random.default_rng(seed)
            reach = len(data) if seed % 2 else min(len(data), 120)
            file = bytearray(data)
            for place in rng.integers(0, reach, 1 + seed):
                file[place] ^= 1 << int(rng.integers(8))
            yield Fault(f"flipped: {kind}, {seed}", suffix(kind), bytes(file), frozenset())


def renamed():
    """The first bytes say what a file is, not its name."""
    for kind, data in FORMATS.items():
        other = "png" if suffix(kind) != "png" else "jpg"
        yield Fault(f"renamed: {kind}", other, data, DONE)


def strangers():
    page = b"<!DOCTYPE html><html><title>404 Not Found</title>" + b"<p>gone</p>" * 300
    for ending in ("png", "jpg", "tif", "webp", "jp2", "gif", "bmp", "ppm"):
        yield Fault(f"empty: {ending}", ending, b"", BROKEN, r"the file is empty \(0 bytes\)")
        yield Fault(f"html: {ending}", ending, page, BROKEN, "<!DOCTYPE html>")
        yield Fault(f"zeros: {ending}", ending, bytes(5000), BROKEN)
    yield Fault(
        "strange: a PDF", "tif", b"%PDF-1.7\n" + bytes(99), frozenset({"unsupported_format"})
    )


# --- Sizes ---------------------------------------------------------------------------------------


def narrow():
    """One pixel, and one pixel wide or high."""
    kinds = [("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif"), ("WEBP", "webp"), ("BMP", "bmp")]
    kinds += [("JPEG2000", "jp2"), ("GIF", "gif"), ("PPM", "ppm")]
    for kind, ending in kinds:
        long = 16_000 if kind == "WEBP" else 20_000
        for size in ((1, 1), (1, long), (long, 1)):
            data = saved(PIL.Image.new("RGB", size, (10, 200, 90)), kind)
            yield Fault(f"narrow: {kind} {size}", ending, data, DONE)
    line = saved(PIL.Image.new("L", (1, 20_000)), "PNG")
    large = frozenset({"output_too_large"})
    yield Fault("narrow: to WebP", "png", line, large, "webp holds 16,383 a side", "webp")
    line = saved(PIL.Image.new("L", (1, 40_000)), "PNG")
    yield Fault("narrow: to JPEG", "png", line, large, "jpeg holds 65,500 a side", "jpeg")
    half = tiff(np.zeros((1200, 1200), np.uint8), compression="deflate")
    says = r"5,760,000 pixels, limit 4,000,000 \(limits.max_output_pixels"
    yield Fault("narrow: twice is too much", "tif", half, large, says)
    bulk = WHOLE["png"] + bytes(2**24)
    says = r"16,777,216.*\(limits.max_source_bytes\)"
    yield Fault("narrow: many bytes", "png", bulk, frozenset({"source_too_large"}), says)


def zeros(size):
    """A zlib stream of so many zeros, made without making them."""
    piece = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = piece.compress(bytes(2**20)) + piece.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = rest.compress(bytes(size % 2**20)) + rest.flush()
    return b"\x78\xda" + mebibyte * (size >> 20) + end + struct.pack(">I", size % 65_521 << 16 | 1)


def png(width, height, *chunks, depth=8, kind=0):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(camera.png_chunk(*part) for part in parts)


def page(width, height, strip, compression=1, **more):
    """Tags of a gray page whose one strip lies behind the header."""
    plain = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1}
    return plain | {278: height, 279: len(strip)} | more


def raw_tiff(pages, strip, after_last=None):
    """Pages of numbers that fit into their tags. after_last: the index of the page that follows."""
    places = [*accumulate((6 + 12 * len(tags) for tags in pages), initial=8 + len(strip))]
    following = [*places[1:-1], 0 if after_last is None else places[after_last]]
    parts = [b"II*\0", struct.pack("<I", places[0]), strip]
    for tags, next_one in zip(pages, following, strict=True):
        entries = (struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
        parts += [struct.pack("<H", len(tags)), *entries, struct.pack("<I", next_one)]
    return b"".join(parts)


def patched(data, place, code, *values):
    file = bytearray(data)
    struct.pack_into(code, file, place, *values)
    return bytes(file)


def dc_only_jpeg(width, height, scans=0):
    """A progressive JPEG that is gray in one bit a block; and scans that add nothing to it."""
    table = b"\0" + bytes([1]) + bytes(15)
    parts = [
        (0xDB, b"\0" + bytes([1] * 64)),
        (0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
        (0xC4, table + b"\0"),
        (0xC4, b"\x10" + table[1:] + b"\xe0"),  # runs of 16,384 and more blocks
    ]
    blocks = -(-width // 8) * -(-height // 8)
    file = b"\xff\xd8" + b"".join(camera.jpeg_segment(*part) for part in parts)
    file += camera.jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    runs = bytes(-(-15 * -(-blocks // 16_384) // 8))
    return file + (camera.jpeg_segment(0xDA, b"\1\1\0\1\x3f\0") + runs) * scans + b"\xff\xd9"


def bombs():
    """50,000 x 50,000 pixels of zeros, and what looks small from outside."""
    side, much = 50_000, frozenset({"input_too_large"})
    gray = zeros(side * (side + 1))
    line = imagecodecs.lzw_encode(bytes(2**20))
    codestream = WHOLE["j2k"].index(b"\xff\x51")
    rows = b"\xff\0" * (side // 255 + 1) + b"\0\0"
    bmp = saved(gradient.convert("L"), "BMP")
    files = {
        "png": png(side, side, (b"IDAT", gray)),
        "tif": raw_tiff([page(side, side, gray, 8)], gray),
        "lzw.tif": raw_tiff([page(side, side, line, 5)], line),
        "jpg": dc_only_jpeg(side, side),
        "bmp": patched(patched(bmp[:1078] + rows * 2500, 18, "<ii", side, side), 30, "<I", 1),
        "j2k": patched(WHOLE["j2k"], codestream + 6, ">II", side, side),
        "gif": patched(WHOLE["gif"], 6, "<HH", side, side),
        "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        "pgm": b"P5 50000 50000 255\n" + bytes(10**6),
    }
    says = r"[\d,]+ pixels, limit 2,000,000 \(limits.max_input_pixels\)"
    for ending, data in files.items():
        yield Fault(f"bomb: {ending}", ending.split(".")[-1], data, much, says)
    # The decoder meets these.
    small = page(1000, 1000, gray, 8)
    yield Fault("bomb: a strip", "tif", raw_tiff([small], gray), BROKEN | DONE)
    yield Fault("bomb: samples", "png", png(1000, 1000, (b"IDAT", gray)), BROKEN | DONE)
    late = r"limit 20 s \(limits.decode_s[,)]"
    scans = dc_only_jpeg(990, 990, scans=500_000)
    yield Fault("bomb: scans", "jpg", scans, frozenset({"decode_timeout"}), late)
    tiles = small | {322: 60_000, 323: 60_000, 324: 8, 325: len(gray)}
    yield Fault("bomb: a tile", "tif", raw_tiff([tiles], gray), BROKEN, "60,000 x 60,000 in 1,000")
    # The page is small, and what its strip says of itself is read by the codec.
    inside = dc_only_jpeg(20_000, 20_000)
    says = r"need more memory than 268,435,456 \(limits.decode_bytes\)"
    memory = frozenset({"decode_memory_limit"})
    yield Fault("bomb: JPEG", "tif", raw_tiff([page(1000, 1000, inside, 7)], inside), memory, says)


# --- Pages and circles ---------------------------------------------------------------------------


def chained():
    dots = [page(1, 1, b"\x80")]
    many, says = raw_tiff(dots * 10_000, b"\x80"), r"10,000 pages, limit 1,000 \(limits.max_pages\)"
    yield Fault("pages: 10,000", "tif", many, frozenset({"too_many_pages"}), says, "tiff")
    says = r"20 pages, png holds 1 \(format: tiff\)"
    yield Fault(
        "pages: 20 to PNG", "tif", raw_tiff(dots * 20, b"\x80"), frozenset({"output_pages"}), says
    )
    for pages, back in ((1, 0), (3, 0), (3, 1), (3, 2)):
        circle = raw_tiff(dots * pages, b"\x80", after_last=back)
        yield Fault(f"circle: {pages} to {back}", "tif", circle, BROKEN, "comes up again", "tiff")
    # Directories below the first that lead to it, or to themselves.
    first = 9
    for tag in (330, 34665, 34853, 40965):
        below = raw_tiff([page(1, 1, b"\x80") | {tag: first}], b"\x80")
        yield Fault(f"circle: tag {tag}", "tif", below, DONE)
    stream = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 34665, 4, 1, 8, 8)
    yield Fault("circle: EXIF in a PNG", "png", camera.png(WHOLE["png"], (b"eXIf", stream)), DONE)
    yield Fault("circle: EXIF in a JPEG", "jpg", camera.jpeg(WHOLE["jpeg"], exif=stream), DONE)


# --- Metadata ------------------------------------------------------------------------------------


def tiff_stream(size):
    """EXIF of one long text."""
    return (
        struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 270, 2, size, 26, 0) + b"x" * (size - 1) + b"\0"
    )


def packet(size):
    return camera.XMP.replace(b"Scanner 3", b"Scanner 3" + b"x" * size, 1)


def riff(data, *chunks):
    """A simple WebP file with further chunks behind its picture."""
    body = data[12:] + b"".join(
        struct.pack("<4sI", kind, len(content)) + content + bytes(len(content) % 2)
        for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg_profile(size):
    """A profile in as many segments as it takes."""
    count = -(-size // 65_000)
    profile = camera.icc()[:128].ljust(size, b"\0")
    pieces = [
        camera.jpeg_segment(
            0xE2, b"ICC_PROFILE\0" + bytes((index + 1, count)) + profile[index * 65_000 :][:65_000]
        )
        for index in range(count)
    ]
    return WHOLE["jpeg"][:2] + b"".join(pieces) + WHOLE["jpeg"][2:]


def said(size):
    """Files that say so much beside their pictures."""
    bare, text = WHOLE["png"], b"x" * size
    pixels = np.asarray(gradient)
    tags = {"icc": 34675, "xmp": 700, "text": 270}
    boxes = struct.pack(">I4s", 24 + len(packet(size)), b"uuid")
    boxes += bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + packet(size)
    return {
        "EXIF.png": camera.png(bare, (b"eXIf", tiff_stream(size))),
        "ICC.png": camera.png(bare, (b"iCCP", b"x\0\0" + zlib.compress(text))),
        "XMP.png": camera.png(bare, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet(size))),
        "raw profile.png": camera.png(
            bare, (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
        ),
        "ICC.jpg": jpeg_profile(size),
        "EXIF.webp": riff(WHOLE["webp"], (b"EXIF", tiff_stream(size))),
        "XMP.webp": riff(WHOLE["webp"], (b"XMP ", packet(size))),
        "XMP.jp2": WHOLE["jp2"] + boxes,
        **{
            f"{name}.tif": tiff(pixels, photometric="rgb", extratags=[(tag, 7, size, text, True)])
            for name, tag in tags.items()
        },
    }


def talkative():
    much, limit = (
        frozenset({"metadata_too_large"}),
        r"limit 4,194,304 \(limits.max_metadata_bytes\)",
    )
    for name, data in said(10 * MEGABYTE).items():
        yield Fault(f"says 10 MB: {name}", name.rpartition(".")[2], data, much, limit)
    for name, data in said(MEGABYTE).items():
        yield Fault(f"says 1 MB: {name}", name.rpartition(".")[2], data, DONE)
    # Texts have no place in a result and are not kept.
    text = camera.png(WHOLE["png"], (b"tEXt", b"Comment\0" + b"x" * 10 * MEGABYTE))
    yield Fault("says 10 MB: text.png", "png", text, DONE)
    bomb = camera.png(WHOLE["png"], (b"iCCP", b"x\0\0" + zeros(2 * 10**9)))
    yield Fault("says 2 GB: ICC.png", "png", bomb, much, limit)
    many = camera.png(WHOLE["png"], *[(b"tEXt", b"a\0b")] * 100_000)
    yield Fault("says much: 100,000 texts", "png", many, DONE)


MAKERS = (
    *(whole, cut, followed, flipped, renamed, strangers),
    *(narrow, bombs, chained, talkative),
)
