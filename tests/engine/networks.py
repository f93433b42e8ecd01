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


def noise(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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
    """The oracle: float32 (H, W, C) in levels of 255 and beyond."""
    shape, (height, width) = net.shape, pixels.shape[:2]
    x_bchw = torch.from_numpy(padded(pixels, shape.multiple)).permute(2, 0, 1)[None].float() / 255
    y_hwc = (net(x_bchw)[0] * 255).permute(1, 2, 0).numpy()
    return y_hwc[: height * shape.scale, : width * shape.scale]


def whole(net, pixels):
    """The oracle as far as 8 bits can show it."""
    return forward(net, pixels).clip(0, 255)
