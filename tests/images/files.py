"""One small whole file of every format, and of every way that a TIFF's samples are packed."""

import io

import imagecodecs
import numpy as np
import PIL.Image
import tifffile


def saved(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


gradient = PIL.Image.fromarray(
    np.stack([np.mgrid[:48, :48][0] * 5, np.mgrid[:48, :48][1] * 5, noise(48, 48)], 2).astype(
        np.uint8
    )
)
WHOLE = {
    "png": saved(gradient, "PNG"),
    "png16": imagecodecs.png_encode(noise(40, 40, 3, dtype=np.uint16)),
    "jpeg": saved(gradient, "JPEG"),
    "progressive": saved(gradient, "JPEG", progressive=True),
    "webp": saved(gradient, "WEBP"),
    "webp lossless": saved(gradient, "WEBP", lossless=True),
    "gif": saved(gradient, "GIF", interlace=0),
    "bmp": saved(gradient, "BMP"),
    "bmp1": saved(gradient.convert("1"), "BMP"),
    "ppm": saved(gradient, "PPM"),
    "pbm": saved(gradient.convert("1"), "PPM"),
    "jp2": saved(gradient, "JPEG2000"),
    "j2k": saved(gradient, "JPEG2000", no_jp2=True),
    "tiff": tiff(np.asarray(gradient), photometric="rgb", rowsperstrip=8),
    "tiff lzw": saved(gradient, "TIFF", compression="tiff_lzw"),
    "tiff deflate": tiff(
        noise(40, 40, 3), photometric="rgb", compression="deflate", rowsperstrip=8
    ),
    "tiff jpeg": tiff(np.asarray(gradient), photometric="rgb", compression="jpeg"),
    "tiff g4": saved(gradient.convert("1"), "TIFF", compression="group4"),
    "tiff tiled": tiff(np.asarray(gradient), photometric="rgb", tile=(16, 16)),
    "tiff planar": tiff(np.moveaxis(np.asarray(gradient), 2, 0), photometric="rgb"),
    "tiff packbits": saved(gradient, "TIFF", compression="packbits"),
    "tiff big": tiff(
        np.asarray(gradient), photometric="rgb", bigtiff=True, compression="zstd", rowsperstrip=8
    ),
    "tiff jpeg2000": tiff(np.asarray(gradient), photometric="rgb", compression="jpeg2000"),
    "webp alpha": saved(gradient.convert("RGBA").rotate(30), "WEBP"),
}
