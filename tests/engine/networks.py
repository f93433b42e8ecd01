"""Small seeded networks and pictures, and the oracle: the plain network on the whole picture."""

import numpy as np
import torch

from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

SHAPES = {
    "compact": SRVGGShape(features=8, convs=3, scale=4),
    "rrdb-x4": RRDBNetShape(features=8, blocks=1, growth=4),
    "rrdb-x2": RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=2),
    "rrdb-x1": RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=4),
    "esrgan+": RRDBNetShape(features=8, blocks=1, growth=4, upsampling=(3,), plus=True),
}


def network(shape):
    """A seeded network whose result is neither saturated nor flat."""
    torch.manual_seed(0)
    kind = SRVGGNetCompact if isinstance(shape, SRVGGShape) else RRDBNet
    net = kind(shape).eval().requires_grad_(requires_grad=False)
    for parameter in net.parameters():
        spread = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        torch.nn.init.normal_(parameter, std=spread)
    return net


@torch.no_grad()
def interpolating(scale):
    """A compact network that enlarges exactly as linear interpolation does: it carries the picture
    through and corrects the nearest neighbour by what is beside it. Borders see zeros."""
    net = SRVGGNetCompact(SRVGGShape(features=3, convs=1, scale=scale)).eval()
    for parameter in net.requires_grad_(requires_grad=False).parameters():
        parameter.zero_()
    *carrying, last = (layer for layer in net.body if isinstance(layer, torch.nn.Conv2d))
    for convolution in carrying:
        torch.nn.init.dirac_(convolution.weight)
    offset = (torch.arange(scale) + 0.5) / scale - 0.5
    taps = torch.stack([(-offset).relu(), 1 - offset.abs(), offset.relu()], dim=1)
    correction = torch.einsum("ia,jb->ijab", taps, taps).flatten(0, 1)
    correction[:, 1, 1] -= 1
    for channel in range(3):
        last.weight[channel * scale**2 : (channel + 1) * scale**2, channel] = correction
    return net


def noise(*shape, seed=1, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def padded(pixels, multiple):
    """Reflected to the multiple at the right and the bottom; the first one where that ends."""
    for axis in (0, 1):
        side, more = pixels.shape[axis], -pixels.shape[axis] % multiple
        widths = [(0, 0)] * 3
        widths[axis] = (0, min(more, side - 1))
        pixels = np.pad(pixels, widths, mode="reflect")
        first = np.take(pixels, [0] * (more - widths[axis][1]), axis=axis)
        pixels = np.concatenate([pixels, first], axis=axis)
    return pixels


@torch.inference_mode()
def forward(net, pixels):
    """The oracle: float32 (H, W, C) in levels of 255 or 65,535, and beyond."""
    shape, (height, width), full = net.shape, pixels.shape[:2], np.iinfo(pixels.dtype).max
    x_bchw = torch.from_numpy(padded(pixels, shape.multiple)).permute(2, 0, 1)[None].float() / full
    y_hwc = (net(x_bchw)[0] * full).permute(1, 2, 0).numpy()
    return y_hwc[: height * shape.scale, : width * shape.scale]


def whole(net, pixels):
    """The oracle as far as 8 bits, or 16, can show it."""
    return forward(net, pixels).clip(0, np.iinfo(pixels.dtype).max)
