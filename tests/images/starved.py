"""A decoder whose process does not come up at first: a file in TMPDIR says how often, and how."""

import os
import resource
import signal
from pathlib import Path

from hostile import decode, places, probe, probe_pages

__all__ = ["decode", "places", "probe", "probe_pages"]


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def _refused():
    """By a limit of its own: what a node without memory looks like from inside."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken, taken))
    bytearray(2**28)


def _broken():
    raise ImportError("no module named codec")


_plan = Path(os.environ["TMPDIR"], "starts")
_ways = _plan.read_text().split()
_plan.write_text(" ".join(_ways[1:]))
if _ways:
    {"killed": _killed, "refused": _refused, "broken": _broken}[_ways[0]]()
