"""What a training may be told. The defaults are the official recipe's.

X. Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data"
(2021), with the values of its released YAML files where the paper says otherwise.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config import Scan, StorageSection
from pipeline.settings import CommandConfig, Section


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the least value {value[0]:g} is above the greatest {value[1]:g}")
    return value


def _sums_to_1(values: Iterable[float]) -> None:
    total = math.fsum(values)
    if min(values, default=0) < 0 or not math.isclose(total, 1):
        raise ValueError(f"the probabilities' sum is {total:g}, not 1")


_Decay = Annotated[float, Field(ge=0, lt=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Least and greatest value of a uniform distribution."""
BlurKind = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]
ResizeMode = Literal["area", "bilinear", "bicubic"]


class Blur(Section):
    """Convolution with a kernel drawn for each picture."""

    probability: float = Field(default=1, ge=0, le=1, description="that a lane is blurred at all")
    sizes: tuple[int, int] = Field(
        default=(7, 21), description="least and greatest side of a kernel, in pixels; odd"
    )
    kinds: dict[BlurKind, float] = Field(
        default={
            "iso": 0.45,
            "aniso": 0.25,
            "generalized_iso": 0.12,
            "generalized_aniso": 0.03,
            "plateau_iso": 0.12,
            "plateau_aniso": 0.03,
        },
        description="probabilities of the Gaussian kernels; their sum is 1",
    )
    sigma: Range = Field(default=(0.2, 3), description="standard deviation along an axis, pixels")
    generalized_beta: Range = Field(
        default=(0.5, 4), description="exponent, half of the kernels below 1 and half above"
    )
    plateau_beta: Range = Field(
        default=(1, 2), description="exponent, half of the kernels exactly the least"
    )
    sinc: float = Field(
        default=0.1, ge=0, le=1, description="probability of a sinc kernel instead of these"
    )

    @model_validator(mode="after")
    def _possible(self) -> "Blur":
        least, greatest = self.sizes
        if not (1 <= least <= greatest and least % 2 == greatest % 2 == 1):
            raise ValueError(f"sizes {least} to {greatest} are not odd and in this order")
        if self.sigma[0] <= 0:
            raise ValueError(f"sigma {self.sigma[0]:g} must be above 0")
        _sums_to_1(list(self.kinds.values()))
        for name in ("generalized_beta", "plateau_beta"):
            low, high = getattr(self, name)
            if not 0 < low <= 1 <= high:
                raise ValueError(f"{name} {low:g} to {high:g} must be above 0 and have 1 in it")
        return self


class Resize(Section):
    """Enlargement or reduction, one for a lane."""

    probabilities: tuple[float, float, float] = Field(
        default=(0.2, 0.7, 0.1), description="of enlarging, reducing and keeping"
    )
    factors: Range = Field(default=(0.15, 1.5), description="least and greatest factor")
    modes: tuple[ResizeMode, ...] = Field(
        default=("area", "bilinear", "bicubic"),
        min_length=1,
        description="interpolations, equally likely",
    )

    @field_validator("probabilities")
    @classmethod
    def _whole(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        _sums_to_1(value)
        return value

    @field_validator("factors")
    @classmethod
    def _around_1(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= 1 <= value[1]:
            raise ValueError("the factors must be above 0 and have 1 between them")
        return value


class Noise(Section):
    """Gaussian or Poisson noise."""

    gaussian: float = Field(
        default=0.5, ge=0, le=1, description="probability of Gaussian noise, else Poisson"
    )
    sigma: Range = Field(default=(1, 30), description="of Gaussian noise, in levels of 255")
    poisson_scale: Range = Field(default=(0.05, 3), description="of Poisson noise")
    gray: float = Field(
        default=0.4, ge=0, le=1, description="probability that all channels share the noise"
    )


class Order(Section):
    """One round of blur, resize, noise and JPEG."""

    blur: Blur = Blur()
    resize: Resize = Resize()
    noise: Noise = Noise()
    jpeg_quality: Range = Field(default=(30, 95), description="of JPEG compression, 4:2:0")

    @field_validator("jpeg_quality")
    @classmethod
    def _of_jpeg(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 1 <= value[0] <= value[1] <= 100:
            raise ValueError("JPEG's quality is from 1 to 100")
        return value


# Classes and not values: a setting of the second round must not bring the first one's others along.
class SecondBlur(Blur):
    """Convolution with a kernel drawn for each picture, weaker."""

    probability: float = Field(default=0.8, ge=0, le=1, description="that a lane is blurred at all")
    sigma: Range = Field(default=(0.2, 1.5), description="standard deviation along an axis, pixels")


class SecondResize(Resize):
    """Enlargement or reduction, one for a lane, relative to the final size."""

    probabilities: tuple[float, float, float] = Field(
        default=(0.3, 0.4, 0.3), description="of enlarging, reducing and keeping"
    )
    factors: Range = Field(default=(0.3, 1.2), description="least and greatest factor")


class SecondNoise(Noise):
    """Gaussian or Poisson noise, weaker."""

    sigma: Range = Field(default=(1, 25), description="of Gaussian noise, in levels of 255")
    poisson_scale: Range = Field(default=(0.05, 2.5), description="of Poisson noise")


class SecondOrder(Order):
    """The second round."""

    # Sections are frozen, which pyright does not learn from their configuration.
    blur: SecondBlur = SecondBlur()  # pyright: ignore[reportIncompatibleVariableOverride]
    resize: SecondResize = SecondResize()  # pyright: ignore[reportIncompatibleVariableOverride]
    noise: SecondNoise = SecondNoise()  # pyright: ignore[reportIncompatibleVariableOverride]


class Degradation(Section):
    """How low-resolution pictures are made."""

    clean: float = Field(
        default=0,
        ge=0,
        le=1,
        description="probability that a lane is reduced as pictures are on purpose (bicubic, "
        "antialiased) and nothing else",
    )
    first: Order = Order()
    second: SecondOrder = SecondOrder()
    final_sinc: float = Field(
        default=0.8, ge=0, le=1, description="probability of the sinc filter at the end"
    )


class Crops(Section):
    """What is cut out of the pictures, and how it is turned."""

    side: int = Field(
        default=400, ge=16, description="of what is degraded, target pixels; smaller ones padded"
    )
    target: int = Field(default=256, ge=16, description="side of a training target, pixels")
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of mirroring")
    vflip: float = Field(default=0, ge=0, le=1, description="probability of turning over")
    transpose: float = Field(default=0, ge=0, le=1, description="probability of transposing")
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1, 0.75, 0.5, 1 / 3),
        min_length=1,
        description="reductions that a picture is seen at, equally likely",
    )
    shortest: int | None = Field(
        default=400, ge=16, description="a further reduction: to this shortest side; null: none"
    )


class Losses(Section):
    """Weights of the generator's losses."""

    l1: float = Field(default=1.0, ge=0, description="weight of the mean absolute difference")
    perceptual: Annotated[float, Field(ge=0)] | Literal["off"] = Field(
        default=1.0, description="weight of VGG19's feature differences (stage gan); or off"
    )
    gan: float = Field(default=0.1, ge=0, description="weight of the discriminator's verdict")
    vgg19: str | None = Field(
        default=None, description="file of torchvision's VGG19 weights; default downloaded"
    )
    sharpen: bool = Field(
        default=True, description="unsharp masking of the targets of l1 and perceptual"
    )

    @field_validator("perceptual", mode="before")
    @classmethod
    def _as_typed(cls, value: object) -> object:
        return "off" if value is False else value  # what YAML makes of a plain off


class Adam(Section):
    """The optimizer and its schedule, for generator and discriminator alike."""

    rate: float = Field(default=2e-4, gt=0, description="learning rate")
    betas: tuple[_Decay, _Decay] = Field(default=(0.9, 0.99), description="of Adam")
    milestones: tuple[int, ...] = Field(default=(), description="steps at which the rate falls")
    gamma: float = Field(default=0.5, gt=0, le=1, description="factor by which it falls")


class Validation(Section):
    """How the generator is looked at while it trains."""

    images: str | None = Field(
        default=None, description="targets: a folder of images; default some of the training's"
    )
    pairs: str | None = Field(
        default=None, description="folder of low-resolution pictures for them; default degraded"
    )
    every: int = Field(default=5000, ge=1, description="steps between validations")
    count: int = Field(default=8, ge=1, description="pictures, at most")
    side: int = Field(default=256, ge=64, description="of the crop that is validated, pixels")


class TrainWorkers(Section):
    """How a training is spread; changes nothing but its speed."""

    count: int = Field(default=1, ge=1, description="workers; each has a device")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs a worker asks for; default 1 on CUDA, 0 on CPUs"
    )
    cpus: float | None = Field(default=None, ge=0, description="CPUs a worker asks for; default 1")
    threads: int | None = Field(
        default=None, ge=1, description="torch threads; default the node's CPUs over its workers"
    )
    readers: int = Field(default=4, ge=1, description="threads of a worker that read pictures")
    cache_bytes: int = Field(
        default=2**30, ge=0, description="bytes of decoded pictures that a worker keeps"
    )
    max_restarts: int = Field(
        default=3, ge=0, description="times a training goes on by itself after lost workers"
    )


class TrainConfig(CommandConfig):
    """Train a Real-ESRGAN generator."""

    program = "train.py"

    images: str = Field(
        description="high-resolution pictures: a folder, a meta_info list (.txt, paths relative to "
        "`root`), or a manifest (Parquet, CSV, JSONL); any fsspec URI"
    )
    root: str | None = Field(
        default=None, description="folder that a meta_info list's paths are relative to"
    )
    pairs: str | None = Field(
        default=None,
        description="folder of low-resolution pictures with the names of `images`: paired "
        "fine-tuning, nothing is degraded",
    )
    output: str = Field(description="folder or prefix for checkpoints, metrics, sheets and export")
    stage: Literal["net", "gan"] = Field(
        default="net", description="net: L1 alone (Real-ESRNet); gan: all losses (Real-ESRGAN)"
    )
    generator: dict[str, Any] = Field(
        default={},
        description="architecture and hyper-parameters; default what `start` holds",
    )
    start: str | None = Field(
        default=None,
        description="generator to start from: zoo name, checkpoint path or URI; a larger "
        "SRVGGNetCompact grows out of a smaller one",
    )
    start_discriminator: str | None = Field(
        default=None, description="discriminator to start from: checkpoint path or URI"
    )
    iterations: int = Field(default=1_000_000, ge=1, description="steps of the optimizer")
    batch: int = Field(default=48, ge=1, description="pictures in a step, of all workers together")
    lane: int = Field(
        default=12, ge=1, description="pictures that are degraded and computed at once"
    )
    pool: int = Field(
        default=180, ge=0, description="pairs that a lane mixes its pictures from; 0: none"
    )
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay of the averaged weights")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="of the convolutions; auto: bf16 on GPUs that have it, else fp32",
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="auto is CUDA on a cluster; on a laptop what there is"
    )
    seed: int = Field(default=0, ge=0, description="of everything that is drawn")
    deadline: str | None = Field(
        default=None, description="stop and save after, for example 5h or 30m; resumable"
    )
    save_every: int = Field(default=5000, ge=1, description="steps between checkpoints")
    keep: int = Field(default=3, ge=2, description="checkpoints that are kept")
    log_every: int = Field(default=100, ge=1, description="steps between lines of metrics")
    export: Literal["fp32", "fp16"] = Field(
        default="fp32", description="of the weights in model.safetensors; fp16 halves the file"
    )
    licence: str = Field(default="unknown", description="of the weights, noted in the export")
    crops: Crops = Crops()
    degradation: Degradation = Degradation()
    losses: Losses = Losses()
    adam: Adam = Adam()
    validation: Validation = Validation()
    workers: TrainWorkers = TrainWorkers()
    scan: Scan = Scan()
    storage: StorageSection = StorageSection()

    @property
    def lanes(self) -> int:
        """In a step, of all workers together."""
        return self.batch // self.lane

    def recipe(self) -> str:
        """What the weights came of, as YAML: for their metadata, which others read.

        Without places, which are nobody's business, and what changes no result.
        """
        values = self.model_dump(mode="json", exclude={*_APART, "losses"})
        values["losses"] = self.losses.model_dump(mode="json", exclude={"vgg19"})
        for name in ("start", "start_discriminator"):
            values[name] = values[name] and values[name].partition("?")[0].rpartition("/")[2]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @field_validator("deadline")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds(value)
        return value

    @model_validator(mode="after")
    def _whole_lanes(self) -> "TrainConfig":
        if self.batch % self.lane:
            raise ValueError(f"batch {self.batch} is no multiple of lane {self.lane}")
        if self.lanes % self.workers.count:
            raise ValueError(
                f"{self.lanes} lanes (batch {self.batch} / lane {self.lane}) cannot be shared "
                f"evenly by {self.workers.count} workers (workers.count)"
            )
        if self.pool % self.lane:
            raise ValueError(f"pool {self.pool} is no multiple of lane {self.lane}")
        if self.validation.pairs and not self.validation.images:
            raise ValueError(
                "validation.pairs are the inputs of validation.images, which is missing"
            )
        if self.crops.target > self.crops.side:
            raise ValueError(
                f"crops.target {self.crops.target} is larger than crops.side {self.crops.side}"
            )
        return self


# Of a training, what is no part of its recipe.
_APART = {
    *("config", "images", "root", "pairs", "output", "scan", "storage", "validation", "licence"),
    *("device", "deadline", "save_every", "keep", "log_every", "workers"),
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(duration: str) -> float:
    """Of a duration such as 90s, 30m, 5h or 1.5d. Raises ValueError for anything else."""
    number, unit = duration[:-1], duration[-1:]
    try:
        value = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"a duration is a number above 0 with s, m, h or d, not {duration!r}")
    return value
