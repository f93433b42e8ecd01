"""How good the averaged generator is, on pictures that it does not learn from."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import torch

from pipeline.images.image import Pixels
from pipeline.models.layouts import Generator, Shape
from pipeline.storage import Store
from pipeline.training import pictures, quality
from pipeline.training.config import TrainConfig
from pipeline.training.degradation import degraded, to_bchw, to_pixels
from pipeline.training.pictures import File, Pictures
from pipeline.training.quality import WINDOW, Quality
from pipeline.training.sheet import resize, sheet

_DEGRADED = 0x76616C  # apart from what is drawn for training
_SHARE = 10  # at most every tenth picture is kept from the training


@dataclass(frozen=True, slots=True)
class Case:
    """A picture to look at: uint8 (H, W, 3) target, its input, and that enlarged as usual."""

    name: str
    target: Pixels
    source: Pixels
    enlarged: Pixels


def divide(found: Pictures, config: TrainConfig) -> tuple[Pictures, Pictures]:
    """What is learnt from, and what is looked at: `validation.images`, else some of them all.

    Evenly spread: lists are in the order of their names, one kind of pictures behind the other.

    Raises ConfigError when there is nothing at `validation.images`.
    """
    asked = config.validation
    if asked.images is not None:
        other = {"images": asked.images, "pairs": asked.pairs, "root": None}
        others = pictures.find(config.model_copy(update=other))
        return found, _taken(others, range(min(asked.count, len(others))))
    count = min(asked.count, len(found) // _SHARE)
    chosen = {number * len(found) // count for number in range(count)}
    rest = [number for number in range(len(found)) if number not in chosen]
    return _taken(found, rest), _taken(found, sorted(chosen))


def cases(chosen: Pictures, config: TrainConfig, shape: Shape) -> list[Case]:
    """The middle of each picture, degraded the same way in every validation.

    shape: of the generator that will enlarge them.
    Pictures that cannot be read, that are too small to be compared, and pairs whose sizes do not
    fit the scale are left out, as training skips them.
    """
    scale = shape.scale
    store = Store(config.storage.source.fsspec_options())
    inputs = chosen.inputs or [None] * len(chosen)
    made = list[Case]()
    for index, (file, paired) in enumerate(zip(chosen.targets, inputs, strict=True)):
        try:
            target = pictures.read_rgb(file, store)
            source = None if paired is None else pictures.read_rgb(paired, store)
        except pictures.UnusableError:
            continue
        size = target.shape[:2]
        if source is not None and size != tuple(n * scale for n in source.shape[:2]):
            continue
        rows, columns = (_middle(n, config.validation.side, shape) for n in size)
        if min(rows.stop - rows.start, columns.stop - columns.start) * scale < WINDOW + 2 * scale:
            continue
        wide = tuple(slice(part.start * scale, part.stop * scale) for part in (rows, columns))
        target = np.ascontiguousarray(target[wide])
        rng = np.random.default_rng([config.seed, _DEGRADED, index])
        low = (
            source[rows, columns]
            if source is not None
            else degraded(target, config.degradation, rng, scale=scale)
        )
        usual = resize(low, target.shape[1], target.shape[0])
        made.append(Case(_name(file), target, low, usual))
    return made


@torch.inference_mode()
def results(generator: Generator, cases: Sequence[Case]) -> list[Pixels]:
    """What the network makes of them: uint8 (H, W, 3)."""
    device = next(generator.parameters()).device
    return [to_pixels(generator(to_bchw(case.source).to(device))) for case in cases]


def measure(cases: Sequence[Case], made: Sequence[Pixels], *, scale: int) -> dict[str, float]:
    """Means over the cases, and by how much they are above those of bicubic enlargement."""
    pairs = zip(cases, made, strict=True)
    ours = quality.mean([quality.compare(y, case.target, border=scale) for case, y in pairs])
    usual = quality.mean([quality.compare(c.enlarged, c.target, border=scale) for c in cases])
    gains = (a - b for a, b in zip(astuple(ours), astuple(usual), strict=True))
    names = [field.name for field in fields(Quality)]
    return dict(zip(names, astuple(ours), strict=True)) | {
        f"{name}_gain": gain for name, gain in zip(names, gains, strict=True)
    }


def sample_sheet(cases: Sequence[Case], made: Sequence[Pixels]) -> bytes:
    """A PNG to look at: a row for each picture."""
    pairs = zip(cases, made, strict=True)
    rows = [(case.name, [case.enlarged, ours, case.target]) for case, ours in pairs]
    return sheet(rows, ["bicubic", "ours", "target"])


def _taken(found: Pictures, numbers: Iterable[int]) -> Pictures:
    numbers = list(numbers)
    inputs = found.inputs
    return Pictures(
        targets=tuple(found.targets[number] for number in numbers),
        inputs=None if inputs is None else tuple(inputs[number] for number in numbers),
    )


def _middle(length: int, side: int, shape: Shape) -> slice:
    """Of the input, `side` target pixels long at the most, as many as the generator takes."""
    taken = min(length, side) // (shape.scale * shape.multiple) * shape.multiple
    start = (length // shape.scale - taken) // 2
    return slice(start, start + taken)


def _name(file: File) -> str:
    return file.uri.rpartition("/")[2]
