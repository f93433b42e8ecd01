"""How good a generator is: `jobs/evaluate.py`, on pictures whose targets are known.

The generator runs through the engine that upscales archives. Beside it stands bicubic enlargement
of the same input, the yardstick that anyone has.
"""

import argparse
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError, FatalError, ItemError
from pipeline.images.image import Pixels
from pipeline.models import zoo
from pipeline.models.zoo import ModelSpec
from pipeline.report.summary import DONE, SOME_FAILED
from pipeline.session import auto_precision
from pipeline.storage import Store
from pipeline.training import pairs, quality
from pipeline.training.pairs import Degrading, Pair
from pipeline.training.quality import Quality
from pipeline.training.sheet import most_detailed, resize, sheet
from pipeline.uris import redact

if TYPE_CHECKING:
    from pipeline.engine.upscaler import Upscaler

_ABOUT = "PSNR and SSIM of a generator on pictures whose targets are known, beside bicubic."
_CONVENTIONS = """\
Pairs are told by the names of their files: baby.png, and baby.png, babyx4.png or baby_x4.png.
Below --pairs, targets are in a folder such as GTmod12, HR or target, inputs in one such as LRbicx4,
LR, lq or input.

PSNR and SSIM are in mmagic's convention (RGB, all pixels), PSNR-Y and SSIM-Y in that of most papers
(luma of BT.601, without a border as wide as the scale). So published figures can be checked by
anyone who has weights and pictures: on Set5 (GTmod12 and LRbicx4), in RGB, RealESRNet_x4plus has
28.03 dB and 0.8236, RealESRGAN_x4plus 26.22 dB and 0.7655 (mmagic's model zoo).
"""

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the picture, without suffix
        pa.field("method", pa.string(), nullable=False),  # model or bicubic
        pa.field("psnr", pa.float64(), nullable=False),  # dB, RGB, all pixels; may be infinite
        pa.field("ssim", pa.float64(), nullable=False),
        pa.field("psnr_y", pa.float64(), nullable=False),  # dB, Y, border as wide as the scale
        pa.field("ssim_y", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # of the target as compared, pixels
        pa.field("height", pa.int32(), nullable=False),
        pa.field("target_uri", pa.string(), nullable=False),
        pa.field("input_uri", pa.string()),  # null: made of the target
        pa.field("degrade", pa.string()),  # bicubic or second_order, with its seed; null: given
        pa.field("seed", pa.int64()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("scale", pa.int32(), nullable=False),
        pa.field("precision", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
    ]
)
"""Of `--output`: a row for each picture and method."""

_METHODS = ("model", "bicubic")
_CROP = 128  # target pixels a side, on the sheet
_COLUMNS = ("bicubic enlargement", "model", "target")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A generator on its device, and what is to be said of it."""

    spec: ModelSpec
    upscaler: "Upscaler"
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one picture."""

    pair: Pair
    size: tuple[int, int]
    """Width and height of the target as compared."""
    qualities: tuple[Quality, ...]
    """In the order of `_METHODS`."""
    crops: tuple[Pixels, ...]
    """The most detailed square of each of `_COLUMNS`."""


def main(arguments: Sequence[str]) -> int:
    """`jobs/evaluate.py`. Returns the exit code."""
    asked = parse(arguments)
    store = Store()
    loaded = _load(asked, store)
    chosen = _chosen(asked, store, loaded.upscaler.scale)
    print(f"model:   {loaded.spec.name}, {loaded.precision} on {loaded.device}")
    width = max(len(pair.name) for pair in chosen)
    print(f"\n{'':{width}}  {'':8}    PSNR    SSIM  PSNR-Y  SSIM-Y")
    results, refused = list[Result](), list[ConfigError]()
    for index, pair in enumerate(chosen):
        try:
            results.append(_evaluate(pair, asked, store, loaded, index))
        except ConfigError as error:  # this picture's: the others can be compared
            refused.append(error)
            print(f"{pair.name:{width}}  {redact(str(error))}", flush=True)
        else:
            _print(pair.name, results[-1].qualities, width)
    if not results:
        raise refused[0]
    model, bicubic = zip(*(result.qualities for result in results), strict=True)
    print()
    _print("mean", (quality.mean(model), quality.mean(bicubic)), width)
    if asked.output:
        table = _parquet(results, asked, loaded)
        store.publish(asked.output, table, content_type="application/vnd.apache.parquet")
    if asked.sheet:
        rows = [(result.pair.name, result.crops) for result in results]
        store.publish(asked.sheet, sheet(rows, _COLUMNS), content_type="image/png")
    if refused:
        print(f"{len(refused)} of {len(chosen)} pictures are in no figure above")
    return SOME_FAILED if refused else DONE


# ---------------------------------------------------------------------------- what is asked for


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for; wrong flags and `--help` exit. Raises ConfigError for what cannot be."""
    parser = argparse.ArgumentParser(
        "evaluate.py",
        description=_ABOUT,
        epilog=_CONVENTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=UpscaleConfig.model_fields["model"].default, help="as in upscale.py")
    pictures = parser.add_mutually_exclusive_group(required=True)
    pictures.add_argument("--pairs", help="folder of a test set: one of targets, one of inputs")
    pictures.add_argument("--targets", help="folder of targets, whose inputs are in --inputs")
    pictures.add_argument("--images", help="folder of targets, whose inputs are made of them")
    add("--inputs", help="folder of inputs, for --targets")
    add("--degrade", choices=get_args(Degrading), help="how, for --images; default bicubic")
    add("--seed", type=_count, default=0, help="of second_order; default 0")
    add("--limit", type=_count, help="pictures, at most")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: CUDA where it is")
    add(
        "--precision",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="fp32",
        help="of the convolutions; default fp32, as published figures are; auto: as upscale.py",
    )
    add("--output", metavar="FILE.parquet", help="a row for each picture and method")
    add("--sheet", metavar="FILE.png", help="input enlarged, result and target beside each other")
    return _complete(parser.parse_args(arguments))


def _complete(asked: argparse.Namespace) -> argparse.Namespace:
    if bool(asked.targets) != bool(asked.inputs):
        raise ConfigError("--targets and --inputs go together: folders with files of equal names")
    if asked.degrade and not asked.images:
        raise ConfigError("--degrade makes inputs for --images; those of a test set are given")
    for flag, file, suffix in (
        ("--output", asked.output, ".parquet"),
        ("--sheet", asked.sheet, ".png"),
    ):
        if file and not file.lower().endswith(suffix):  # hours before it would be written
            raise ConfigError(f"{flag} is a file that ends in {suffix}, not {redact(file)}")
    if asked.limit == 0:
        raise ConfigError("--limit 0 leaves no picture")
    asked.degrade = (asked.degrade or "bicubic") if asked.images else None
    return asked


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _load(asked: argparse.Namespace, store: Store) -> Loaded:
    """Raises ConfigError where the model or the device cannot be had."""
    # Here and not above: torch takes seconds to import, a wrong flag need not wait for them.
    import torch

    from pipeline.engine.upscaler import Upscaler

    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device on this machine (--device cpu)")
    device = "cuda" if asked.device != "cpu" and torch.cuda.is_available() else "cpu"
    precision = auto_precision(device) if asked.precision == "auto" else asked.precision
    spec = zoo.resolve(asked.model, store=store, models_uri=os.environ.get("REMASTER_MODELS"))
    network = zoo.load_generator(spec, store=store, cache_dir=zoo.default_cache_dir())
    return Loaded(spec, Upscaler(network, device=device, precision=precision), device, precision)


def _chosen(asked: argparse.Namespace, store: Store, scale: int) -> list[Pair]:
    """The pairs; says where they are. Raises ConfigError without any."""
    if asked.images:
        print(f"targets: {redact(asked.images)}\ninputs:  of these, {asked.degrade} x1/{scale}")
        return pairs.alone(store, asked.images)[: asked.limit]
    targets, inputs = asked.targets, asked.inputs
    if asked.pairs:
        targets, inputs = pairs.in_set(store, asked.pairs, scale)
    print(f"targets: {redact(targets)}\ninputs:  {redact(inputs)}")
    return pairs.matched(store, targets, inputs, scale)[: asked.limit]


# ----------------------------------------------------------------------------------- one picture


def _evaluate(
    pair: Pair, asked: argparse.Namespace, store: Store, loaded: Loaded, index: int
) -> Result:
    """Raises ConfigError for pictures that cannot be compared, FatalError for a failed network."""
    scale = loaded.upscaler.scale
    rng = np.random.default_rng([asked.seed, index])
    given, target = pairs.load(pair, store, scale=scale, how=asked.degrade, rng=rng)
    height, width = target.shape[:2]
    try:
        made = loaded.upscaler(given).pixels
    except ItemError as error:
        raise FatalError(f"{redact(pair.input or pair.target)}: {error}") from error
    enlarged = resize(given, width, height)
    qualities = (quality.compare(each, target, border=scale) for each in (made, enlarged))
    square = most_detailed(target, _CROP)
    crops = (each[square].copy() for each in (enlarged, made, target))  # not all of the pictures
    return Result(pair, (width, height), tuple(qualities), tuple(crops))


# --------------------------------------------------------------------------------- what is left


def _print(name: str, qualities: Sequence[Quality], width: int) -> None:
    for method, found in zip(_METHODS, qualities, strict=True):
        rgb, y = f"{found.psnr:7.3f} {found.ssim:7.4f}", f"{found.psnr_y:7.3f} {found.ssim_y:7.4f}"
        print(f"{name:{width}}  {method:8} {rgb} {y}", flush=True)
        name = ""


def _parquet(results: Sequence[Result], asked: argparse.Namespace, loaded: Loaded) -> bytes:
    """A file of `SCHEMA`."""
    rows = [
        {
            "name": result.pair.name,
            "method": method,
            **asdict(found),
            "width": result.size[0],
            "height": result.size[1],
            "target_uri": redact(result.pair.target),
            "input_uri": result.pair.input and redact(result.pair.input),
            "degrade": asked.degrade,
            "seed": asked.seed if asked.degrade else None,
            "model": loaded.spec.name,
            "model_sha256": loaded.spec.sha256,
            "scale": loaded.upscaler.scale,
            "precision": loaded.precision,
            "device": loaded.device,
        }
        for result in results
        for method, found in zip(_METHODS, result.qualities, strict=True)
    ]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd")
    return file.getvalue()
