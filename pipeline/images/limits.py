"""What each format can hold: asked by the plan and before an upscale, so it needs no codec."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.errors import TooLargeError, UnsupportedError

if TYPE_CHECKING:
    from pipeline.images.image import Facts

# Pixels a side: libjpeg-turbo's limit (the format's is 65,535), and WebP's 14 bits.
_MAX_SIDE = {"jpeg": 65_500, "webp": 16_383}
_EIGHT_BITS = {"jpeg", "webp"}
_MANY_PAGES = {"tiff"}

# Bytes of an encoder: in any case, and for each pixel. Pillow holds a picture in 4 bytes a pixel,
# 16 bits are reduced to 8 ahead, and libwebp makes planes and tables of its own.
_ENCODER = {"png": (2**23, 0), "tiff": (2**23, 0), "jpeg": (2**23, 8), "webp": (2**23, 16)}
_LOSSLESS_WEBP = (2**23, 44)

# Bytes of a decoder for each byte of its samples, and for each sample and pixel beside them, the
# samples themselves and their turn upright included. Pillow holds RGB in 4 bytes a pixel, and hands
# samples out by way of two copies; libtiff's way is through it, too. OpenJPEG holds a sample in 4
# bytes. Plain Netpbm is read into 16 bits.
_DECODER = {
    "png": (2, 0, 0),
    "pnm": (4, 0, 0),
    "tiff": (5, 0, 0),
    "jpeg": (4, 0, 0),
    "jpeg2000": (2, 6, 0),
    "webp": (0, 0, 28),
    "gif": (0, 0, 16),
    "bmp": (0, 0, 16),
}
# Of the steps of a large picture, in bands: `levels.bands`, and of lines in `read_png`. Lab's take
# most for each pixel.
_BAND, _BAND_PIXEL = 2**24, 128

# Copies of metadata at one time, measured: 4 in a child of the sandbox and 5 here while they are
# handed over as text; 6 while a result is made of them.
_METADATA_COPIES = 10


def check_size(format: str, width: int, height: int, *, max_pixels: int) -> None:
    """Raises TooLargeError if a result of this size cannot be written, before it is computed.

    max_pixels: `limits.max_output_pixels`.
    """
    if width * height > max_pixels:
        size = f"the result has {width} x {height} = {width * height:,} pixels"
        raise TooLargeError(
            "output_too_large",
            f"{size}, limit {max_pixels:,} (limits.max_output_pixels, scale, long_side)",
        )
    limit = _MAX_SIDE.get(format)
    if limit and max(width, height) > limit:
        raise TooLargeError(
            "output_too_large",
            f"the result has {width} x {height} pixels, {format} holds {limit:,} a side "
            "(format: png or tiff)",
        )


def check_pages(sizes: Sequence[tuple[int, int]], *, max_pixels: int) -> None:
    """Raises TooLargeError if pages are too many pixels together: all are held until the last.

    sizes: (width, height) of each result. max_pixels: `limits.max_output_pixels`.
    """
    pixels = sum(width * height for width, height in sizes)
    if pixels > max_pixels:
        raise TooLargeError(
            "output_too_large",
            f"the result has {len(sizes)} pages of {pixels:,} pixels together, limit "
            f"{max_pixels:,} (limits.max_output_pixels, scale, long_side)",
        )


def check_kind(format: str, *, pages: int, bit_depth: int, depth_policy: str) -> None:
    """Raises UnsupportedError if a format does not hold what the source does.

    bit_depth: of the source. depth_policy: `policy.depth`, `reduce` or `reject`.
    """
    if pages > 1 and format not in _MANY_PAGES:
        raise UnsupportedError(
            "output_pages", f"the source has {pages} pages, {format} holds 1 (format: tiff)"
        )
    if bit_depth > 8 and format in _EIGHT_BITS and depth_policy == "reject":
        raise UnsupportedError(
            "output_depth",
            f"the source has {bit_depth} bits a sample, {format} holds 8 "
            "(format: png or tiff, or policy.depth: reduce)",
        )


def encoder_bytes(format: str, width: int, height: int, *, channels: int, lossless: bool) -> int:
    """Memory that an encoder takes at most, beside the samples it is given and its file.

    There are two copies of a file that is not a TIFF: as the encoder wrote it, and with its
    metadata. channels: of the result. lossless: `encode.webp_lossless`.
    """
    # Even a lossy WebP has transparency without loss.
    exact = format == "webp" and (lossless or channels in (2, 4))
    fixed, each = _LOSSLESS_WEBP if exact else _ENCODER[format]
    return fixed + each * width * height


def decoder_bytes(source: "Facts") -> int:
    """Memory that a child of the sandbox takes at most, beside the file: measured."""
    samples, each_sample, each_pixel = _DECODER[source.format]
    pixels = source.width * source.height
    stored = 4 if source.colour in ("cmyk", "ycck") else source.stored_channels
    channels = max(source.channels, stored)  # what means nothing to us is decoded with the rest
    each = (samples * source.sample_bytes + each_sample) * channels + each_pixel
    return each * pixels + min(_BAND, _BAND_PIXEL * pixels)


def held_bytes(
    file_bytes: int,
    sources: "Sequence[Facts]",
    sizes: Sequence[tuple[int, int]],
    format: str,
    *,
    lossless: bool,
) -> int:
    """Memory that a picture takes at most on its way, here and in the sandbox.

    file_bytes: of the source. sources: its pages. sizes: (width, height) of their results.
    One page is decoded and upscaled after the other, so the largest of them counts. The results
    are all there when they are encoded.
    """
    source = results = encoder = 0
    for one, (width, height) in zip(sources, sizes, strict=True):
        # The samples are here, too, where the result is compared with them.
        samples = one.width * one.height * one.channels * one.sample_bytes
        source = max(source, samples + decoder_bytes(one))
        # Grays of a palette become RGB, beside themselves, if their profile is one of RGB.
        grays = one.colour == "palette" and one.channels < 3
        channels = 2 * one.channels + 2 if grays else one.channels
        results += width * height * channels * one.sample_bytes
        needed = encoder_bytes(format, width, height, channels=one.channels, lossless=lossless)
        encoder = max(encoder, needed)
    said = _METADATA_COPIES * sum(one.metadata_bytes for one in sources)
    # A file as large as its samples, which noise makes it. A PNG's is copied when it is given its
    # metadata; those of JPEG and WebP are smaller than what their encoders give back by then.
    files = 2 if format == "png" else 1
    return 2 * file_bytes + said + source + (1 + files) * results + encoder
