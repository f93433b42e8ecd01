#!/usr/bin/env python3
"""PSNR and SSIM of a generator on pictures whose targets are known: see --help."""

import sys
from pathlib import Path

# The repository's root in place of jobs/: on a cluster nothing of ours is installed.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline import cli  # noqa: E402

if __name__ == "__main__":
    sys.exit(cli.run("evaluate", sys.argv[1:]))
