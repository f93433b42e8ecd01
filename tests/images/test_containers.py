"""What is put into PNG, JPEG and WebP files, as Pillow, pngcheck's rules and exiftool read it."""

import io
import itertools
import re
import struct
import zlib
from xml.etree import ElementTree

import camera
import numpy as np
import PIL.Image
import PIL.IptcImagePlugin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import EncodeError
from pipeline.images import exif, metadata, xmp
from pipeline.images.containers import embed
from pipeline.images.image import Metadata

FORMATS = ("png", "jpeg", "webp")
PROFILE = camera.icc()
SAID = Metadata(PROFILE, camera.exif(), xmp.normalised(camera.XMP), camera.IPTC, (600.0, 400.0))
formats = pytest.mark.parametrize("format", FORMATS)


def bare(format, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, len(mode)), np.uint8)
    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode=None)
    assert picture.mode == mode
    picture.save(file, format, **options)
    return file.getvalue()


def opened(file):
    picture = PIL.Image.open(io.BytesIO(file))
    picture.load()
    return picture


def read(file, format):
    return metadata.read(file, format, limit=10**7)


@formats
def test_pillow_reads_all_that_was_put_in_and_the_same_pixels(format):
    file, warnings = embed(bare(format), format, SAID)
    picture = opened(file)
    assert picture.info["icc_profile"] == PROFILE
    assert picture.info["exif"].removeprefix(b"Exif\0\0") == SAID.exif or format == "webp"
    assert picture.getexif()[0x010F] == "Canon"
    assert picture.getexif().get_ifd(0x8825)[1] == "N"
    assert picture.getexif().get_ifd(0x8769)[0x927C] == exif.entries(SAID.exif)["exif"][0x927C][2]
    assert picture.info["xmp"] == SAID.xmp
    if format != "webp":
        assert picture.info["dpi"] == pytest.approx((600, 400), abs=0.01)
    assert tuple(map(picture.getexif().get, (282, 283, 296))) == (
        (600, 400, 2) if format == "webp" else (300, 200, 2)
    )
    assert warnings == (("iptc_dropped",) if format == "webp" else ())
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(opened(bare(format))))


def test_pillow_reads_the_caption_of_a_jpeg():
    picture = opened(embed(bare("jpeg"), "jpeg", SAID)[0])
    said = PIL.IptcImagePlugin.getiptcinfo(picture)
    assert said[2, 120].decode() == camera.CAPTION


@formats
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_was_put_in_reads_back(format, order):
    said = Metadata(PROFILE, camera.exif(order), SAID.xmp, camera.IPTC, (600.0, 400.0))
    back, warnings = read(embed(bare(format), format, said)[0], format)
    assert back.icc_profile == said.icc_profile
    assert back.xmp == said.xmp
    assert back.dpi == pytest.approx(said.dpi, abs=0.01)
    assert back.iptc == (None if format == "webp" else said.iptc)
    if format == "webp":  # with the resolution
        assert exif.entries(back.exif)["exif"] == exif.entries(said.exif)["exif"]
    else:
        assert back.exif == said.exif
    assert warnings == ()


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *itertools.product(FORMATS, ["L", "RGB"]),
        ("png", "RGBA"),
        ("webp", "RGBA"),
    ],
)
def test_embedding_twice_is_embedding_once(format, mode):
    once, said_once = embed(bare(format, mode), format, SAID)
    twice, said_twice = embed(once, format, SAID)
    assert twice == once
    assert said_twice == said_once
    nothing, warnings = embed(once, format, Metadata())
    assert warnings == ()
    back, _ = read(nothing, format)
    assert (back.icc_profile, back.exif, back.xmp, back.iptc) == (None, None, None, None)
    np.testing.assert_array_equal(np.asarray(opened(nothing)), np.asarray(opened(once)))


@formats
def test_nothing_to_say_changes_nothing(format):
    file = bare(format)
    assert embed(file, format, Metadata()) == (file, ())


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"exact": True}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_keeps_its_size_and_its_alpha(mode, options):
    file = bare("webp", mode, **options)
    picture = opened(embed(file, "webp", SAID)[0])
    assert picture.mode == mode
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(opened(file)))
    large = io.BytesIO()
    PIL.Image.new(mode, (16383, 1)).save(large, "webp", **options)
    assert opened(embed(large.getvalue(), "webp", SAID)[0]).size == (16383, 1)


def test_webp_has_nothing_but_exif_for_a_resolution():
    picture = opened(embed(bare("webp"), "webp", Metadata(dpi=(600.5, 400)))[0])
    assert dict(picture.getexif()) == {282: 600.5, 283: 400, 296: 2}


@pytest.mark.parametrize(
    ("format", "mode", "profile", "kept"),
    [
        ("png", "L", "gray", True),
        ("png", "RGBA", "sRGB", True),
        ("jpeg", "L", "gray", True),
        ("jpeg", "L", "sRGB", True),
        ("webp", "L", "gray", False),
        ("webp", "L", "sRGB", True),
    ],
)
def test_a_profile_that_the_format_does_not_allow_is_left_out(format, mode, profile, kept):
    said = Metadata(icc_profile=camera.icc(profile))
    file, warnings = embed(bare(format, mode), format, said)
    assert warnings == (() if kept else ("icc_dropped",))
    assert opened(file).info.get("icc_profile") == (said.icc_profile if kept else None)


def test_png_has_its_chunks_in_legal_order():
    file = embed(bare("png", dpi=(72, 72), icc_profile=PROFILE), "png", SAID)[0]
    place, kinds = 8, []
    while place < len(file):
        (size,) = struct.unpack_from(">I", file, place)
        kinds.append(file[place + 4 : place + 8])
        body = file[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", file, place + 8 + size) == (zlib.crc32(body),)
        place += 12 + size
    assert place == len(file)
    order = [b"IHDR", b"iCCP", b"pHYs", b"eXIf", b"iTXt", b"zTXt", b"IDAT", b"IEND"]
    assert [kind for kind, _ in itertools.groupby(kinds)] == order
    assert len(set(kinds) - {b"IDAT"}) == len([kind for kind in kinds if kind != b"IDAT"])


def test_a_large_profile_goes_into_pieces():
    profile = bytearray(PROFILE) + np.random.default_rng(1).bytes(200_000)
    profile[:4] = struct.pack(">I", len(profile))
    profile = bytes(profile)
    file, warnings = embed(bare("jpeg"), "jpeg", Metadata(icc_profile=profile))
    assert warnings == ()
    assert opened(file).info["icc_profile"] == profile
    assert read(file, "jpeg")[0].icc_profile == profile
    assert file.count(b"ICC_PROFILE\0") == 4
    assert embed(file, "jpeg", Metadata(icc_profile=profile * 90))[1] == ("icc_dropped",)


def test_what_is_too_large_for_a_segment_is_left_out():
    stream = camera.exif(more=[(0x8769 + 10, 7, 70_000, bytes(70_000))])
    said = Metadata(exif=stream, iptc=camera.IPTC * 2000, dpi=(70_000, 70_000))
    file, warnings = embed(bare("jpeg"), "jpeg", said)
    assert warnings == ("dpi_dropped", "exif_dropped", "iptc_dropped")
    assert file == bare("jpeg")
    exact = Metadata(exif=b"II*\0" + bytes(65_527 - 4))
    assert embed(bare("jpeg"), "jpeg", exact)[1] == ()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_large_maker_note_takes_no_dates_and_places_with_it(order):
    stream = camera.exif(order, below=[(0x9290, 7, 70_000, bytes(70_000))])
    assert embed(bare("jpeg"), "jpeg", Metadata(exif=stream))[1] == ("exif_dropped",)
    note = (0x927C, 7, 70_000, bytes(range(250)) * 280)
    said = exif.entries(camera.exif(order), order)
    said["exif"][note[0]] = note[1:]
    file, warnings = embed(bare("jpeg"), "jpeg", Metadata(exif=exif.build(said, order)))
    assert warnings == ("maker_note_dropped",)
    del said["exif"][note[0]]
    assert exif.entries(read(file, "jpeg")[0].exif, order) == said
    assert opened(file).getexif().get_ifd(0x8825)[1] == "N"


def test_room_that_a_thumbnail_left_is_taken_before_the_maker_note():
    stream = camera.exif(thumbnail=False)
    stream += bytes(70_000 - len(stream))
    file, warnings = embed(bare("jpeg"), "jpeg", Metadata(exif=stream))
    back = read(file, "jpeg")[0].exif
    assert (warnings, exif.entries(back)) == ((), exif.entries(stream))
    assert exif.maker_note(back) == exif.maker_note(stream)


def large_packet(sizes):
    names = "".join(
        f"<p:big{index}>{'x' * size}</p:big{index}>" for index, size in enumerate(sizes)
    )
    inside = f'<rdf:Description rdf:about="" xmlns:p="urn:p">{names}</rdf:Description></rdf:RDF>'
    return camera.XMP.replace(b"</rdf:RDF>", inside.encode())


def test_a_large_packet_goes_into_extended_xmp_and_comes_back():
    packet = xmp.normalised(large_packet([150_000, 10, 30_000, 40_000]))
    file, warnings = embed(bare("jpeg"), "jpeg", Metadata(xmp=packet))
    assert warnings == ()
    standard = opened(file).info["xmp"]
    assert len(standard) <= 65_502
    assert b"Archiv der Stadt" in standard  # the small ones stay where every reader looks
    back, warnings = read(file, "jpeg")
    assert warnings == ("icc_untagged",)
    assert sorted(statements(back.xmp)) == sorted(statements(packet))
    again = embed(bare("jpeg"), "jpeg", back)[0]
    assert statements(read(again, "jpeg")[0].xmp) == statements(back.xmp)


def statements(packet):
    """Each by its name with the bytes of its element."""
    found = xmp.parse(packet)
    return [
        (one.name, re.sub(rb"\s+", b" ", packet[one.start : one.end])) for one in found.statements()
    ]


def test_a_large_attribute_goes_into_extended_xmp_as_an_element():
    """Adobe's programs write a history of edits so; with the packet its mark would be lost."""
    inside = b'<rdf:Description rdf:about="" xmlns:p="urn:p"\n p:big=\'%s\'/></rdf:RDF>'
    value = b'"]]>&#xA;&lt;' * 7_000
    packet = camera.XMP.replace(b"</rdf:RDF>", inside % value)
    file, warnings = embed(bare("jpeg"), "jpeg", Metadata(xmp=packet))
    assert warnings == ()
    assert b"Archiv der Stadt" in opened(file).info["xmp"]
    back = read(file, "jpeg")[0].xmp
    names = sorted(one.name for one in xmp.parse(packet).statements())
    assert sorted(one.name for one in xmp.parse(back).statements()) == names
    element = ElementTree.fromstring(back).find(".//{urn:p}big")
    assert element.text == '"]]>\n<' * 7_000


def test_a_packet_that_cannot_be_split_is_left_out():
    packet = camera.XMP.replace(b"</rdf:RDF>", b"<!--%s--></rdf:RDF>" % (b"x" * 70_000))
    assert embed(bare("jpeg"), "jpeg", Metadata(xmp=packet)) == (bare("jpeg"), ("xmp_dropped",))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.sampled_from([1, 100, 20_000, 40_000, 66_000]), max_size=8))
def test_every_packet_survives_a_jpeg(sizes):
    packet = xmp.normalised(large_packet(sizes))
    back, _ = read(embed(bare("jpeg"), "jpeg", Metadata(xmp=packet))[0], "jpeg")
    assert sorted(statements(back.xmp)) == sorted(statements(packet))


def test_an_adobe_jpeg_gets_no_jfif_segment_that_would_change_its_colours():
    file = bytearray(bare("jpeg"))
    adobe = camera.jpeg_segment(0xEE, b"Adobe" + bytes(7))
    file = bytes(file[:2] + adobe + file[20:])
    made, warnings = embed(file, "jpeg", SAID)
    assert warnings == ("dpi_dropped",)
    assert b"JFIF" not in made
    assert opened(made).getexif()[0x010F] == "Canon"


@formats
@pytest.mark.parametrize("file", [b"", b"\xff\xd9", b"RIFF\4\0\0\0WEBP", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_file_of_the_format_is_an_error(format, file):
    with pytest.raises(EncodeError):
        embed(file, format, SAID)
