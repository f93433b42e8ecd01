"""The flags of `jobs/benchmark.py`: one contender alone, or all of them in turns."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from pipeline.benchmark import comparison, pictures
from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError
from pipeline.report.summary import DONE, SOME_FAILED

_MODEL = UpscaleConfig.model_fields["model"].default


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for. Raises ConfigError with one sentence; `--help` exits with 0."""
    about = "Compare the plain loop, tiles, the engine alone and a whole run on the same pictures."
    parser = _Parser("benchmark.py", description=about)
    add = parser.add_argument
    add("--model", default=_MODEL, help="as in upscale.py; default %(default)s")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: CUDA where it is")
    add(
        "--precision",
        nargs="+",
        choices=("fp32", "fp16", "bf16"),
        help="of engine and run; default what auto means there, and fp32",
    )
    add(
        "--size",
        nargs="+",
        type=_size,
        default=["768x512"],
        help="of drawn pictures, in pixels; 64..256 stands for sides between these",
    )
    add("--count", type=_whole, default=8, help="drawn pictures of each size; default 8")
    add("--pictures", "--manifest", type=Path, help="a folder of real pictures instead")
    add(
        "--contenders",
        nargs="+",
        choices=comparison.CONTENDERS,
        default=comparison.CONTENDERS,
        help="who takes part; default all",
    )
    add("--repeats", type=_whole, default=3, help="rounds, each contender once; default 3")
    add("--price-per-hour", "--price_per_hour", type=_price, help="of the machine, any currency")
    add("--output", type=Path, help="folder for results; of a comparison, for temporary files")
    add("--json", type=Path, help="file for everything that was measured")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--plain",
        action="store_const",
        const="plain",
        dest="only",
        help="the plain loop alone, over --manifest and with PNG files in --output: the yardstick",
    )
    alone.add_argument(
        "--train",
        action="store_const",
        const="train",
        dest="only",
        help="steps of a training of the model: --count pictures each, targets of --size, "
        "--repeats timed steps of each stage",
    )
    alone.add_argument(
        "--only",
        choices=("plain", "tiles", "engine", "survey", "train"),
        help="one part alone, as a comparison starts it",
    )
    return _complete(parser.parse_args(arguments))


def _complete(asked: argparse.Namespace) -> argparse.Namespace:
    if asked.pictures and not asked.pictures.is_dir():
        raise ConfigError(f"no folder {asked.pictures} (--manifest)")
    if asked.json and not asked.json.parent.is_dir():  # hours before it would be written
        raise ConfigError(f"no folder {asked.json.parent} (--json)")
    if asked.only in ("plain", "tiles", "engine") and not asked.pictures:
        raise ConfigError(f"{asked.only} alone needs a folder of pictures (--manifest)")
    if asked.only in ("plain", "tiles") and not asked.output:
        raise ConfigError(f"{asked.only} alone needs a folder for its results (--output)")
    return asked


def _size(text: str) -> str:
    for sign in ("x", ".."):
        sides = text.split(sign)
        if len(sides) == 2 and all(side.isdecimal() for side in sides):
            first, second = map(int, sides)
            if first and second and (sign == "x" or first <= second):
                return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither like 768x512 nor like 64..256")


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no price")
    return value


def main(arguments: Sequence[str]) -> int:
    """`jobs/benchmark.py`. Returns the exit code: 3 when a contender failed."""
    asked = parse(arguments)
    made = _alone(asked) if asked.only else comparison.compare(asked)
    if asked.json:
        asked.json.write_text(json.dumps(made, indent=1) + "\n")
    return SOME_FAILED if any(row["error"] for row in made.get("rows", ())) else DONE


def _alone(asked: argparse.Namespace) -> dict[str, Any]:
    """What this process measured."""
    sources = pictures.found(asked.pictures) if asked.pictures else []
    from pipeline.benchmark import contender  # brings torch: what is wrong need not wait for it

    device = contender.use(asked.device)
    network = contender.load(asked.model)
    if asked.only == "survey":
        from pipeline.benchmark.survey import survey

        return survey(network.shape, device=device, precisions=asked.precision or [])
    if asked.only == "train":
        from pipeline.benchmark import training

        return training.measure(
            network,
            device=device,
            asked=asked.precision[0] if asked.precision else None,
            lane=asked.count,
            side=int(asked.size[0].partition("x")[0]),
            steps=asked.repeats,
        )
    if asked.only == "engine":
        precision = (asked.precision or ["fp32"])[0]
        work = contender.engine(network, sources, device=device, precision=precision)
    else:
        targets = pictures.targets(sources, asked.pictures, asked.output)
        tile = contender.TILE if asked.only == "tiles" else None
        work = contender.plain(network, sources, targets, device=device, tile=tile)
    print(f"{work.pictures} pictures in {work.work_s:.2f} s, {work.device_s:.2f} in the network")
    return asdict(work)
