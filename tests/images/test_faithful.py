"""A file's whole way through a worker: what it said, its result says, in every format.

The network here repeats each pixel, so that its results are known. Sources are written and results
read by others: Pillow, tifffile, imagecodecs, and exiftool and pngcheck where they are.
"""

import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass

import camera
import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.IptcImagePlugin
import pytest
import tifffile
import torch
from networks import interpolating
from running import SHARED, outcomes, small_item, small_worker

from pipeline.config import Encode, Limits, Policy
from pipeline.images import profiles
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

TRICKY = SHARED / "tricky"
needs_samples = pytest.mark.skipif(not TRICKY.exists(), reason="the shared samples are not here")
WIDTH, HEIGHT = 28, 20
FORMATS = ("png", "tiff", "jpeg", "webp")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
UUIDS = {
    "xmp": bytes.fromhex("be7acfcb97a942e89c71999491e3afac"),
    "iptc": bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"),
    "exif": b"JpgTiffExif->JP2",
}
EXIFTOOL, PNGCHECK = shutil.which("exiftool"), shutil.which("pngcheck")
PROFILES = {1: camera.icc("gray"), 3: camera.swapped()}


@dataclass(frozen=True)
class Source:
    """A file that the tests made."""

    format: str
    depth: int
    channels: int
    profile: bytes | None
    says: bool
    """Whether it has EXIF (orientation 6), XMP, IPTC and a resolution of 300 x 200."""

    @property
    def name(self):
        kind = f"{self.format}-{MODES[self.channels]}{self.depth}"
        return kind + "-icc" * bool(self.profile) + "-says" * self.says

    @property
    def told_profile(self):
        """Also where a JPEG 2000 only names sRGB."""
        if self.format == "jp2" and not self.profile:
            return profiles.srgb(gray=self.channels < 3)
        return self.profile

    def pixels(self):
        """As stored: slopes, a different one in each channel."""
        y, x = np.mgrid[:HEIGHT, :WIDTH] / (HEIGHT, WIDTH)[0]
        slopes = [x / 2, y, (x + y) / 3, 0.3 + y / 2]
        chosen = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[self.channels]
        levels = np.stack([slopes[each] for each in chosen], 2).clip(0, 1)
        return np.rint(levels * (2**self.depth - 1)).astype(f"u{self.depth // 8}")

    def file(self):
        return WRITERS[self.format](self, np.squeeze(self.pixels()))


def saved(pixels, format, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def png(source, pixels):
    chunks = [(b"iCCP", b"icc\0\0" + zlib.compress(source.profile))] if source.profile else []
    if source.says:
        iptc = b"\niptc\n%8d\n%s\n" % (len(camera.IPTC), camera.IPTC.hex().encode())
        chunks += [
            (b"eXIf", camera.exif(orientation=6)),
            (b"pHYs", struct.pack(">IIB", 11_811, 7874, 1)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + camera.XMP),
            (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(iptc)),
        ]
    return camera.png(imagecodecs.png_encode(pixels), *chunks)


def jpeg(source, pixels):
    dpi = {"dpi": (300, 200)} if source.says else {}
    bare = saved(pixels, "JPEG", quality=98, subsampling=0, **dpi)
    said = {"exif": camera.exif(orientation=6), "xmp": camera.XMP, "iptc": camera.IPTC}
    return camera.jpeg(bare, icc=source.profile, **(said if source.says else {}))


def webp(source, pixels):
    said = {"exif": camera.exif(orientation=6), "xmp": camera.XMP} if source.says else {}
    return saved(pixels, "WEBP", lossless=True, exact=True, icc_profile=source.profile, **said)


def box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind) + body


def jp2(source, pixels):
    file = imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="jp2")
    at = file.index(b"jp2h") - 4  # behind the signature and the file's type
    (size,) = struct.unpack_from(">I", file, at)
    header, rest = file[at + 8 : at + size], file[at + size :]
    if source.profile:  # in place of the number of a colour space
        start = header.index(b"colr") - 4
        profile = box(b"colr", b"\2\0\0" + source.profile)
        header = header[:start] + profile + header[start + 15 :]
    if source.channels in (2, 4):  # the last is alpha, of all of the picture
        kinds = [(index, 0, index + 1) for index in range(source.channels - 1)]
        kinds.append((source.channels - 1, 1, 0))
        said = b"".join(struct.pack(">HHH", *kind) for kind in kinds)
        header += box(b"cdef", struct.pack(">H", source.channels) + said)
    if source.says:
        header += box(b"res ", box(b"resc", struct.pack(">4H2b", 7874, 1, 11_811, 1, 0, 0)))
        said = {"xmp": camera.XMP, "iptc": camera.IPTC, "exif": camera.exif(orientation=6)}
        rest += b"".join(box(b"uuid", UUIDS[kind] + body) for kind, body in said.items())
    return file[:at] + box(b"jp2h", header) + rest


def tiff(source, *pages):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels in pages:
            tags, dpi = [], {}
            if source.says:
                at = writer.filehandle.tell()  # a directory of values that fit into their entries
                writer.filehandle.write(struct.pack("<HHHI4sI", 1, 1, 2, 2, b"N\0\0\0", 0))
                tags = [(700, 1, None, camera.XMP, True), (33723, 7, None, camera.IPTC, True)]
                tags += [(271, 2, None, "Canon", True), (274, 3, 1, 6, True)]
                tags += [("GPSTag", 4, 1, at, True)]
                dpi = {"resolution": (300, 200), "resolutionunit": 2}
            alpha = {"extrasamples": ["unassalpha"]} if source.channels in (2, 4) else {}
            writer.write(
                pixels,
                photometric="rgb" if source.channels > 2 else "minisblack",
                planarconfig="contig" if source.channels > 1 else None,
                compression="lzw",
                iccprofile=source.profile,
                extratags=tags,
                software=False,
                metadata=None,
                **alpha,
                **dpi,
            )
    return file.getvalue()


WRITERS = {
    "png": png,
    "jpeg": jpeg,
    "webp": webp,
    "jp2": jp2,
    "tiff": tiff,
    "bmp": lambda source, pixels: saved(pixels, "BMP", dpi=(0, 0)),
    "gif": lambda source, pixels: saved(pixels, "GIF"),
    "ppm": lambda source, pixels: saved(pixels, "PPM"),
}
KINDS = [
    *itertools.product(("png", "tiff"), (8, 16), (1, 2, 3, 4), (False, True), (False, True)),
    *itertools.product(("jpeg",), (8,), (1, 3), (False, True), (False, True)),
    *itertools.product(("webp",), (8,), (3, 4), (False, True), (False, True)),
    *itertools.product(("jp2",), (8, 16), (1, 2, 3, 4), (False, True), (False, True)),
    *[(kind, 8, channels, False, False) for kind in ("bmp", "gif", "ppm") for channels in (1, 3)],
]
SOURCES = [
    Source(
        kind,
        depth,
        channels,
        PROFILES[1 if channels < 3 else 3] if profile else None,
        says,
    )
    for kind, depth, channels, profile, says in KINDS
    if (kind, channels) != ("gif", 3)  # whose colours are chosen by its writer
]


# --- What others read ----------------------------------------------------------------------------


def read_tiff(file):
    """What tifffile finds on each page."""
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        for page in opened.pages:
            tags = {tag.code: tag.value for tag in page.tags}
            yield {
                "pixels": page.asarray(),
                "icc": tags.get(34675),
                "make": tags.get(271),
                "north": tags.get(34853, {}).get("GPSLatitudeRef"),
                "orientation": tags.get(274, 1),
                "xmp": tags.get(700),
                "iptc": tags.get(33723),
                "dpi": tuple(
                    round(tags[side][0] / tags[side][1]) for side in (282, 283) if tags[296] == 2
                ),
            }


def read(file, format):
    """What a file holds, by Pillow, tifffile and imagecodecs."""
    if format == "tiff":
        (found,) = read_tiff(file)
        return found
    opened = PIL.Image.open(io.BytesIO(file))
    assert opened.format.lower() == format
    tags = opened.getexif()
    dpi = opened.info.get("dpi", ())
    if format == "webp":
        dpi = tuple(float(tags[side]) for side in (282, 283) if side in tags)
    iptc = None
    if format == "png" and "Raw profile type iptc" in opened.info:
        iptc = bytes.fromhex("".join(opened.info["Raw profile type iptc"].split()[2:]))
    elif format == "jpeg" and (records := PIL.IptcImagePlugin.getiptcinfo(opened)):
        iptc = records[2, 120]
    return {
        "pixels": imagecodecs.png_decode(file) if format == "png" else np.asarray(opened),
        "icc": opened.info.get("icc_profile"),
        "make": tags.get(0x010F),
        "north": tags.get_ifd(0x8825).get(1),
        "orientation": tags.get(0x0112, 1),
        "xmp": opened.info.get("xmp"),
        "iptc": iptc,
        "dpi": tuple(round(side) for side in dpi),
    }


def expected_pixels(source, format):
    """The source's, the right way up, twice as wide and high, as the format holds them."""
    pixels = source.pixels()
    if source.format == "jpeg":
        stored = np.asarray(PIL.Image.open(io.BytesIO(source.file())))
        pixels = stored.reshape(pixels.shape)
    if source.says:
        pixels = np.rot90(pixels, -1)
    pixels = pixels.repeat(2, 0).repeat(2, 1)
    if format in ("jpeg", "webp") and source.depth == 16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    if format == "webp" and source.channels < 3:
        pixels = pixels[:, :, [0, 0, 0, 1][: source.channels + 2]]
    if format == "jpeg" and source.channels in (2, 4):
        alpha = pixels[:, :, -1:] / 255
        pixels = np.rint(255 - (255.0 - pixels[:, :, :-1]) * alpha).astype(np.uint8)
    return pixels.squeeze()


def expected_warnings(source, format):
    gray = source.channels < 3
    found = {
        "icc_untagged": not source.told_profile,
        "icc_dropped": format == "webp" and gray and source.told_profile,
        "depth_reduced": format in ("jpeg", "webp") and source.depth == 16,
        "alpha_flattened": format == "jpeg" and source.channels in (2, 4),
        "iptc_dropped": format == "webp" and source.says and source.format != "webp",
    }
    return {code for code, holds in found.items() if holds}


# --- The table -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repeating(tmp_path_factory):
    """A network that makes 2 x 2 of each pixel: its convolutions give 0, beside the nearest."""
    net = SRVGGNetCompact(SRVGGShape(features=8, convs=2, scale=2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    path = tmp_path_factory.mktemp("model") / "repeating-x2.pth"
    torch.save({"params": net.state_dict()}, path)
    return path


def run(folder, model, files, **changes):
    """The rows of (name, file, format), by name and format; the results lie in the folder."""
    folder.mkdir(exist_ok=True)
    items = []
    for name, file, kind in files:
        path = folder / f"{name}.source"
        path.write_bytes(file)
        out = str(folder / f"{name}.{kind}")
        identity = {"item_id": f"{name} {kind}", "key": name}
        items.append(small_item(folder, path, output_uri=out, output_format=kind, **identity))
    settings = {"encode": Encode(webp_lossless=True, jpeg_quality=98), **changes}
    worker = small_worker(folder, model, limits=Limits(), in_flight_bytes=2**30, **settings)
    rows = outcomes(worker, items)
    return {tuple(row["item_id"].split()): row for row in rows}


@pytest.fixture(scope="module")
def made(tmp_path_factory, repeating):
    """The rows of all sources in all formats, and where the results are."""
    folder = tmp_path_factory.mktemp("faithful")
    files = [(each.name, each.file(), kind) for each in SOURCES for kind in FORMATS]
    return run(folder, repeating, files), folder


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_a_source_said_its_result_says(made, source, format):
    rows, folder = made
    row = rows[source.name, format]
    assert row["status"] == "done", row["error_message"]
    assert set(row["warnings"]) - {"format_mismatch"} == expected_warnings(source, format)
    assert row["source_bit_depth"] == source.depth or source.format == "gif"
    found = read((folder / f"{source.name}.{format}").read_bytes(), format)

    wanted = expected_pixels(source, format)
    assert (found["pixels"].shape, found["pixels"].dtype) == (wanted.shape, wanted.dtype)
    off = np.abs(found["pixels"].astype(int) - wanted).max()
    assert off <= (6 if format == "jpeg" else 0)

    dropped = expected_warnings(source, format)
    assert found["icc"] == (None if "icc_dropped" in dropped else source.told_profile)
    assert found["orientation"] == 1
    packet = found["xmp"].decode()
    model = f"model=repeating-x2.pth; model_sha256={row['model_sha256']}; scale=2; "
    for word in ("DerivedFrom", "History", "algorithmicallyEnhanced", row["source_sha256"], model):
        assert word in packet
    assert ("alle Rechte" in packet) == source.says
    if not source.says:
        assert (found["make"], found["north"], found["iptc"]) == (None, None, None)
        assert found["dpi"] == ()
        return
    assert (found["make"], found["north"]) == ("Canon", "N")
    assert found["dpi"] == ((400, 600) if source.says else (600, 400))
    caption = camera.CAPTION.encode()
    if format != "webp" and source.format != "webp":
        assert caption in found["iptc"]


def test_quality_is_that_of_the_same_picture(made):
    """In lossless formats: the result, reduced, is the source."""
    rows, _ = made
    assert all(row["quality_psnr"] == np.inf for row in rows.values())
    assert all(row["quality_delta_e"] == 0 for row in rows.values())


@pytest.mark.skipif(not EXIFTOOL, reason="exiftool is not installed")
def test_exiftool_reads_the_same(made):
    _, folder = made
    chosen = [source for source in SOURCES if source.says and source.profile]
    paths = [folder / f"{source.name}.{kind}" for source in chosen for kind in FORMATS]
    command = [EXIFTOOL, "-j", "-G0", "-n", "-struct", *paths]
    all_said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(all_said) == len(paths)
    for said in all_said:
        assert "ExifTool:Error" not in said
        # The gray profile has no tags.
        assert re.fullmatch("|Bad ICC_Profile.*", said.get("ExifTool:Warning", ""))
        if "/tiff-" not in said["SourceFile"]:  # which has no maker note here
            assert said["MakerNotes:OwnerName"] == "Owner of the camera"
        assert said.get("EXIF:Orientation", 1) == 1
        assert (said["EXIF:GPSLatitudeRef"], said["EXIF:Make"]) == ("N", "Canon")
        assert said["XMP:DigitalSourceType"].endswith("/algorithmicallyEnhanced")
        assert [event["Action"] for event in said["XMP:History"]] == ["created", "edited"]
        assert said["XMP:DerivedFrom"]["DocumentID"] == "xmp.did:source"


@pytest.mark.skipif(not PNGCHECK, reason="pngcheck is not installed")
def test_pngcheck_finds_no_fault(made):
    _, folder = made
    done = subprocess.run([PNGCHECK, "-q", *folder.glob("*.png")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_same_again_is_the_same_bytes(made, tmp_path, repeating):
    rows, _ = made
    chosen = SOURCES[::-7]
    again = run(
        tmp_path / "again",
        repeating,
        [(each.name, each.file(), kind) for each in chosen for kind in FORMATS],
        in_flight=1,
    )
    wanted = {key: rows[key]["output_sha256"] for key in again}
    assert {key: row["output_sha256"] for key, row in again.items()} == wanted


# --- Policies, and pages -------------------------------------------------------------------------


ALL = Source("png", 16, 4, PROFILES[3], says=True)


def under(folder, model, source=ALL, formats=FORMATS, **policy):
    """What is read of a source's results under other policies."""
    files = [(source.name, source.file(), kind) for kind in formats]
    rows = run(folder, model, files, policy=Policy(**policy))
    assert {row["status"] for row in rows.values()} == {"done"}
    return [read((folder / f"{source.name}.{kind}").read_bytes(), kind) for kind in formats]


def test_what_is_stripped_is_stripped_but_for_the_profile_and_the_mark(tmp_path, repeating):
    for found in under(tmp_path, repeating, strip_metadata=True):
        nothing = [found[name] for name in ("make", "north", "iptc")]
        assert (found["icc"], nothing) == (ALL.profile, [None] * 3)
        assert b"algorithmicallyEnhanced" in found["xmp"]
        assert b"History" not in found["xmp"]
    for found in under(tmp_path, repeating, strip_metadata=True, source_type="off"):
        assert found["xmp"] is None


def test_resolution_and_mark_are_as_asked_for(tmp_path, repeating):
    kind = "compositeWithTrainedAlgorithmicMedia"
    for found in under(tmp_path, repeating, resolution="keep", source_type=kind):
        assert found["dpi"] == (200, 300)
        assert kind.encode() in found["xmp"]


def test_alpha_is_enlarged_by_what_is_asked_for(tmp_path, repeating):
    source = Source("png", 8, 2, None, says=False)
    ways = ("network", "lanczos")
    found = [under(tmp_path, repeating, source, ["png"], alpha=way) for way in ways]
    plain, smooth = (one["pixels"] for (one,) in found)
    assert (plain[::2] == plain[1::2]).all()
    assert not (smooth[::2, :, 1] == smooth[1::2, :, 1]).all()
    assert np.abs(smooth[:, :, 1].astype(int) - plain[:, :, 1]).max() < 8


def test_every_page_says_what_its_page_said(tmp_path, repeating):
    kinds = [Source("tiff", 16, 3, PROFILES[3], says=True), Source("tiff", 8, 3, None, says=True)]
    pages = [kinds[0].pixels(), kinds[1].pixels()[:7, :9]]
    file = tiff(kinds[0], *pages)
    (row,) = run(tmp_path, repeating, [("pages", file, "tiff")]).values()
    assert (row["status"], row["source_frames"]) == ("done", 2)
    found = list(read_tiff((tmp_path / "pages.tiff").read_bytes()))
    for page, pixels in zip(found, pages, strict=True):
        np.testing.assert_array_equal(
            page["pixels"], np.rot90(pixels, -1).repeat(2, 0).repeat(2, 1)
        )
        assert (page["icc"], page["dpi"], page["north"]) == (PROFILES[3], (400, 600), "N")
        assert page["iptc"] == camera.IPTC
        assert b"DerivedFrom" in page["xmp"]


# --- Odd sources, whose samples are known ---------------------------------------------------------


def raw_png(samples, depth, kind, *chunks):
    """A PNG of any colour type; chunks stand ahead of the samples."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        rows = rows.astype(">u2").view(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", lines), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(camera.png_chunk(*part) for part in parts)


def raw_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def odd():
    """Name -> a file, and the samples that it holds the right way up, with alpha, if it has any."""
    rng = np.random.default_rng(0)
    index = rng.integers(0, 4, (10, 12))
    coloured = np.array([[200, 10, 0], [0, 99, 1], [250, 250, 9], [3, 2, 1]], np.uint8)
    gray = np.array([0, 80, 160, 240], np.uint8)[:, None].repeat(3, 1)
    deep = rng.integers(0, 65_536, (10, 12, 3), np.uint16)
    alpha = np.array([0, 77, 255, 255], np.uint8)
    key = deep[2, 3]
    keyed = np.dstack([deep, np.where((deep == key).all(2), 0, 65_535).astype(np.uint16)])
    one = deep[:, :, :1]
    single = np.dstack([one, np.where(one == key[0], 0, 65_535).astype(np.uint16)])
    palette, grays = (b"PLTE", coloured.tobytes()), (b"PLTE", gray.tobytes())
    some = (b"tRNS", alpha.tobytes())
    bits = (index > 1).astype(np.uint8)
    fax = io.BytesIO()
    PIL.Image.fromarray(index > 1).save(fax, "TIFF", compression="group4")
    planes = np.moveaxis(deep, 2, 0)
    yield "bilevel", raw_png(bits, 1, 0), bits[:, :, None] * np.uint8(255)
    yield "fax", fax.getvalue(), bits[:, :, None] * np.uint8(255)
    yield "shallow", raw_png(index, 2, 0), (index[:, :, None] * 85).astype(np.uint8)
    yield "palette", raw_png(index, 4, 3, palette), coloured[index]
    yield "grays", raw_png(index, 2, 3, grays), gray[index][:, :, :1]
    yield (
        "palette-tRNS",
        raw_png(index, 8, 3, palette, some),
        np.dstack([coloured[index], alpha[index]]),
    )
    yield "RGB-tRNS", raw_png(deep, 16, 2, (b"tRNS", key.astype(">u2").tobytes())), keyed
    yield "L-tRNS", raw_png(one, 16, 0, (b"tRNS", key[:1].astype(">u2").tobytes())), single
    big = {"byteorder": ">", "photometric": "rgb", "planarconfig": "separate"}
    yield "planes", raw_tiff(planes, compression="deflate", predictor=True, **big), deep
    yield "tiles", raw_tiff(deep, tile=(16, 16), bigtiff=True, photometric="rgb"), deep
    yield (
        "negative",
        raw_tiff(255 - gray[index][:, :, 0], photometric="miniswhite"),
        gray[index][:, :, :1],
    )


ODD = {name: (file, pixels) for name, file, pixels in odd()}


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_odd_sources_become_what_they_hold(tmp_path, repeating, format):
    rows = run(tmp_path, repeating, [(name, file, format) for name, (file, _) in ODD.items()])
    for name, (_, pixels) in ODD.items():
        assert rows[name, format]["status"] == "done", rows[name, format]["error_message"]
        found = read((tmp_path / f"{name}.{format}").read_bytes(), format)["pixels"]
        wanted = pixels.repeat(2, 0).repeat(2, 1)
        assert (found.dtype, found.shape) == (wanted.dtype, np.squeeze(wanted).shape), name
        found = found.reshape(wanted.shape)
        if pixels.shape[2] in (2, 4):
            np.testing.assert_array_equal(found[:, :, -1], wanted[:, :, -1])
            hidden = wanted[:, :, -1] == 0
            assert 0 < hidden.sum() < hidden.size
            found, wanted = found[~hidden], wanted[~hidden]
        np.testing.assert_array_equal(found, wanted)


def oriented(orientation):
    """Kind -> a file that says so, each in its own way, and a picture as it is stored."""
    source = Source("png", 8, 3, None, says=False)
    stored = source.pixels()
    exif = camera.exif(orientation=orientation, size=(WIDTH, HEIGHT))
    old = b"\nexif\n%8d\n%s\n" % (6 + len(exif), (b"Exif\0\0" + exif).hex().encode())
    bare = saved(stored, "JPEG", quality=98, subsampling=0)
    lossless = {"lossless": True, "exact": True}
    yield "png", camera.png(imagecodecs.png_encode(stored), (b"eXIf", exif))
    text = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(old))
    yield "magick", camera.png(imagecodecs.png_encode(stored), text)
    yield "jpeg", camera.jpeg(bare, exif=exif)
    yield "webp", saved(stored, "WEBP", exif=b"Exif\0\0" + exif, **lossless)
    tag = [(274, 3, 1, orientation, True)]
    yield "tiff", raw_tiff(stored, photometric="rgb", extratags=tag)
    yield "jp2", jp2(source, stored) + box(b"uuid", UUIDS["exif"] + exif)


def test_orientation_is_applied_once_wherever_it_stands(tmp_path, repeating):
    """As Pillow turns pictures; nobody who reads a result turns it again."""
    stored = PIL.Image.fromarray(Source("png", 8, 3, None, says=False).pixels())
    files = [
        (f"{kind}-{orientation}", file, kept)
        for orientation in range(1, 9)
        for kind, file in oriented(orientation)
        for kept in FORMATS
    ]
    rows = run(tmp_path, repeating, files)
    for name, _, kept in files:
        row = rows[name, kept]
        assert row["status"] == "done"
        stored.getexif()[0x0112] = int(name[-1])
        wanted = np.asarray(PIL.ImageOps.exif_transpose(stored)).repeat(2, 0).repeat(2, 1)
        height, width = wanted.shape[:2]
        assert (row["source_width"], row["source_height"]) == (WIDTH, HEIGHT), "as stored"
        assert (row["output_width"], row["output_height"]) == (width, height)
        found = PIL.Image.open(tmp_path / f"{name}.{kept}")
        assert found.getexif().get(0x0112, 1) == 1
        if not name.startswith("tiff"):  # whose tags are its own, without a directory of EXIF's
            below = found.getexif().get_ifd(0x8769)
            assert (below[0xA002], below[0xA003]) == (width, height)
        packet = found.info.get("xmp") or found.tag_v2[700]
        assert b"tiff:Orientation" not in packet
        shown = np.asarray(PIL.ImageOps.exif_transpose(found)).astype(int)
        assert shown.shape == wanted.shape
        lossy = name.startswith("jpeg") + (kept == "jpeg")
        assert np.abs(shown - wanted).max() <= 6 * lossy, name


def test_inks_and_animations_are_refused_unless_a_policy_takes_them(tmp_path, repeating):
    inks = PIL.Image.new("CMYK", (9, 7), (0, 255, 255, 0))  # red
    cmyk, moving = io.BytesIO(), io.BytesIO()
    inks.save(cmyk, "JPEG", quality=95)
    ycck = imagecodecs.jpeg8_encode(
        255 - np.asarray(inks), colorspace="CMYK", outcolorspace="YCCK", level=95
    )
    lab = raw_tiff(np.full((7, 9, 3), (136, 81, 70), np.uint8), photometric="cielab")  # red
    frames = [PIL.Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:])
    codes = dict.fromkeys(["cmyk", "ycck", "lab"], "unsupported_colour")
    codes["moving"] = "unsupported_frames"
    files = [cmyk.getvalue(), ycck, lab, moving.getvalue()]
    files = [(name, file, "png") for name, file in zip(codes, files, strict=True)]
    refused = run(tmp_path / "refused", repeating, files)
    assert {name: row["error_code"] for (name, _), row in refused.items()} == codes
    assert not list((tmp_path / "refused").glob("*.png"))
    policy = Policy(colour="convert", animation="first_frame")
    taken = run(tmp_path / "taken", repeating, files, policy=policy)
    for (name, _), row in taken.items():
        warning = "frames_dropped" if name == "moving" else "colour_converted"
        assert (row["status"], warning in row["warnings"]) == ("done", True)
        found = read((tmp_path / "taken" / f"{name}.png").read_bytes(), "png")
        assert np.abs(found["pixels"].astype(int) - [255, 0, 0]).max() < 16
        assert (found["icc"] is None) == (name == "moving")  # sRGB, after a conversion


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_ramp_of_16_bits_keeps_its_levels(tmp_path, scale, channels):
    """File in, file out, through a network that interpolates."""
    net = interpolating(scale)
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    y, x = np.mgrid[:100, :160]
    ramp = np.rint((x + y / 100) / 160 * 65_535).astype(np.uint16)
    ramp = np.stack([ramp, ramp[::-1], ramp[:, ::-1]][:channels], 2).squeeze()
    files = [("p", imagecodecs.png_encode(ramp), "png"), ("t", raw_tiff(ramp), "tiff")]
    run(tmp_path, tmp_path / "net.pth", files)
    for name, _, kept in files:
        found = read((tmp_path / f"{name}.{kept}").read_bytes(), kept)["pixels"]
        assert found.dtype == np.uint16
        planes = found.reshape(100 * scale, 160 * scale, channels)
        assert min(len(np.unique(planes[:, :, one])) for one in range(channels)) >= 10_000


@needs_samples
def test_pngsuite_gives_the_right_pixels_or_the_right_code(tmp_path, repeating):
    files = {path.stem: path.read_bytes() for path in sorted((TRICKY / "pngsuite").glob("*.png"))}
    rows = run(tmp_path, repeating, [(name, file, "png") for name, file in files.items()])
    codes = {name: row["error_code"] for (name, _), row in rows.items() if row["error_code"]}
    broken = dict.fromkeys(["xhdn0g08", "xdtn0g01", "xcsn0g01"], "decode_failed")
    assert codes == broken | {"xs1n0g01": "not_an_image"}
    for name in files.keys() - codes.keys():
        stored = imagecodecs.png_decode(files[name])  # by libpng, transparency resolved
        wanted = stored.reshape(*stored.shape[:2], -1).repeat(2, 0).repeat(2, 1)
        found = read((tmp_path / f"{name}.png").read_bytes(), "png")["pixels"]
        found = found.reshape(*found.shape[:2], -1)
        assert found.dtype == wanted.dtype, name
        if found.shape[2] in (2, 4):
            np.testing.assert_array_equal(found[:, :, -1], wanted[:, :, -1], name)
            seen = found[:, :, -1] > 0
            found, wanted = found[seen], wanted[seen]
        np.testing.assert_array_equal(found, wanted[..., : found.shape[-1]], name)


@needs_samples
def test_a_camera_s_photograph_comes_out_upright(tmp_path, repeating):
    paths = [TRICKY / "exif-orientation" / f"Portrait_{number}.jpg" for number in range(1, 9)]
    files = [(path.stem, path.read_bytes(), "png") for path in paths]
    rows = run(tmp_path, repeating, files, scale=0.25)
    assert [row["status"] for row in rows.values()] == ["done"] * 8
    sizes = {(row["output_width"], row["output_height"]) for row in rows.values()}
    assert sizes == {(300, 450)}
    found = [PIL.Image.open(tmp_path / f"{name}.png") for name, *_ in files]
    assert {picture.size for picture in found} == {(300, 450)}
    assert {picture.getexif().get(0x0112, 1) for picture in found} == {1}
    first, *others = (np.asarray(picture).astype(int) for picture in found)
    assert max(np.abs(other - first).mean() for other in others) < 3  # a printed number differs
