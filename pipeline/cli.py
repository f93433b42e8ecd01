"""The commands: what `jobs/*.py` and the console command `remaster` call.

Exit codes: 0 all done · 1 crash · 2 usage or configuration, nothing started · 3 finished, some
items failed · 5 stopped early, resumable.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError, FatalError
from pipeline.report.summary import CRASHED, DONE, STOPPED, USAGE
from pipeline.storage import Store
from pipeline.uris import redact


def upscale(arguments: Sequence[str]) -> int:
    """`jobs/upscale.py`: one run. Returns the exit code."""
    asked = UpscaleConfig.parse(arguments)
    # Ray takes seconds to import: a wrong flag need not wait for them.
    from pipeline import flow

    code = flow.run(asked)
    gc.freeze()  # else the interpreter's last collections look through all of Ray, for nothing
    return code


def report(arguments: Sequence[str]) -> int:
    """`jobs/report.py`: the outliers of an output. Returns the exit code."""
    from pipeline.report import outliers
    from pipeline.report.config import ReportConfig

    return outliers.run(ReportConfig.parse(arguments))


def train(arguments: Sequence[str]) -> int:
    """`jobs/train.py`: a generator, from pictures. Returns the exit code."""
    from pipeline.training.config import TrainConfig

    asked = TrainConfig.parse(arguments)
    try:
        from pipeline.training import loop
    except ModuleNotFoundError as error:
        remedy = "pip install 'remaster-ray[train]'"
        raise ConfigError(f"training needs {error.name} besides: {remedy}") from error

    return loop.run(asked)


def models(arguments: Sequence[str]) -> int:
    """`jobs/models.py`: the zoo, and what a checkpoint holds. Returns the exit code."""
    about = "The released generators, and what a checkpoint holds."
    parser = argparse.ArgumentParser("models.py", description=about)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="the released generators")
    fetch = actions.add_parser("fetch", help="bring them to this node's cache, verified")
    fetch.add_argument("name", nargs="+")
    inspect = actions.add_parser("inspect", help="what a checkpoint holds: a file, a URI or a name")
    inspect.add_argument("file")
    asked = parser.parse_args(arguments)
    from pipeline.models import checkpoints, zoo

    if asked.action == "list":
        print(zoo.table())
    elif asked.action == "fetch":
        for name in asked.name:
            print("\n".join(map(str, _fetched(name))))
    else:
        file = str(_fetched(asked.file)[0]) if asked.file in zoo.ZOO else asked.file
        found = checkpoints.describe(checkpoints.load(_read(file)))
        print("\n".join(f"{name:16} {value}" for name, value in found.items()))
    return DONE


def benchmark(arguments: Sequence[str]) -> int:
    """`jobs/benchmark.py`: what a machine yields. Returns the exit code."""
    from pipeline.benchmark import command

    return command.main(arguments)


def evaluate(arguments: Sequence[str]) -> int:
    """`jobs/evaluate.py`: how good a generator is. Returns the exit code."""
    from pipeline.training import evaluate as evaluation

    return evaluation.main(arguments)


def _fetched(name: str) -> list[Path]:
    from pipeline.models import zoo

    spec = zoo.resolve(name, store=Store(), models_uri=os.environ.get("REMASTER_MODELS"))
    return zoo.materialise(spec, store=Store(), cache_dir=zoo.default_cache_dir())


def _read(file: str) -> bytes:
    try:
        return Store().read(file)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or file}: {error.strerror}") from error


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "upscale": upscale,
    "report": report,
    "train": train,
    "evaluate": evaluate,
    "models": models,
    "benchmark": benchmark,
}


def run(command: str, arguments: Sequence[str]) -> int:
    """One command with its arguments; what it raises on purpose becomes one line on stderr."""
    try:
        return _COMMANDS[command](arguments)
    except ConfigError as error:
        print(f"{command}: {redact(str(error))}", file=sys.stderr)
        return USAGE
    except (FatalError, OSError) as error:  # OSError: a store gave out in the middle
        print(f"{command}: {redact(str(error))}", file=sys.stderr)
        return CRASHED
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return STOPPED


def main() -> None:
    """The console command `remaster COMMAND ...`."""
    name, *rest = sys.argv[1:] or [""]
    if name not in _COMMANDS:
        print(f"usage: remaster {'|'.join(_COMMANDS)} ...; each has --help", file=sys.stderr)
        sys.exit(USAGE)
    sys.exit(run(name, rest))
