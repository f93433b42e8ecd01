"""What each format can hold: asked by the plan and before an upscale, so it needs no codec."""

from pipeline.errors import TooLargeError, UnsupportedError

# Pixels a side: libjpeg-turbo's limit (the format's is 65,535), and WebP's 14 bits.
_MAX_SIDE = {"jpeg": 65_500, "webp": 16_383}
_EIGHT_BITS = {"jpeg", "webp"}
_MANY_PAGES = {"tiff"}

# Bytes of an encoder: in any case, and for each pixel. Pillow holds a picture in 4 bytes a pixel,
# 16 bits are reduced to 8 ahead, and libwebp makes planes and tables of its own.
_ENCODER = {"png": (2**23, 0), "tiff": (2**23, 0), "jpeg": (2**23, 8), "webp": (2**23, 16)}
_LOSSLESS_WEBP = (2**23, 44)


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
