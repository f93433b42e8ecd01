"""The commands: what `jobs/*.py` and the console command `remaster` call.

Exit codes: 0 all done · 1 crash · 2 usage or configuration, nothing started · 3 finished, some items
failed · 5 stopped early, resumable.
"""

import sys
from collections.abc import Callable, Sequence

from pipeline import config
from pipeline.errors import ConfigError, FatalError
from pipeline.report.summary import CRASHED, USAGE


def upscale(arguments: Sequence[str]) -> int:
    """`jobs/upscale.py`: one run. Returns the exit code."""
    asked = config.parse(arguments)
    # Ray and torch take seconds to import: a wrong flag need not wait for them.
    from pipeline import flow

    return flow.run(asked)


def models(arguments: Sequence[str]) -> int:
    """`jobs/models.py list | fetch [NAME...] | inspect FILE...`. Returns the exit code."""
    from pipeline.models import command

    return command.run(arguments)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"upscale": upscale, "models": models}


def run(command: str, arguments: Sequence[str]) -> int:
    """One command with its arguments; what it raises on purpose becomes one line on stderr."""
    try:
        return _COMMANDS[command](arguments)
    except ConfigError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return USAGE
    except FatalError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return CRASHED


def main() -> None:
    """The console command `remaster COMMAND ...`."""
    name, *rest = sys.argv[1:] or [""]
    if name not in _COMMANDS:
        print(f"usage: remaster {'|'.join(_COMMANDS)} ...; each has --help", file=sys.stderr)
        sys.exit(USAGE)
    sys.exit(run(name, rest))
