"""A decoder that does to its process what files do to codecs: the file says what."""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import DecodeError
from pipeline.images.image import Facts, Image, Metadata

FACTS = Facts("tiff", "RGB;16", 16, 3, 5, 4, 3, orientation=6)
METADATA = Metadata(icc_profile=bytes(range(256)), exif=b"II*\0", dpi=(300.0, 72.5))
WARNINGS = ("icc_untagged", "exif_dropped")

_seen = []


def probe(data, limits, policy, *, page=0):
    decode(data, limits, policy)
    return FACTS


def probe_pages(data, limits, policy):
    return (probe(data, limits, policy),) * 3


def places(data):
    return ()


def decode(data, limits, policy, *, page=0):
    what, _, rest = data.partition(b":")
    found = globals()[what.decode()](rest)
    _seen.append(what)
    if found is None:
        found = np.full((5, 4, 3), page, np.uint16)
    width, height, channels = found.shape  # as stored: it lies on its side
    facts = replace(FACTS, width=width, height=height, channels=channels)
    return Image(found, facts, METADATA, WARNINGS)


def good(rest):
    pass


def large(rest):
    return np.arange(int(rest), dtype=np.uint16).reshape(-1, 1, 1)


def columns(rest):
    """A view: its samples do not lie in the order of the picture."""
    return np.arange(60, dtype=np.uint16).reshape(3, 5, 4).transpose(2, 1, 0)


def segfault(rest):
    ctypes.string_at(0)


def abort(rest):
    os.abort()


def leave(rest):
    os._exit(int(rest))


def system_exit(rest):
    sys.exit(3)


def killed(rest):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(rest):
    """Within C code that holds the interpreter's lock."""
    ctypes.PyDLL(None).sleep(1000)


def slow(rest):
    time.sleep(float(rest))


def closes(rest):
    """Its pipe, and lives on."""
    os.closerange(3, 100)
    time.sleep(1000)


def eat(rest):
    taken = []
    while True:
        taken.append(b"x" * 2**20)


def flood(rest):
    for descriptor in (1, 2):
        for _ in range(100):
            os.write(descriptor, b"warning: this file is odd\n" * 4000)


def raises(rest):
    raise RuntimeError("a codec's own")


def refuses(rest):
    raise DecodeError("decode_failed", "as a decoder says it: ü")


def garbage(rest):
    """On the pipe, instead of an answer."""
    for descriptor in range(3, 100):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as pipe:
                pipe.sendall(rest)
        except OSError:
            continue
    os._exit(0)


def poisons(rest):
    """Nothing yet: the file after it dies of it."""


def victim(rest):
    if b"poisons" in _seen:
        os.abort()


def tells(rest):
    """Where it is, as a message."""
    links = {
        name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")[:-1]
    }
    found = {
        "pid": os.getpid(),
        "descriptors": links,
        "environment": dict(os.environ),
        "modules": [name for name in sys.modules if "." not in name],
        "limits": {
            name: resource.getrlimit(getattr(resource, name))
            for name in dir(resource)
            if name.startswith("RLIMIT_")
        },
        "no_new_privileges": next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("NoNewPrivs:")
        ),
        "processor_s": resource.getrlimit(resource.RLIMIT_CPU)[0],
        "ignored": [
            signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)
        ],
    }
    raise DecodeError("decode_failed", json.dumps(found))
