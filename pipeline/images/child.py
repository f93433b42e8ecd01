"""The process that pictures are decoded in: `python -m pipeline.images.child`, for `sandbox`.

It answers requests on its one pipe, a socket given as standard input, until that closes. What a
decoder may do to it, it does to nobody else: it has no credentials, no files of its parent's, a
limit on its memory, and dies when its parent dies.
"""

import ctypes
import importlib
import math
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError, ItemError
from pipeline.images import wire
from pipeline.images.image import Image
from pipeline.images.wire import Head

NO_MEMORY = 87
"""The exit status of a process that its limit refused memory."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ends when the pipe is closed; the parent's process id is the only argument."""
    _die_with(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whether to stop is the worker's to decide
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as pipe, pipe.makefile("rb") as requests:
        settings, _ = _next(requests)
        limits = Limits.model_validate(settings["limits"])
        policy = Policy.model_validate(settings["policy"])
        decoder = _Decoder(importlib.import_module(settings["decoder"]), limits, policy)
        _limit(limits.decode_bytes)
        _silence()
        wire.send(pipe, {"ready": os.getpid()})
        try:
            while True:
                _answer(pipe, decoder, *_next(requests))
        except EOFError:
            return  # the parent closed the pipe
        except MemoryError:
            os._exit(NO_MEMORY)


@dataclass(frozen=True, slots=True)
class _Decoder:
    """The module that decodes, and what it is to keep to."""

    module: Any
    limits: Limits
    policy: Policy

    def __call__(self, request: Head, data: bytes) -> tuple[Head, bytes | memoryview]:
        """Raises ItemError or MemoryError."""
        try:
            if request["do"] == "probe_pages":
                return {"pages": self.module.probe_pages(data, self.limits, self.policy)}, b""
            read = self.module.probe if request["do"] == "probe" else self.module.decode
            found = read(data, self.limits, self.policy, page=request["page"])
        except (ItemError, MemoryError):
            raise
        # The codec boundary once more: what a decoder raises is the file's fault, and one row.
        except Exception as error:
            raise DecodeError("decode_failed", f"{type(error).__name__}: {error}") from error
        return wire.head_of_image(found) if isinstance(found, Image) else ({"facts": found}, b"")


def _answer(pipe: socket.socket, decoder: _Decoder, request: Head, data: bytes) -> None:
    """Answers one request. Raises MemoryError, after which the process is no good."""
    _limit_time(decoder.limits.decode_s)
    try:
        head, body = decoder(request, data)
    except ItemError as error:
        if error.code == "decode_memory":
            raise MemoryError from error
        head, body = wire.head_of_error(error), b""
    wire.send(pipe, head, body)


def _next(requests: BinaryIO) -> tuple[Head, bytes]:
    frame = requests.read(wire.FRAME.size)
    if len(frame) < wire.FRAME.size:
        raise EOFError
    head, body = wire.FRAME.unpack(frame)
    return wire.read(requests.read(head)), requests.read(body)


def _die_with(parent: int) -> None:
    """Even a decoder that never looks at the pipe again ends with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()  # it died before it could have been noticed


def _limit(decode_bytes: int) -> None:
    """Memory beside what the process has taken already, and nothing written to any disk."""
    _cap(resource.RLIMIT_CORE, 0)
    _cap(resource.RLIMIT_FSIZE, 0)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _cap(resource.RLIMIT_AS, taken + decode_bytes)
        # Where the node runs out of memory the kernel takes this process first, not its parent.
        with suppress(OSError):  # a container may forbid it
            Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_time(decode_s: float) -> None:
    """A decode's processor time, whatever the parent does: beyond it the kernel ends us."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + decode_s) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _cap(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _silence() -> None:
    """Codecs write what they think of a file to standard error, some of them without end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    main()
