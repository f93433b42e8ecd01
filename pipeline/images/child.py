"""The process that pictures are decoded in: `python -m pipeline.images.child`, for `sandbox`.

It answers requests on its one pipe, a socket given as standard input, until that closes. Isolated
are: a crash; a hang, by a limit on processor time beside the parent's clock; memory, by a limit of
its own; what is written, as no file may grow; further processes and threads (root may have them);
and rights, of which a program that is executed gains none. It inherits no open file and no
credentials in its environment, and dies when its parent dies.

Not isolated are the user, the file system and the network: there are no namespaces and no filter of
system calls. Code that a file smuggles into a decoder could read and remove what its user may, read
the environment of that user's other processes, and connect to what the host may connect to. Where
that matters, a container without such files and a policy of the network keep it from them.
"""

import ctypes
import importlib
import math
import mmap
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError, ItemError
from pipeline.images import wire
from pipeline.images.ifd import Data, Place
from pipeline.images.wire import Head

NO_MEMORY = 87
"""The exit status of a process that its limit refused memory."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_MOST_FILES = 64  # libraries that codecs load late, and what a file is handed over by


def main() -> None:
    """Ends when the pipe is closed; the parent's process id is the only argument."""
    _die_with(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whether to stop is the worker's to decide
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as pipe:
        settings, _ = _next(pipe)
        limits = Limits.model_validate(settings["limits"])
        policy = Policy.model_validate(settings["policy"])
        decoder = _Decoder(importlib.import_module(settings["decoder"]), limits, policy)
        _limit(limits.decode_bytes)
        _silence()
        wire.send(pipe, {"ready": os.getpid()})
        try:
            while True:
                request, data = _next(pipe)
                _answer(pipe, decoder, request, data)
                if isinstance(data, mmap.mmap):
                    # Else it waits for the collector, in a circle of tifffile's.
                    with suppress(BufferError):  # what still looks at it ends it
                        data.close()
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

    def __call__(self, request: Head, data: Data) -> tuple[Head, bytes | memoryview]:
        """Raises ItemError or MemoryError."""
        try:
            if request["do"] == "probe_pages":
                pages = self.module.probe_pages(data, self.limits, self.policy)
                places = [place.at for place in self.module.places(data)]
                return {"pages": pages, "places": places}, b""
            settings = {"page": request["page"]}
            if request["do"] == "probe":
                return {"facts": self.module.probe(data, self.limits, self.policy, **settings)}, b""
            if request["place"]:
                settings["place"] = Place(**request["place"])
            found = self.module.decode(data, self.limits, self.policy, **settings)
        except (ItemError, MemoryError):
            raise
        # The codec boundary once more: what a decoder raises is the file's fault, and one row.
        except Exception as error:
            raise DecodeError("decode_failed", f"{type(error).__name__}: {error}") from error
        return wire.head_of_image(found)


def _answer(pipe: socket.socket, decoder: _Decoder, request: Head, data: Data) -> None:
    """Answers one request. Raises MemoryError, after which the process is no good."""
    _limit_time(decoder.limits.decode_s)
    try:
        head, body = decoder(request, data)
    except ItemError as error:
        if error.code == "decode_memory":
            raise MemoryError from error
        head, body = wire.head_of_error(error), b""
    wire.send(pipe, head, body)


def _next(pipe: socket.socket) -> tuple[Head, Data]:
    """A request and its file. Raises EOFError, or MemoryError where the limit has no room for it.

    Not a byte more is read than asked for: with it would go the descriptor that it has.
    """
    head_bytes, body_bytes = wire.FRAME.unpack(_received(pipe, wire.FRAME.size))
    head = wire.read(_received(pipe, head_bytes))
    if not head.pop("shared", False):
        return head, _received(pipe, body_bytes)
    _, (descriptor,), _, _ = socket.recv_fds(pipe, 1, 1)
    try:
        return head, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise MemoryError from error
    finally:
        os.close(descriptor)


def _received(pipe: socket.socket, count: int) -> bytes:
    found = pipe.recv(count, socket.MSG_WAITALL) if count else b""
    if len(found) < count:
        raise EOFError
    return found


def _die_with(parent: int) -> None:
    """Even a decoder that never looks at the pipe again ends with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()  # it died before it could have been noticed


def _limit(decode_bytes: int) -> None:
    """Memory beside what the process has taken already, and nothing written to any disk; no
    process, thread or right more than there is."""
    _cap(resource.RLIMIT_CORE, 0)
    _cap(resource.RLIMIT_FSIZE, 0)
    _cap(resource.RLIMIT_NOFILE, _MOST_FILES)
    if sys.platform == "linux":
        _cap(resource.RLIMIT_NPROC, 0)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
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
