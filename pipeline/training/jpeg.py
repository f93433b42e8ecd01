"""JPEG compression and decompression of a batch of pictures, on their device.

Only what is lost is computed: the coding of the coefficients is left out. Baseline JPEG as in
ITU-T T.81 (1992), with the example tables of its Annex K scaled as the Independent JPEG Group's
library does, JFIF's colours, and chroma halved along both sides (4:2:0), so that the pixels are
those of common encoders and decoders within rounding.
"""

from functools import cache
from math import pi

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_MCU = 16  # side of the squares that are coded together: two blocks of luma, one of chroma


def compress(x_bchw: Tensor, quality_b: Tensor) -> Tensor:
    """Pictures as a decoder shows them after they were stored as JPEG.

    x_bchw: float32 (B, 3, H, W), RGB, of any size; clamped to [0, 1] and rounded to 8 bits.
    quality_b: (B,), 1 to 100, need not be whole; not modified. Returns pictures of the same shape,
    in multiples of 1/255.

    Pictures are filled up to whole blocks by repeating their edges, as encoders do; the reference
    training code fills with black, which rings into the last rows and columns, does not round
    tables and pixels, and enlarges chroma by repeating it.
    """
    height, width = x_bchw.shape[-2:]
    pixels = (x_bchw.clamp(0, 1) * 255).round()
    # Rows are filled up to pairs here, and to blocks when chroma is halved: libjpeg's order.
    pixels = functional.pad(pixels, (0, -width % _MCU, 0, height % 2), mode="replicate")
    ycc = _colours(pixels, _TO_YCC).round_()
    tables = quantisation(quality_b.to(x_bchw))
    luma = _coded(ycc[:, :1] - 128, tables[:, 0]) + 128
    chroma = _coded(_halved(ycc[:, 1:]), tables[:, 1])
    # Decoders enlarge chroma by a triangle filter, and know it ends with the picture.
    chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear").round()
    planes = [luma[..., :height, :width], chroma[..., :height, :width]]
    return _colours(torch.cat(planes, 1), _TO_RGB).round().clamp(0, 255) / 255


def _colours(planes_bchw: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Between RGB and luma (0 to 255) with chroma around 0, which JFIF adds 128 to for bytes."""
    return torch.einsum("dc,bchw->bdhw", planes_bchw.new_tensor(matrix), planes_bchw)


def _halved(planes_bchw: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; halves are rounded down and up by turns, as libjpeg does."""
    means = functional.avg_pool2d(planes_bchw, 2)
    turns = torch.arange(means.shape[-1], device=means.device) % 2
    return (means + (1 + turns) / 4).floor()


def quantisation(quality_b: Tensor) -> Tensor:
    """(B, 2, 64): steps of the coefficients of luma and of chroma, row by row."""
    percent = torch.where(quality_b < 50, 5000 / quality_b, 200 - 2 * quality_b).floor()
    tables = quality_b.new_tensor((_LUMA, _CHROMA)).view(1, 2, 64)
    return ((tables * percent.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255)


def _coded(planes_bchw: Tensor, table_b64: Tensor) -> Tensor:
    """Planes after the quantisation of their 8 x 8 blocks; values around 0, multiples of 1.

    The width is a multiple of 8; the height becomes one, by repeating the last row.
    """
    filled = functional.pad(planes_bchw, (0, 0, 0, -planes_bchw.shape[2] % 8), mode="replicate")
    batch, channels, height, width = filled.shape
    in_rows = (batch, channels, height // 8, 8, width // 8, 8)
    blocks = filled.view(in_rows).transpose(3, 4).reshape(batch, -1, 64)
    transform = _cosines(filled.device)
    table = table_b64[:, None]
    coefficients = ((blocks @ transform.T) / table).round_() * table
    decoded = (coefficients @ transform).round_()
    in_blocks = (batch, channels, height // 8, width // 8, 8, 8)
    return decoded.view(in_blocks).transpose(3, 4).reshape(filled.shape)


@cache
def _cosines(device: torch.device) -> Tensor:
    """(64, 64), orthonormal: the discrete cosine transform of a block, written row by row.

    One product with it is faster than one of 8 x 8 along each side: those are too small.
    """
    frequency, place = torch.meshgrid(
        torch.arange(8, dtype=torch.float64), torch.arange(8, dtype=torch.float64), indexing="ij"
    )
    line = torch.cos(frequency * (2 * place + 1) * pi / 16) / 2
    line[0] /= 2**0.5
    return torch.kron(line, line).to(device, torch.float32)
