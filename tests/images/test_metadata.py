"""What is read of a source's metadata, and what its result says: checked by other readers."""

import contextlib
import io
import json
import shutil
import struct
import subprocess
import time
import tracemalloc
import xml.etree.ElementTree
import zlib
from dataclasses import replace

import camera
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Policy
from pipeline.errors import ItemError, TooLargeError
from pipeline.images import exif, exif_edit, metadata, xmp
from pipeline.images.containers import embed
from pipeline.images.exif_edit import Change
from pipeline.images.image import Facts, Metadata
from pipeline.images.page import Page
from pipeline.images.tiff import encode as encode_tiff

EXIFTOOL = shutil.which("exiftool")
PROFILE = camera.icc()
WIDTH, HEIGHT = 40, 30
PROVENANCE = metadata.Provenance("realesr-animevideov3", "a1" * 32, 4.0, "b2" * 32, "0.1.0")
UPRIGHT = Change(1, (WIDTH, HEIGHT), (WIDTH, HEIGHT), scale_resolution=True)
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
fuzz = settings(deadline=None, derandomize=True, max_examples=150)
orders = pytest.mark.parametrize("order", ["<", ">"])


def bare(format, size=(WIDTH, HEIGHT), **options):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (10, 200, 90)).save(file, format, **options)
    return file.getvalue()


def webp(**blocks):
    return embed(bare("webp"), "webp", Metadata(**blocks))[0]


def jp2(boxes=b"", header=b""):
    file = bare("jpeg2000")
    at = file.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", file, at)
    inner = struct.pack(">I", size + len(header)) + file[at + 4 : at + size] + header
    return file[:at] + inner + boxes + file[at + size :]


def box(kind, body):
    return struct.pack(">I", 8 + len(body)) + kind + body


def hexed(kind, body):
    return b"\n%s\n%8d\n%s\n" % (kind, len(body), body.hex().encode())


def tiff(*, big=False, extra=(), pages=1, **options):
    file = io.BytesIO()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with tifffile.TiffWriter(file, bigtiff=big, **options) as writer:
        for page in range(pages):
            tags = [(700, 1, None, camera.XMP, True), (33723, 7, None, camera.IPTC, True), *extra]
            tags.append((315, 2, None, f"Artist {page}", True))
            writer.write(
                pixels,
                photometric="rgb",
                metadata=None,
                resolution=(100, 50),
                resolutionunit=3,
                iccprofile=PROFILE,
                extratags=tags,
                software=False,
            )
    return file.getvalue()


def read(data, format, limit=10**7, **options):
    return metadata.read(data, format, limit=limit, **options)


def facts(format="jpeg", orientation=1):
    return Facts(format, "RGB", 8, 1, WIDTH, HEIGHT, 3, orientation=orientation)


def derive(said, *, orientation=1, size=(160, 120), **policy):
    source = facts(orientation=orientation)
    return metadata.derive(
        said, source=source, size=size, provenance=PROVENANCE, policy=Policy(**policy)
    )


SAID = Metadata(PROFILE, camera.exif(), camera.XMP, camera.IPTC, (300.0, 200.0))
MAGICK = (camera.exif(), camera.XMP, camera.IPTC)
SOURCES = {
    "jpeg": camera.jpeg(
        bare("jpeg", dpi=(300, 200)),
        exif=camera.exif(),
        xmp=camera.XMP,
        iptc=camera.IPTC,
        icc=PROFILE,
    ),
    "png": embed(bare("png"), "png", SAID)[0],
    "webp": webp(icc_profile=PROFILE, exif=camera.exif(dpi=(300, 200)), xmp=camera.XMP),
    "tiff": tiff(),
    "jpeg2000": jp2(
        box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + camera.XMP)
        + box(b"uuid", b"JpgTiffExif->JP2" + camera.exif())
        + box(b"uuid", bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38") + camera.IPTC),
        box(b"colr", b"\2\0\0" + PROFILE)
        + box(b"res ", box(b"resc", struct.pack(">HHHHbb", 7874, 100, 11811, 100, 2, 2))),
    ),
    "bmp": bare("bmp", dpi=(300, 200)),
}


# Reading


@pytest.mark.parametrize("format", SOURCES)
def test_every_block_is_read_as_it_stands(format):
    said, warnings = read(SOURCES[format], format)
    assert warnings == (("icc_untagged",) if format == "bmp" else ())
    if format != "bmp":
        assert said.icc_profile == PROFILE
        assert said.xmp == xmp.normalised(camera.XMP)
        assert said.iptc == (None if format == "webp" else camera.IPTC)
    if format in ("jpeg", "png", "webp", "jpeg2000"):
        assert said.exif == camera.exif()
    dots = (254, 127) if format == "tiff" else (300, 200)
    assert said.dpi == pytest.approx(dots, abs=0.02)


@pytest.mark.parametrize("format", ["gif", "pnm", "png", "jpeg", "webp", "tiff", "bmp"])
def test_a_picture_that_says_nothing(format):
    said, warnings = read(bare({"pnm": "ppm"}.get(format, format)), format)
    assert (said.icc_profile, said.exif, said.xmp, said.iptc) == (None, None, None, None)
    assert warnings == ("icc_untagged",)


def behind_jfif(marker, body):
    file = bare("jpeg")
    return file[:20] + camera.jpeg_segment(marker, body) + file[20:]


def twice(stream):
    """A JPEG with EXIF, and with that behind it."""
    return behind_jfif(0xE1, b"Exif\0\0" + camera.exif()).replace(
        camera.exif(), camera.exif() + camera.jpeg_segment(0xE1, b"Exif\0\0" + stream)
    )


def wide(format):
    """Pixels of 59 to 54, as television's are, in a file that gives no unit."""
    if format == "png":
        return camera.png(bare("png"), (b"pHYs", struct.pack(">IIB", 59, 54, 0)))
    if format == "jpeg":
        return bare("jpeg")[:13] + struct.pack(">BHH", 0, 59, 54) + bare("jpeg")[18:]
    file = io.BytesIO()
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    tifffile.imwrite(file, pixels, photometric="rgb", resolution=(59, 54), resolutionunit=1)
    return file.getvalue()


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_pixels_that_are_not_square_stay_so(format):
    said, _ = read(wide(format), format)
    assert (said.dpi, said.aspect) == (None, pytest.approx(59 / 54))
    made, _ = derive(said)
    for into in ("png", "jpeg"):
        file, warnings = embed(bare(into), into, made)
        assert warnings == ()
        assert read(file, into)[0].aspect == pytest.approx(59 / 54)
    file, warnings = encode_tiff([Page(np.zeros((120, 160, 3), np.uint8), made)])
    assert warnings == ()
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        tags = opened.pages[0].tags
        assert [tags[number].value for number in (282, 283, 296)] == [(59, 1), (54, 1), 1]
    assert "aspect_dropped" in embed(bare("webp"), "webp", made)[1]


OF_PHOTOSHOP = b"Raw profile type 8bim\0" + hexed(b"8bim", camera.photoshop(b"", 2000)[14:])


def in_gif(name, parts):
    """An application's extension behind the palette."""
    file = bare("gif")
    at = 13 + (6 << (file[10] & 7))
    return file[:at] + b"\x21\xff\x0b" + name + parts + b"\0" + file[at:]


def test_the_profile_and_the_packet_of_a_gif(tmp_path):
    pieces = [PROFILE[at : at + 255] for at in range(0, len(PROFILE), 255)]
    parts = b"".join(bytes((len(piece),)) + piece for piece in pieces)
    said, warnings = read(in_gif(b"ICCRGBG1012", parts), "gif")
    assert (said.icc_profile, warnings) == (PROFILE, ())
    tail = b"\1" + bytes(range(255, -1, -1))  # as XMP's specification has it, with the end's zero
    file = in_gif(b"XMP DataXMP", camera.XMP + tail)
    said, warnings = read(file, "gif")
    assert (said.xmp, warnings) == (xmp.normalised(camera.XMP), ("icc_untagged",))
    if EXIFTOOL:
        assert exiftool(file, tmp_path / "picture.gif")["XMP-dc:Rights"] == camera.RIGHTS


def with_mode(mode, format):
    file = io.BytesIO()
    PIL.Image.new(mode, (WIDTH, HEIGHT)).save(file, format)
    return file.getvalue()


def bmp4(colours):
    """A BMP with a header of version 4, which names its colour space."""
    file = bare("bmp")
    start = struct.unpack_from("<I", file, 10)[0] + 68
    head = struct.pack("<I", len(file) + 68) + bytes(4) + struct.pack("<II", start, 108)
    return file[:2] + head + file[18:54] + bytes(16) + colours + bytes(48) + file[54:]


SRGB_CHUNK = (b"sRGB", b"\0")
OF_ADOBE = (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))


@pytest.mark.parametrize(
    ("source", "format", "space"),
    [
        (camera.png(bare("png"), SRGB_CHUNK), "png", "RGB"),
        (camera.png(bare("png"), SRGB_CHUNK, OF_ADOBE), "png", "RGB"),  # sRGB overrules it
        (camera.png(bare("png"), (b"cICP", b"\1\x0d\0\1")), "png", "RGB"),
        (camera.png(with_mode("L", "png"), SRGB_CHUNK), "png", "GRAY"),
        (camera.png(with_mode("LA", "png"), SRGB_CHUNK), "png", "GRAY"),
        (bare("jpeg2000"), "jpeg2000", "RGB"),
        (with_mode("L", "jpeg2000"), "jpeg2000", "GRAY"),
        (bmp4(b"BGRs"), "bmp", "RGB"),
    ],
)
def test_srgb_that_is_only_named_becomes_a_profile(source, format, space):
    said, warnings = read(source, format)
    assert warnings == ()
    profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(said.icc_profile))
    assert profile.profile.xcolor_space.strip() == space
    ramp = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    shown = PIL.ImageCms.profileToProfile(
        ramp if space == "GRAY" else ramp.convert("RGB"),
        profile,
        PIL.ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert np.abs(np.asarray(shown).astype(int) - np.arange(256)[None, :, None]).max() <= 1
    target = bare("png") if space == "RGB" else with_mode("L", "png")
    made, lost = embed(target, "png", said)
    assert lost == ()
    assert PIL.Image.open(io.BytesIO(made)).info["icc_profile"] == said.icc_profile


def test_a_profile_counts_for_more_than_a_name():
    profile = (b"iCCP", b"name\0\0" + zlib.compress(camera.swapped()))
    assert read(camera.png(bare("png"), SRGB_CHUNK, profile), "png")[0].icc_profile == (
        camera.swapped()
    )


@pytest.mark.skipif(not EXIFTOOL, reason="needs exiftool")
def test_the_gray_profile_is_valid(tmp_path):
    said, _ = read(camera.png(with_mode("L", "png"), SRGB_CHUNK), "png")
    path = tmp_path / "gray.icc"
    path.write_bytes(said.icc_profile)
    command = [EXIFTOOL, "-j", "-validate", "-warning", "-a", path]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert found["Validate"] == "OK"


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_profiles_in_the_texts_of_old_pngs(kind):
    wrap = {
        b"tEXt": lambda text: text,
        b"zTXt": lambda text: b"\0" + zlib.compress(text),
        b"iTXt": lambda text: b"\1\0en\0word\0" + zlib.compress(text),
    }[kind]
    photoshop = camera.photoshop(camera.IPTC)[14:]
    told = {
        b"exif": b"Exif\0\0" + camera.exif(),
        b"iptc": photoshop,
        b"APP1": b"http://ns.adobe.com/xap/1.0/\0" + camera.XMP,
        b"icc": PROFILE,
    }
    chunks = [
        (kind, b"Raw profile type " + name + b"\0" + wrap(hexed(name, body)))
        for name, body in told.items()
    ]
    said, warnings = read(camera.png(bare("png"), *chunks), "png")
    assert said == Metadata(
        PROFILE, camera.exif(), xmp.normalised(camera.XMP), camera.IPTC, (300, 200)
    )
    assert warnings == ()
    newer = (b"eXIf", camera.exif(">"))
    assert read(camera.png(bare("png"), *chunks, newer), "png")[0].exif == camera.exif(">")


@orders
@pytest.mark.parametrize("big", [False, True])
def test_what_a_tiff_says_becomes_exif_of_its_own(order, big):
    file = tiff(big=big, byteorder=order, pages=3, extra=[(65000, 3, 1, 7, True)])
    for page in range(3):
        said, warnings = read(file, "tiff", page=page)
        assert said.dpi == pytest.approx((254, 127))
        assert exif.entries(said.exif)["ifd0"][315] == (2, 9, b"Artist %d\0" % page)
        assert warnings == ("tiff_tags_dropped",)
        assert set(exif.entries(said.exif)["ifd0"]) == {282, 283, 296, 315}
    assert "exif_broken" in read(file, "tiff", page=3)[1]


@orders
def test_the_directories_below_a_tiffs_first(order):
    stream = camera.exif(order, thumbnail=False)
    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT))
    file = io.BytesIO()
    loaded = PIL.Image.Exif()
    loaded.load(stream)
    picture.save(file, "tiff", exif=loaded.tobytes())
    said, warnings = read(file.getvalue(), "tiff")
    assert warnings == ("icc_untagged",)
    assert exif.entries(said.exif)["exif"].keys() >= {0x829A, 0x9003, 0x927C, 0x9286, 0xA002}
    note = exif.entries(stream)["exif"][0x927C]
    assert exif.entries(said.exif)["exif"][0x927C][1:] == note[1:]  # Pillow says BYTE
    assert exif.entries(said.exif)["gps"] == exif.entries(stream)["gps"]


@orders
@pytest.mark.parametrize("big", [False, True])
def test_a_maker_note_stays_as_far_from_the_beginning_of_a_tiff(order, big, tmp_path):
    at, note = exif.maker_note(camera.exif(order))
    file = with_note(order, big, at)
    said, warnings = read(file, "tiff")
    assert "maker_note_moved" not in warnings
    assert exif.maker_note(said.exif) == (at, note)
    far = with_note(order, big, 70_000)
    moved, warnings = read(far, "tiff")
    assert "maker_note_moved" in warnings
    assert len(moved.exif) < len(said.exif) < 5000
    assert exif.maker_note(moved.exif)[1] == note
    made, _ = derive(said)
    picture, lost = embed(bare("jpeg", (160, 120)), "jpeg", made)
    assert lost == ()
    if EXIFTOOL:
        found = exiftool(picture, tmp_path / "picture.jpg")
        assert found["Canon:OwnerName"] == "Owner of the camera"
        assert "ExifTool:Warning" not in found


def with_note(order, big, at):
    """The tags of a TIFF with a camera's maker note there."""
    pack = lambda letters, *values: struct.pack(order + letters, *values)  # noqa: E731
    offset, room, head = ("Q", 8, 16) if big else ("I", 4, 8)
    note = exif.maker_note(camera.exif(order))[1]

    def table(*rows):
        entries = (
            pack("HH" + offset, tag, kind, count) + pack("I" if kind == 4 else offset, value)[:room]
            for tag, kind, count, value in rows
        )
        padded = b"".join(entry.ljust(4 + 2 * room, b"\0") for entry in entries)
        return pack("Q" if big else "H", len(rows)) + padded + bytes(room)

    size = len(table((0, 4, 1, 0), (0, 4, 1, 0)))
    make = head + size + len(table((0, 4, 1, 0)))
    file = (b"II" if order == "<" else b"MM") + (pack("HHH", 43, 8, 0) if big else pack("H", 42))
    file += pack(offset, head) + table((0x010F, 2, 10, make), (0x8769, 4, 1, head + size))
    file += table((0x927C, 7, len(note), at)) + b"Canon EOS\0"
    return file.ljust(at, b"\0") + note


def test_iptc_in_photoshops_tiffs_and_turned_round():
    wrapped = camera.photoshop(camera.IPTC)[14:]
    file = tiff(extra=[(34377, 7, None, wrapped, True)])
    file = file.replace(struct.pack("<HH", 33723, 7), struct.pack("<HH", 33724, 7))
    assert read(file, "tiff")[0].iptc == camera.IPTC
    longs = camera.IPTC + bytes(-len(camera.IPTC) % 4)
    turned = b"".join(longs[at : at + 4][::-1] for at in range(0, len(longs), 4))
    file = tiff().replace(camera.IPTC, turned[: len(camera.IPTC)])
    assert len(turned) == len(camera.IPTC) or "iptc_broken" in read(file, "tiff")[1]


def test_layouts_of_microscopes_are_no_descriptions():
    told = [(270, 2, None, "ImageJ=1.53\nimages=9", True)]
    said, warnings = read(tiff(extra=told), "tiff")
    assert 270 not in exif.entries(said.exif)["ifd0"]
    assert warnings == ("tiff_tags_dropped",)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_packets_in_other_encodings(encoding):
    packet = camera.XMP.decode().encode(encoding) + bytes(2)
    said, _ = read(webp(xmp=packet), "webp")
    assert said.xmp == xmp.normalised(camera.XMP)


@pytest.mark.parametrize(
    ("source", "format", "code"),
    [
        (camera.jpeg(bare("jpeg"), exif=b"II*\0\xff\xff\xff\xff"), "jpeg", "exif_broken"),
        (camera.jpeg(bare("jpeg"), exif=camera.exif()[:-40]), "jpeg", None),
        (camera.jpeg(bare("jpeg"), exif=camera.exif()[:400]), "jpeg", "exif_repaired"),
        (camera.jpeg(bare("jpeg"), xmp=camera.XMP[:-2100]), "jpeg", "xmp_broken"),
        (camera.jpeg(bare("jpeg"), xmp=b"<a/>"), "jpeg", "xmp_broken"),
        (camera.jpeg(bare("jpeg"), iptc=camera.IPTC[:-4]), "jpeg", "iptc_broken"),
        (camera.jpeg(bare("jpeg"), icc=PROFILE[:-4]), "jpeg", "icc_broken"),
        (SOURCES["jpeg"].replace(b"PROFILE\0\1\1", b"PROFILE\0\1\2"), "jpeg", "icc_broken"),
        (camera.png(bare("png"), (b"iCCP", b"name\0\0" + b"no zlib")), "png", "icc_broken"),
        (camera.png(bare("png"), (b"eXIf", b"MM\0*")), "png", "exif_broken"),
        (SOURCES["png"].replace(b"Canon EOS", b"Kanon EOS"), "png", "exif_broken"),  # checksum
        (camera.png(bare("png"), (b"tEXt", b"Title\0Rathaus")), "png", "text_dropped"),
        (camera.png(bare("png"), (b"gAMA", struct.pack(">I", 100_000))), "png", "gamma_dropped"),
        (camera.png(bare("png"), (b"gAMA", struct.pack(">I", 45_455))), "png", None),
        (
            camera.png(bare("png"), (b"gAMA", struct.pack(">I", 45_455)), OF_ADOBE),
            "png",
            "gamma_dropped",
        ),
        (camera.png(bare("png"), (b"cICP", b"\x09\x10\0\1")), "png", "gamma_dropped"),
        (camera.png(bare("png"), (b"caBX", b"jumb")), "png", "c2pa_dropped"),
        (bare("jpeg", comment="Rathaus"), "jpeg", "text_dropped"),
        (behind_jfif(0xE1, b"Exif\0\0" + camera.exif(">")), "jpeg", None),
        (twice(camera.exif(">")), "jpeg", "blocks_dropped"),
        (twice(camera.exif()), "jpeg", None),
        (camera.png(bare("png"), (b"sBIT", b"\5\6\5")), "png", "blocks_dropped"),
        (camera.png(bare("png"), (b"tIME", bytes(7))), "png", "blocks_dropped"),
        (camera.png(bare("png"), (b"tEXt", OF_PHOTOSHOP)), "png", "blocks_dropped"),
        (behind_jfif(0xE1, b"FLIR\0\1\0\0"), "jpeg", "blocks_dropped"),
        (behind_jfif(0xEC, b"Ducky\0\1\0\4"), "jpeg", "blocks_dropped"),
        (behind_jfif(0xED, camera.photoshop(b"", 2000)), "jpeg", "blocks_dropped"),
        (behind_jfif(0xED, camera.photoshop(b"", 0x0425)), "jpeg", None),
        (behind_jfif(0xEE, b"Adobe\0d\0\0\0\0\1"), "jpeg", None),
        (bare("jpeg", progressive=True), "jpeg", None),
        (jp2(box(b"xml ", b"<a/>")), "jpeg2000", "blocks_dropped"),
        (jp2(box(b"uuid", bytes(20))), "jpeg2000", "blocks_dropped"),
        (webp(icc_profile=PROFILE) + b"ABCD\2\0\0\0ab", "webp", "blocks_dropped"),
        (bare("gif", comment=b"Rathaus"), "gif", "text_dropped"),
        (bare("gif", save_all=True, append_images=[PIL.Image.new("1", (9, 9))]), "gif", None),
        (in_gif(b"Elsewhere10", b"\2ab"), "gif", "blocks_dropped"),
        (bare("ppm") + b"\n", "pnm", None),
        (bare("ppm") * 2, "pnm", "blocks_dropped"),
        (with_mode("1", "ppm") * 2, "pnm", "blocks_dropped"),
        (
            tiff(extra=[(34377, 7, None, camera.photoshop(b"", 2000)[14:], True)]),
            "tiff",
            "blocks_dropped",
        ),
    ],
)
def test_what_is_broken_or_lost_has_its_code(source, format, code):
    _, warnings = read(source, format)
    assert [one for one in warnings if one != "icc_untagged"] == ([code] if code else [])


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "jpeg2000"])
def test_more_than_the_limit_is_refused_with_both_numbers(format):
    said, _ = read(SOURCES[format], format)
    with pytest.raises(TooLargeError, match=r"limit 3,000 \(limits.max_metadata_bytes\)") as caught:
        read(SOURCES[format], format, limit=3000)
    assert caught.value.code == "metadata_too_large"
    assert read(SOURCES[format], format, limit=40_000)[0] == said


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        (b"iCCP", b"name\0\0"),
        (b"zTXt", b"Raw profile type exif\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
    ],
)
def test_bombs_stop_at_the_limit(kind, head):
    bomb = zlib.compress(bytes(50_000_000), 9)
    with pytest.raises(TooLargeError, match="100,001 bytes"):
        read(camera.png(bare("png"), (kind, head + bomb)), "png", limit=100_000)


# The result


@orders
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_true_of_the_result_and_stays_where_it_was(order, orientation):
    stream = camera.exif(order, orientation=orientation)
    turned = orientation >= 5
    size = (90, 160) if turned else (120, 120)  # three and four times
    made, warnings = derive(replace(SAID, exif=stream), orientation=orientation, size=size)
    assert warnings == ()
    said, before = exif.entries(made.exif, order), exif.entries(stream, order)
    assert said["ifd0"][0x0112] == (3, 1, struct.pack(order + "H", 1))
    ratio = {tag: value for tag, (kind, _, value) in said["ifd0"].items() if kind == 5}
    across, down = (200 * 3, 300 * 4) if turned else (300 * 3, 200 * 4)
    assert struct.unpack(order + "II", ratio[282]) == (across, 1)
    assert struct.unpack(order + "II", ratio[283]) == (down, 1)
    assert said["exif"][0xA002] == (3, 1, struct.pack(order + "H", size[0]))
    assert said["exif"][0xA003] == (3, 1, struct.pack(order + "H", size[1]))
    assert said["interop"][0x1001][2] == said["exif"][0xA002][2]
    untouched = {0x010F, 0x0110, 0x0128, 0x8298}
    assert all(said["ifd0"][tag] == before["ifd0"][tag] for tag in untouched)
    assert said["gps"] == before["gps"]
    # The maker note and what its offsets lead to.
    note = before["exif"][0x927C][2]
    assert made.exif.index(note) == stream.index(note)
    assert camera.THUMBNAIL not in made.exif
    assert len(made.exif) < len(stream)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_subject_is_where_it_was_in_the_picture(orientation):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[4:6, 8:12] = 255  # around (10, 5): four wide, two high
    file = io.BytesIO()
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(file, "png", exif=tags)
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))
    rows, columns = np.nonzero(upright)
    x, y = (columns.min() + columns.max() + 1) // 2, (rows.min() + rows.max() + 1) // 2
    size = (4 * upright.shape[1], 4 * upright.shape[0])
    change = Change(orientation, (WIDTH, HEIGHT), size, scale_resolution=True)
    said = exif.entries(exif_edit.edit(camera.exif(orientation=orientation), change))
    area = struct.unpack("<4H", said["exif"][0x9214][2])
    assert area == (4 * x, 4 * y, 4 * np.ptp(columns) + 4, 4 * np.ptp(rows) + 4)


def test_values_that_tags_share_are_corrected_apart():
    shared = struct.pack("<II", 72, 1)
    rows = [(282, 5, 1, 62), (283, 5, 1, 62), (0x829A, 5, 1, 62), (34855, 3, 1, 100)]
    table = struct.pack("<H", 4) + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    stream = (b"II*\0" + struct.pack("<I", 8) + table).ljust(62, b"\0") + shared
    made = exif_edit.edit(stream, Change(1, (10, 10), (20, 30), scale_resolution=True))
    said = exif.entries(made)["ifd0"]
    assert said[282][2] == struct.pack("<II", 144, 1)
    assert said[283][2] == struct.pack("<II", 216, 1)
    assert said[0x829A][2] == shared


def test_tens_of_thousands_of_tags_take_no_time():
    tags = {tag: (5, 1, bytes(8)) for tag in range(1000, 31_000)}
    stream = bytearray(exif.build({"ifd0": tags}, "<"))
    (at,) = struct.unpack_from("<I", stream, 4)
    table = bytes(stream[at:])
    struct.pack_into("<I", stream, len(stream) - 4, len(stream))
    start = time.process_time()
    made = exif_edit.edit(bytes(stream) + table, UPRIGHT)
    assert time.process_time() - start < 5
    assert len(exif.entries(made)["ifd0"]) == len(
        tags.keys() - exif.STORAGE - {33723, 34377, 34675}
    )


def test_values_that_all_lie_in_one_place_are_refused_unread():
    size, count = 200_000, 4000
    rows = b"".join(
        struct.pack("<HHII", tag, 7, 140_000, 60_000) for tag in range(1000, 1000 + count)
    )
    stream = b"II*\0" + struct.pack("<IH", 8, count) + rows + bytes(4)
    stream = stream.ljust(size, b"x")
    tracemalloc.start()
    start = time.process_time()
    for refuse in (exif.check, exif.entries, lambda one: exif_edit.edit(one, UPRIGHT)):
        with pytest.raises(exif.BrokenExifError, match=r"560,000,000 bytes of .* of 200,000"):
            refuse(stream)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 10 * size
    tracemalloc.stop()
    said, codes = read(camera.png(bare("png"), (b"eXIf", stream)), "png")
    assert said.exif is None
    assert "exif_broken" in codes


def test_resolution_may_stay():
    made, _ = derive(SAID, resolution="keep")
    assert made.dpi == SAID.dpi
    assert exif.resolution(made.exif) == (300, 200)
    made, _ = derive(SAID)
    assert made.dpi == (1200, 800)
    assert exif.resolution(made.exif) == (1200, 800)


def element(packet):
    """By Python's own reader, which knows nothing of places."""
    return xml.etree.ElementTree.fromstring(packet)


def texts(packet, name):
    prefix, local = name.split(":")
    found = f"{{{xmp.SPACES[prefix]}}}{local}"
    tree = element(packet)
    inside = [one.text for one in tree.iter(found)]
    return inside + [one.attrib[found] for one in tree.iter() if found in one.attrib]


@pytest.mark.parametrize("packet", [camera.XMP, None, b"<broken", camera.XMP[:-2100]])
def test_the_packet_says_what_was_done(packet):
    made, warnings = derive(replace(SAID, xmp=packet))
    sound = packet in (None, camera.XMP)
    assert warnings == (() if sound else ("xmp_broken",))
    assert texts(made.xmp, "Iptc4xmpExt:DigitalSourceType") == [TYPES + "algorithmicallyEnhanced"]
    assert texts(made.xmp, "xmp:CreatorTool") == ["Remaster 0.1.0"]
    assert texts(made.xmp, "remaster:sha256") == ["b2" * 32]
    assert texts(made.xmp, "stEvt:action")[0] == "edited"
    (parameters,) = texts(made.xmp, "stEvt:parameters")
    for part in ("model=realesr-animevideov3", f"model_sha256={'a1' * 32}", "scale=4"):
        assert part in parameters.split("; ")
    assert f"source_sha256={'b2' * 32}" in parameters.split("; ")
    if packet == camera.XMP:
        assert texts(made.xmp, "tiff:Orientation") == ["1"]
        assert texts(made.xmp, "tiff:ImageWidth") == ["160"]
        assert texts(made.xmp, "tiff:ImageLength") == ["120"]
        assert texts(made.xmp, "stRef:documentID") == ["xmp.did:source"]
        assert texts(made.xmp, "xmpMM:OriginalDocumentID") == ["xmp.did:source"]
        assert texts(made.xmp, "xmpMM:DocumentID") != ["xmp.did:source"]
        assert f"source_type={TYPES}print" in parameters.split("; ")
        assert set(texts(made.xmp, "stEvt:action")) == {"edited", "created"}
        rights = camera.XMP[camera.XMP.index(b"<dc:rights>") : camera.XMP.index(b"</dc:rights>")]
        assert rights in made.xmp
        assert b'xmp:Rating="4"' in made.xmp
    else:
        assert texts(made.xmp, "tiff:Orientation") == []


def test_a_jpeg_is_marked_where_the_packet_does_not_fit():
    packet = camera.XMP.replace(b"</rdf:RDF>", b"<!--%s--></rdf:RDF>" % (b"x" * 70_000))
    said, _ = derive(replace(SAID, xmp=packet))
    file, warnings = embed(bare("jpeg"), "jpeg", said)
    assert warnings == ("xmp_dropped",)
    made, _ = read(file, "jpeg")
    assert texts(made.xmp, "remaster:sha256") == [PROVENANCE.source_sha256]
    assert texts(made.xmp, "stRef:documentID") == ["xmp.did:source"]
    assert PROVENANCE.model_sha256 in texts(made.xmp, "stEvt:parameters")[0]
    assert texts(made.xmp, "Iptc4xmpExt:DigitalSourceType") == [TYPES + "algorithmicallyEnhanced"]
    assert texts(made.xmp, "dc:rights") == []


def test_results_of_results_have_one_history_and_no_leftovers():
    said, _ = derive(SAID)
    again, warnings = derive(said)
    third, _ = derive(again)
    assert warnings == ()
    assert len(texts(third.xmp, "stEvt:action")) == 4
    assert texts(again.xmp, "stRef:documentID") == texts(said.xmp, "xmpMM:DocumentID")
    assert texts(third.xmp, "xmpMM:OriginalDocumentID") == ["xmp.did:source"]
    assert third.xmp.count(b"<rdf:Description") == said.xmp.count(b"<rdf:Description")


def packet_with(inside, **spaces):
    declared = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in spaces.items())
    told = f'<rdf:Description rdf:about=""{declared}>{inside}</rdf:Description></rdf:RDF>'
    return camera.XMP.replace(b"</rdf:RDF>", told.encode())


def test_what_is_said_of_colours_that_were_converted():
    inside = (
        "<ps:ColorMode>4</ps:ColorMode><ps:ICCProfile>Coated</ps:ICCProfile>"
        "<e:ColorSpace>65535</e:ColorSpace>"
    )
    spaces = {"ps": xmp.SPACES["photoshop"], "e": xmp.SPACES["exif"]}
    stream = camera.exif(below=[(0xA001, 3, 1, struct.pack("<H", 65_535))])
    said = replace(SAID, exif=stream, xmp=packet_with(inside, **spaces))
    source = replace(facts(), mode="CMYK", colour="cmyk")
    made, warnings = metadata.derive(
        said, source=source, size=(160, 120), provenance=PROVENANCE, policy=Policy()
    )
    assert warnings == ()
    assert texts(made.xmp, "photoshop:ColorMode") == texts(made.xmp, "photoshop:ICCProfile") == []
    assert texts(made.xmp, "exif:ColorSpace") == ["1"]
    assert exif.entries(made.exif)["exif"][0xA001][2] == struct.pack("<H", 1)
    kept, _ = derive(said)
    assert texts(kept.xmp, "photoshop:ICCProfile") == ["Coated"]
    assert exif.entries(kept.exif)["exif"][0xA001][2] == struct.pack("<H", 65_535)


def test_a_panorama_has_the_pixels_of_the_result():
    told = {"FullPanoWidth": 80, "FullPanoHeight": 40, "CroppedAreaImageWidth": WIDTH}
    told |= {"CroppedAreaImageHeight": HEIGHT, "CroppedAreaLeft": 20, "CroppedAreaTop": 5}
    inside = "".join(f"<g:{name}Pixels>{value}</g:{name}Pixels>" for name, value in told.items())
    inside += "<g:ProjectionType>equirectangular</g:ProjectionType>"
    packet = packet_with(inside, g=xmp.SPACES["GPano"])
    made, warnings = derive(replace(SAID, xmp=packet), size=(160, 60))
    assert warnings == ()
    for name, value in told.items():
        by = 4 if name.endswith(("Width", "Left")) else 2
        assert texts(made.xmp, f"GPano:{name}Pixels") == [str(by * value)]
    assert texts(made.xmp, "GPano:ProjectionType") == ["equirectangular"]
    made, warnings = derive(replace(SAID, xmp=packet), orientation=6, size=(120, 160))
    assert warnings == ("panorama_dropped",)
    assert b"Pixels" not in made.xmp


def test_what_lay_beside_the_picture_is_not_told_of():
    inside = (
        '<c:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><c:Item>1</c:Item></rdf:li>'
        "</rdf:Seq></c:Directory><m:MotionPhoto>1</m:MotionPhoto><h:Version>1.0</h:Version>"
    )
    spaces = {one: xmp.SPACES[name] for one, name in zip("cmh", ATTACHED, strict=True)}
    made, warnings = derive(replace(SAID, xmp=packet_with(inside, **spaces)))
    assert warnings == ("attachments_dropped",)
    assert not any(texts(made.xmp, f"{name}:{one}") for name, one in ATTACHED.items())


ATTACHED = {"Container": "Directory", "GCamera": "MotionPhoto", "hdrgm": "Version"}
REGIONS = """
 <r:Regions rdf:parseType="Resource">
  <r:AppliedToDimensions d:w="{0}" d:h="{1}" d:unit="pixel"/>
  <r:RegionList><rdf:Bag>
   <rdf:li rdf:parseType="Resource">
    <r:Name>Ada</r:Name>
    <r:Area a:x="0.25" a:y="0.1" a:w="0.1" a:h="0.2" a:unit="normalized"/>
   </rdf:li>
   <rdf:li><rdf:Description r:Name="Eve"><r:Area rdf:parseType="Resource">
    <a:x>0.25</a:x><a:y>.1</a:y><a:w>0.1</a:w><a:h>0.2</a:h><a:unit>normalized</a:unit>
   </r:Area></rdf:Description></rdf:li>
  </rdf:Bag></r:RegionList>
 </r:Regions>""".replace(">.1<", "> 0.1 <")
REGION_SPACES = {"r": "mwg-rs", "a": "stArea", "d": "stDim"}
REGION_SPACES = {prefix: xmp.SPACES[name] for prefix, name in REGION_SPACES.items()}


@pytest.mark.parametrize("stated", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_are_where_they_were_in_the_picture(orientation, stated, tmp_path):
    packet = packet_with(REGIONS.format(*stated), **REGION_SPACES)
    turned = orientation >= 5
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[0:6, 8:12] = 255  # around (10, 3): four wide, six high
    tags = PIL.Image.Exif()
    tags[0x0112] = 1 if turned and stated == (HEIGHT, WIDTH) else orientation
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png", exif=tags)
    upright = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))
    rows, columns = np.nonzero(upright)
    high, wide = upright.shape
    expected = {
        "x": (columns.min() + columns.max() + 1) / 2 / wide,
        "y": (rows.min() + rows.max() + 1) / 2 / high,
        "w": (np.ptp(columns) + 1) / wide,
        "h": (np.ptp(rows) + 1) / high,
    }
    size = (120, 160) if turned else (160, 120)
    made, warnings = derive(replace(SAID, xmp=packet), orientation=orientation, size=size)
    assert warnings == ()
    for name, value in expected.items():
        assert [float(text) for text in texts(made.xmp, f"stArea:{name}")] == pytest.approx(
            [value, value]
        )
    assert texts(made.xmp, "stDim:w") + texts(made.xmp, "stDim:h") == [str(side) for side in size]
    assert texts(made.xmp, "mwg-rs:Name") == ["Ada", "Eve"]
    if EXIFTOOL:
        said = exiftool(embed(bare("jpeg", size), "jpeg", made)[0], tmp_path / "picture.jpg")
        assert said["XMP-mwg-rs:RegionAreaX"] == pytest.approx([expected["x"]] * 2)


def test_many_groups_of_regions_are_found_in_one_go():
    """A packet of 150 KB would else take a minute, and one of 3 MB hours."""
    first, second = REGIONS.format(WIDTH, HEIGHT), REGIONS.format(HEIGHT, WIDTH)
    packet = packet_with(first + second + "<r:Regions/>" * 10_000, **REGION_SPACES)
    start = time.process_time()
    made, _ = derive(replace(SAID, xmp=packet), orientation=6, size=(120, 160))
    assert time.process_time() - start < 10
    # Each by what it says of itself: the second is of the turned picture.
    alone = [
        derive(replace(SAID, xmp=packet_with(one, **REGION_SPACES)), orientation=6, size=(120, 160))
        for one in (first, second)
    ]
    found = [sorted(texts(one.xmp, "stArea:x")) for one, _ in alone]
    assert sorted(texts(made.xmp, "stArea:x")) == sorted(found[0] + found[1])
    assert found[0] != found[1]


def test_regions_of_other_kinds_are_not_turned_but_left_out():
    inside = "<p:RegionInfo><rdf:Bag/></p:RegionInfo>"
    said = replace(SAID, xmp=packet_with(inside, p=xmp.SPACES["MP"]))
    made, warnings = derive(said)
    assert (warnings, b"RegionInfo" in made.xmp) == ((), True)
    made, warnings = derive(said, orientation=3)
    assert (warnings, b"RegionInfo" in made.xmp) == (("regions_dropped",), False)


def test_a_packet_of_too_many_elements_is_broken():
    """Each costs 5 microseconds until a result is marked, and 64 MB hold sixteen million."""
    inside = "<p:many>%s</p:many>"
    assert xmp.parse(packet_with(inside % ("<p:r/>" * 1_000), p="urn:p"))
    with pytest.raises(xmp.BrokenXmpError, match="262,144 elements and attributes"):
        xmp.parse(packet_with(inside % ("<p:r/>" * 2**18), p="urn:p"))


def many_attributes(count):
    pairs = " ".join(f"p:b{number}=''" for number in range(count))
    return packet_with(f"<p:a {pairs}/>", p="urn:p")


@pytest.mark.parametrize(
    ("packet", "what"),
    [
        (many_attributes(2**18), "elements and attributes"),
        (packet_with("<a>%s</a>" % ("<a xmlns:b='u' xmlns:c='u'/>" * 2**17)), "attributes"),
        (packet_with("<p:a/>" * 100, p="urn:" + "x" * 10**5), "a namespace of 100,004 letters"),
        (
            packet_with(f"<m:DocumentID>{'a' * 10**5}</m:DocumentID>", m=xmp.SPACES["xmpMM"]),
            "DocumentID of more than 65,536 letters",
        ),
    ],
)
def test_a_packet_that_costs_more_than_its_elements_is_broken(packet, what):
    """Names of a megabyte are written out for every element, and texts are put together."""
    with pytest.raises(xmp.BrokenXmpError, match=what):
        xmp.normalised(packet)
    made, warnings = derive(replace(SAID, xmp=packet))
    assert warnings == ("xmp_broken",)
    assert len(texts(made.xmp, "xmpMM:DerivedFrom")) == 1


@pytest.mark.parametrize(
    "packet",
    [
        packet_with("<p:a><rdf:Bag>%s</rdf:Bag></p:a>" % ("<rdf:li/>" * 2**17), p="urn:p"),
        many_attributes(2**17),
    ],
    ids=["elements", "attributes"],
)
def test_a_large_packet_is_parsed_once(packet):
    """In the worker, where other threads wait meanwhile."""
    start = time.process_time()
    xmp.parse(packet)
    parsed = time.process_time()
    derive(replace(SAID, xmp=packet))
    assert time.process_time() - parsed < 2.5 * (parsed - start)


def test_the_source_type_is_a_choice():
    made, _ = derive(SAID, source_type="off")
    assert b"digitalsourcetype/print" in made.xmp
    assert b"algorithmicallyEnhanced" not in made.xmp
    made, _ = derive(SAID, source_type="compositeWithTrainedAlgorithmicMedia")
    expected = [TYPES + "compositeWithTrainedAlgorithmicMedia"]
    assert texts(made.xmp, "Iptc4xmpExt:DigitalSourceType") == expected


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ("trainedAlgorithmicMedia", "algorithmicallyEnhanced", "trainedAlgorithmicMedia"),
        ("compositeSynthetic", "algorithmicallyEnhanced", "compositeSynthetic"),
        ("compositeSynthetic", *["compositeWithTrainedAlgorithmicMedia"] * 2),
        ("algorithmicallyEnhanced", *["compositeWithTrainedAlgorithmicMedia"] * 2),
        ("trainedAlgorithmicMedia", "off", "trainedAlgorithmicMedia"),
        ("digitalCapture", *["algorithmicallyEnhanced"] * 2),
    ],
)
def test_what_a_machine_made_stays_marked_as_that(before, asked, after):
    packet = camera.XMP.replace(b"digitalsourcetype/print", b"digitalsourcetype/" + before.encode())
    said = replace(SAID, xmp=packet)
    made, _ = derive(said, source_type=asked)
    assert xmp.parse(made.xmp).text("Iptc4xmpExt:DigitalSourceType") == TYPES + after
    assert made.xmp.count(b"<Iptc4xmpExt:DigitalSourceType") == 1
    assert (f"source_type={TYPES}{before}".encode() in made.xmp) == (before != after)
    if asked != "off":
        stripped, _ = derive(said, source_type=asked, strip_metadata=True)
        assert xmp.parse(stripped.xmp).text("Iptc4xmpExt:DigitalSourceType") == TYPES + after


@pytest.mark.parametrize(
    ("colour", "channels", "profile", "kept"),
    [
        ("gray", 1, "gray", True),
        ("gray", 2, "sRGB", False),
        ("bilevel", 1, "sRGB", False),
        ("rgb", 3, "gray", False),
        ("rgb", 4, "sRGB", True),
        ("palette", 1, "sRGB", True),
        ("palette", 2, "gray", True),
        ("palette", 3, "gray", False),
        ("rgb", 3, "LAB", False),
        ("cmyk", 3, "sRGB", True),
    ],
)
@pytest.mark.parametrize("strip", [False, True])
def test_a_profile_of_other_samples_is_left_out(colour, channels, profile, kept, strip):
    source = replace(facts(), colour=colour, channels=channels)
    said = replace(SAID, icc_profile=camera.icc(profile))
    made, warnings = metadata.derive(
        said,
        source=source,
        size=(160, 120),
        provenance=PROVENANCE,
        policy=Policy(strip_metadata=strip),
    )
    assert warnings == (() if kept else ("icc_dropped",))
    assert made.icc_profile == (said.icc_profile if kept else None)


def test_stripped_is_stripped_but_for_the_mark():
    made, _ = derive(SAID, strip_metadata=True)
    assert (made.icc_profile, made.exif, made.iptc) == (PROFILE, None, None)
    assert made.dpi == (1200, 800)
    assert texts(made.xmp, "Iptc4xmpExt:DigitalSourceType") == [TYPES + "algorithmicallyEnhanced"]
    assert len(list(element(made.xmp).iter())) == 4
    assert derive(SAID, strip_metadata=True, source_type="off")[0].xmp is None


def test_nothing_but_the_arguments_is_in_the_result():
    assert derive(SAID) == derive(SAID)
    other = replace(PROVENANCE, source_sha256="c3" * 32)
    made = metadata.derive(SAID, source=facts(), size=(160, 120), provenance=other, policy=Policy())
    assert made[0].xmp != derive(SAID)[0].xmp


def test_names_that_no_xml_can_hold():
    odd = replace(PROVENANCE, model="a<b>&\"\0\x1b\udcff'")
    made, _ = metadata.derive(
        Metadata(), source=facts(), size=(160, 120), provenance=odd, policy=Policy()
    )
    (parameters,) = texts(made.xmp, "stEvt:parameters")
    assert parameters.startswith("model=a<b>&\"\ufffd\ufffd\ufffd'; ")


def test_a_document_type_is_refused():
    bomb = b'<!DOCTYPE a [<!ENTITY b "c">]>' + camera.XMP
    assert read(webp(xmp=bomb), "webp")[1] == ("icc_untagged", "xmp_broken")


# Through exiftool, where there is one


def exiftool(file, path):
    path.write_bytes(file)
    command = [EXIFTOOL, "-j", "-G1", "-a", "-n", "-b", path]
    (said,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return said


@orders
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_another_reader_finds_the_same(format, order, tmp_path):
    stream = camera.exif(order, orientation=6)
    made, _ = derive(replace(SAID, exif=stream), orientation=6, size=(120, 160))
    file, _ = embed(bare(format, (120, 160)), format, made)
    picture = PIL.Image.open(io.BytesIO(file))
    assert PIL.ImageOps.exif_transpose(picture).size == (120, 160)
    assert picture.getexif().get_ifd(0x8769)[0xA002] == 120
    assert picture.getexif().get_ifd(0x8825)[2] == (48, 8, 0)
    if not EXIFTOOL:
        return
    said = exiftool(file, tmp_path / f"picture.{format}")
    expected = {
        "IFD0:Orientation": 1,
        "IFD0:XResolution": 1200 if format == "webp" else 800,
        "IFD0:YResolution": 800 if format == "webp" else 1200,
        "IFD0:Copyright": "Archiv",
        "ExifIFD:ExifImageWidth": 120,
        "ExifIFD:ExifImageHeight": 160,
        "ExifIFD:UserComment": "scanned box",
        "ExifIFD:SubjectArea": "100 40 8 16",
        "Canon:CanonImageType": "IMG:EOS 5D JPEG",
        "Canon:OwnerName": "Owner of the camera",
        "InteropIFD:RelatedImageWidth": 120,
        "GPS:GPSLatitude": 48.1333333333333,
        "XMP-dc:Rights": camera.RIGHTS,
        "XMP-iptcExt:DigitalSourceType": TYPES + "algorithmicallyEnhanced",
        "XMP-tiff:Orientation": 1,
        "XMP-xmp:CreatorTool": "Remaster 0.1.0",
        "XMP-xmpMM:DerivedFromDocumentID": "xmp.did:source",
        "XMP-xmpMM:HistoryAction": ["created", "edited"],
    }
    if format != "webp":
        expected["IPTC:Caption-Abstract"] = camera.CAPTION
    assert {key: said.get(key) for key in expected} == expected
    assert not [key for key in said if key.startswith("IFD1") or "Warning" in key]


# Whatever comes


def at_work(data, format, page=0):
    """The whole way of a source's metadata. Raises ItemError."""
    said, _ = read(data, format, limit=10**6, page=page)
    made, _ = derive(said)
    derive(made)
    for target in ("png", "jpeg", "webp"):
        file, _ = embed(BARE[target], target, made)
        back, _ = read(file, target)
        assert made.xmp in (back.xmp, None) or target == "jpeg"
    return made


BARE = {name: bare(name) for name in ("png", "jpeg", "webp")}
changes = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=6), st.integers(0, 8)), max_size=6
)


def mutated(data, how):
    data = bytearray(data)
    for place, new, gone in how:
        at = place % (len(data) + 1)
        data[at : at + gone] = new
    return bytes(data)


@pytest.mark.parametrize("format", SOURCES)
@fuzz
@given(changes, st.integers(0, 2))
def test_mutated_files_are_read_or_refused(format, how, page):
    with contextlib.suppress(ItemError):
        at_work(mutated(SOURCES[format], how), format, page)


STARTS = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe1\0\x40Exif\0\0",
    "webp": b"RIFF\xff\0\0\0WEBPEXIF\x40\0\0\0",
    "tiff": b"II+\0\x08\0\0\0",
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x60jp2h",
    "bmp": b"BM",
}


@pytest.mark.parametrize("format", STARTS)
@fuzz
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(format, data):
    with contextlib.suppress(ItemError):
        at_work(STARTS[format] + data, format)
        at_work(data, format)


@fuzz
@given(
    st.sampled_from("<>"),
    changes,
    st.integers(1, 8),
    st.tuples(st.integers(1, 70_000), st.integers(1, 70_000)),
)
def test_edited_exif_is_sound_and_stays_so(order, how, orientation, size):
    stream = mutated(camera.exif(order, orientation=orientation), how)
    try:
        made = exif_edit.edit(
            stream, Change(orientation, (WIDTH, HEIGHT), size, scale_resolution=True)
        )
    except exif.BrokenExifError:
        return
    letter = order if stream[:2] == (b"II" if order == "<" else b"MM") else "<>".strip(order)
    strict(made, letter)
    same = replace(UPRIGHT, stored=size, size=size)
    assert exif_edit.edit(made, same) == made
    assert exif.orientation(made) == 1


def strict(stream, order):
    """Every directory and every value lies inside the stream; there is no second directory."""
    sizes = {**exif.SIZES}
    (at,) = struct.unpack_from(order + "I", stream, 4)
    waiting, seen = [at], 0
    while waiting:
        at = waiting.pop()
        (count,) = struct.unpack_from(order + "H", stream, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, many = struct.unpack_from(order + "HHI", stream, place)
            size = sizes[kind] * many
            (value,) = struct.unpack_from(order + "I", stream, place + 8)
            assert size <= 4 or value + size <= len(stream)
            if tag in (0x8769, 0x8825, 0xA005) and kind in (4, 13) and seen < 4:
                waiting.append(value)
                seen += 1
        if not seen and at + 2 + 12 * count + 4 <= len(stream):
            assert struct.unpack_from(order + "I", stream, at + 2 + 12 * count) == (0,)


@fuzz
@given(changes)
def test_edited_packets_are_well_formed_and_say_it_once(how):
    made, _ = derive(replace(SAID, xmp=mutated(camera.XMP, how)))
    assert texts(made.xmp, "xmp:CreatorTool").count("Remaster 0.1.0") == 1
    again, warnings = derive(made)
    assert warnings == ()
    names = [one.name for one in xmp.parse(again.xmp).statements()]
    assert names.count("xmp:CreatorTool") == 1
    assert names.count("Iptc4xmpExt:DigitalSourceType") == 1
