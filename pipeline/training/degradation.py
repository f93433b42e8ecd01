"""How low-resolution pictures are made: blur, resize, noise and JPEG, twice over.

X. Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data"
(2021), section 3. What is drawn and what is done are apart: `draw` gives plain numbers, which fit
in one line of a log, and `apply` does what they say, the same each time.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.images.image import Pixels
from pipeline.training import config, jpeg
from pipeline.training.kernels import Gaussian, Kernel, Sinc, filter2d

Size = tuple[int, int]
"""Height and width, pixels."""


@dataclass(frozen=True, slots=True)
class Blur:
    """Convolution of each picture with its kernel; None keeps it."""

    kernels: tuple[Kernel | None, ...]

    def apply(self, x_bchw: Tensor) -> Tensor:
        """Unbounded: sinc kernels overshoot."""
        return filter2d(x_bchw, self.kernels) if any(self.kernels) else x_bchw


@dataclass(frozen=True, slots=True)
class Resize:
    """Interpolation to another size; without antialias nothing is smoothed before a reduction."""

    height: int
    width: int
    mode: config.ResizeMode
    antialias: bool = False

    def apply(self, x_bchw: Tensor) -> Tensor:
        """Unbounded: bicubic interpolation overshoots."""
        size = (self.height, self.width)
        if x_bchw.shape[-2:] == size:
            return x_bchw
        return functional.interpolate(x_bchw, size=size, mode=self.mode, antialias=self.antialias)


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of one kind, with a strength for each picture.

    strength: the standard deviation in levels of 255 (gaussian), or the factor of the shot noise
    (poisson). gray: whether a picture's channels share the noise. seed: of the noise itself.
    """

    kind: Literal["gaussian", "poisson"]
    strength: tuple[float, ...]
    gray: tuple[bool, ...]
    seed: int

    def apply(self, x_bchw: Tensor) -> Tensor:
        """In [0, 1]. The noise depends on the kind of device, too."""
        generator = torch.Generator(x_bchw.device).manual_seed(self.seed)
        strength = x_bchw.new_tensor(self.strength).view(-1, 1, 1, 1)
        gray = torch.tensor(self.gray, device=x_bchw.device).view(-1, 1, 1, 1)
        if self.kind == "gaussian":
            noise = torch.randn(x_bchw.shape, generator=generator, device=x_bchw.device) / 255
        else:
            noise = _shot(x_bchw, gray, generator)
        # A picture with gray noise uses its first channel's for all.
        return (x_bchw + torch.where(gray, noise[:, :1], noise) * strength).clamp_(0, 1)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Compression with a quality for each picture, 1 to 100."""

    quality: tuple[float, ...]

    def apply(self, x_bchw: Tensor) -> Tensor:
        """In [0, 1], multiples of 1/255."""
        return jpeg.compress(x_bchw, x_bchw.new_tensor(self.quality))


Step = Blur | Resize | Noise | Jpeg


@dataclass(frozen=True, slots=True)
class Params:
    """A degradation of `count` pictures of `height` x `width` pixels: its steps, in their order."""

    count: int
    height: int
    width: int
    steps: tuple[Step, ...]

    def to_json(self) -> str:
        """One line, without loss."""
        steps = [{"step": type(step).__name__, **asdict(step)} for step in self.steps]
        return json.dumps(
            {"count": self.count, "height": self.height, "width": self.width, "steps": steps}
        )

    @classmethod
    def from_json(cls, line: str) -> "Params":
        """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        fields = json.loads(line)
        return cls(**fields | {"steps": tuple(_step(step) for step in fields["steps"])})


@torch.no_grad()
def apply(x_bchw: Tensor, params: Params) -> Tensor:
    """Low-resolution pictures, the same for the same arguments on one kind of device.

    x_bchw: float32 in [0, 1], RGB, of the count and the size that were drawn for. Returns the size
    divided by the scale, rounded to multiples of 1/255. Raises ValueError for another shape.
    """
    expected = (params.count, 3, params.height, params.width)
    if x_bchw.shape != expected:
        raise ValueError(f"pictures of {tuple(x_bchw.shape)}, but {expected} were drawn for")
    # Half precision would change what JPEG rounds, and is not what Fourier transforms take.
    with torch.autocast(x_bchw.device.type, enabled=False):
        for step in params.steps:
            x_bchw = step.apply(x_bchw)
    return (x_bchw * 255).round().clamp(0, 255) / 255


def draw(
    rng: np.random.Generator,
    recipe: config.Degradation,
    *,
    count: int,
    height: int,
    width: int,
    scale: int,
) -> Params:
    """A degradation for a lane of `count` pictures of `height` x `width` pixels.

    Sizes, interpolations and the kinds of noise are drawn once for the lane, so that it stays one
    tensor; kernels, strengths and qualities for each picture.
    """
    low = (height // scale, width // scale)
    if rng.random() < recipe.clean:
        return Params(count, height, width, (Resize(*low, mode="bicubic", antialias=True),))
    steps = (
        *_order(rng, recipe.first, count, (height, width)),
        _jpeg(rng, recipe.first, count),
        # The second resize is relative to the final size, whatever the first one made.
        *_order(rng, recipe.second, count, low),
        *_last(rng, recipe, count, low),
    )
    return Params(count, height, width, steps)


def degraded(
    pixels: Pixels, recipe: config.Degradation, rng: np.random.Generator, *, scale: int
) -> Pixels:
    """A single picture as the recipe makes it: uint8 (H, W, 3) to (H / scale, W / scale, 3)."""
    height, width = pixels.shape[:2]
    params = draw(rng, recipe, count=1, height=height, width=width, scale=scale)
    return to_pixels(apply(to_bchw(pixels), params))


def to_bchw(pixels: Pixels) -> Tensor:
    """float32 (1, C, H, W) in [0, 1] of uint8 (H, W, C)."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def to_pixels(x_bchw: Tensor) -> Pixels:
    """uint8 (H, W, C) of the first of float (B, C, H, W), clamped to [0, 1]."""
    levels = to_levels(x_bchw[0].clamp(0, 1))
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


def to_levels(x: Tensor) -> Tensor:
    """uint8 of [0, 1], rounded to the nearest; of any shape."""
    return (x * 255).round().to(torch.uint8)


def _order(rng: np.random.Generator, recipe: config.Order, count: int, size: Size) -> list[Step]:
    """All of one round but JPEG, whose place differs. size: what the resize is relative to."""
    blur: list[Step] = []
    if rng.random() < recipe.blur.probability:
        blur = [Blur(tuple(_kernel(rng, recipe.blur) for _ in range(count)))]
    factor = _factor(rng, recipe.resize)
    resized = (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))
    return [*blur, _resize(rng, recipe.resize, resized), _noise(rng, recipe.noise, count)]


def _last(
    rng: np.random.Generator, recipe: config.Degradation, count: int, low: Size
) -> list[Step]:
    """To the final size, with a sinc filter, before or after the last JPEG: equally likely."""
    compressed = _jpeg(rng, recipe.second, count)
    resized = _resize(rng, recipe.second.resize, low)
    filtered = Blur(tuple(_final_sinc(rng, recipe) for _ in range(count)))
    if rng.random() < 0.5:
        return [resized, filtered, compressed]
    return [compressed, resized, filtered]


def _kernel(rng: np.random.Generator, recipe: config.Blur) -> Kernel:
    size = _size(rng, recipe)
    if rng.random() < recipe.sinc:
        # Lower frequencies would make rings that are wider than the small kernels.
        return Sinc(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    kinds = list(recipe.kinds)
    kind = kinds[rng.choice(len(kinds), p=list(recipe.kinds.values()))]
    sigma_x = sigma_y = rng.uniform(*recipe.sigma)
    theta = 0.0
    if kind.endswith("aniso"):
        sigma_y = rng.uniform(*recipe.sigma)
        theta = rng.uniform(-np.pi, np.pi)
    return Gaussian(kind, size, sigma_x, sigma_y, theta, _beta(rng, recipe, kind))


def _beta(rng: np.random.Generator, recipe: config.Blur, kind: config.BlurKind) -> float:
    """Half of them up to 1, half above; plateaus start at 1, which half of them therefore have."""
    if kind in ("iso", "aniso"):
        return 1.0
    plateau = kind.startswith("plateau")
    least, greatest = recipe.plateau_beta if plateau else recipe.generalized_beta
    return rng.uniform(least, 1) if rng.random() < 0.5 else rng.uniform(1, greatest)


def _final_sinc(rng: np.random.Generator, recipe: config.Degradation) -> Sinc | None:
    if rng.random() >= recipe.final_sinc:
        return None
    return Sinc(_size(rng, recipe.second.blur), rng.uniform(np.pi / 3, np.pi))


def _size(rng: np.random.Generator, recipe: config.Blur) -> int:
    """Odd, from the least to the greatest."""
    least, greatest = recipe.sizes
    return least + 2 * int(rng.integers((greatest - least) // 2 + 1))


def _factor(rng: np.random.Generator, recipe: config.Resize) -> float:
    least, greatest = recipe.factors
    ranges = ((1, greatest), (least, 1), (1, 1))
    return rng.uniform(*ranges[rng.choice(3, p=recipe.probabilities)])


def _resize(rng: np.random.Generator, recipe: config.Resize, size: Size) -> Resize:
    return Resize(*size, mode=recipe.modes[rng.integers(len(recipe.modes))])


def _noise(rng: np.random.Generator, recipe: config.Noise, count: int) -> Noise:
    gaussian = rng.random() < recipe.gaussian
    strength = rng.uniform(*(recipe.sigma if gaussian else recipe.poisson_scale), count)
    gray = rng.random(count) < recipe.gray
    return Noise(
        kind="gaussian" if gaussian else "poisson",
        strength=tuple(strength.tolist()),
        gray=tuple(gray.tolist()),
        seed=int(rng.integers(2**32)),
    )


def _jpeg(rng: np.random.Generator, recipe: config.Order, count: int) -> Jpeg:
    return Jpeg(tuple(rng.uniform(*recipe.jpeg_quality, count).tolist()))


def _shot(x_bchw: Tensor, gray_b111: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson noise: the difference that counting photons makes to pictures of 8 bits.

    White is as many photons as the picture has levels, rounded up to a power of two. Gray noise is
    that of the luma, in the first channel.
    """
    luma = (x_bchw * x_bchw.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, True)
    levels = (torch.where(gray_b111, luma, x_bchw) * 255).round().clamp_(0, 255)
    white = _photons(levels)
    expected = levels * (white / 255)
    # The other channels of gray noise are not looked at, and nothing is quickly counted.
    expected[:, 1:].masked_fill_(gray_b111, 0)
    return torch.poisson(expected, generator) / white - levels / 255


def _photons(levels_bchw: Tensor) -> Tensor:
    """(B, 1, 1, 1): number of different levels of each picture, up to the next power of two."""
    seen = levels_bchw.new_zeros(len(levels_bchw), 256)
    seen.scatter_(1, levels_bchw.flatten(1).long(), 1)
    # The exponent of n - 1 is the logarithm of n rounded up, exactly.
    exponent = torch.frexp(seen.sum(1) - 1).exponent
    return torch.ldexp(torch.ones_like(exponent, dtype=seen.dtype), exponent).view(-1, 1, 1, 1)


_STEPS = {step.__name__: step for step in get_args(Step)}


def _step(fields: Mapping[str, Any]) -> Step:
    """What `Params.to_json` wrote of a step."""
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if name != "step"
    }
    if "kernels" in values:
        values["kernels"] = tuple(_read_kernel(kernel) for kernel in values["kernels"])
    return _STEPS[fields["step"]](**values)


def _read_kernel(fields: Mapping[str, Any] | None) -> Kernel | None:
    if fields is None:
        return None
    return Sinc(**fields) if "cutoff" in fields else Gaussian(**fields)
