#!/usr/bin/env python3
"""List the results that agree least with their sources: see --help and README.md."""

import sys
from pathlib import Path

# The repository's root in place of jobs/: on a cluster nothing of ours is installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import cli  # noqa: E402

if __name__ == "__main__":
    sys.exit(cli.run("report", sys.argv[1:]))
