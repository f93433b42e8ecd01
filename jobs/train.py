#!/usr/bin/env python3
"""Train a generator: see --help, configs/train/, and README.md for what comes out."""

import sys
from pathlib import Path

# The repository's root in place of jobs/: on a cluster nothing of ours is installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import cli  # noqa: E402

if __name__ == "__main__":
    sys.exit(cli.run("train", sys.argv[1:]))
