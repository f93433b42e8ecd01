"""Decoding in processes that can be killed singly: what a file does to its decoder costs one row.

A thread cannot stop a decoder that holds the interpreter's lock, and one dead child fails every
future of a process pool. So each child has a pipe of its own, on which a thread sends it a file and
waits for the samples, no longer than `limits.decode_s` for all that is read of the file. A child
that is late is killed, one that died is replaced, and either is an ItemError of the one file that
it was given.

Headers are read there too: parsers of headers follow chains of pages, and WebP's takes memory for
the whole picture.

Isolated are crashes, hangs, memory and the environment's credentials, and what comes back is data
and never code. The user, the file system and the network are not: see `child`.
"""

import errno
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError, FatalError, ItemError, TooLargeError
from pipeline.images import child as child_program
from pipeline.images import wire
from pipeline.images.child import NO_MEMORY
from pipeline.images.ifd import Place
from pipeline.images.image import Facts, Image, Samples
from pipeline.images.wire import Head, Shared

_START_S, _EXIT_S = 120, 1
_START_PAUSES_S = (0.5, 1, 2, 4)
_PIPE_BYTES = 2**20  # a small picture fits: its child is done when it is decoded
_HEAD_BYTES = 2**20  # of an answer, beside the metadata
_KEPT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_GIVEN = {
    # There are as many children as cores.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TIFFFILE_NUM_THREADS": "1",
    # glibc's: to keep 64 MiB between pictures. Else a small one's memory is handed back and faulted
    # in again, 1,700 pages each time, which takes as long as decoding it.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}
# What the loader and the interpreter say where there is no memory.
_SAYS_NO_MEMORY = re.compile("MemoryError|[Cc]annot allocate memory|failed to map segment")
# What an earlier picture may be guilty of, by the state that it left its child in.
_INHERITED = ("decoder_crash", "decode_memory_limit")

T = TypeVar("T")
Buffer = TypeVar("Buffer", bytearray, memoryview)


class Sandbox:
    """Up to `count` children, started when they are needed; for many threads."""

    def __init__(
        self,
        count: int,
        limits: Limits,
        policy: Policy,
        *,
        decoder: str = "pipeline.images.decode",
        lifetime: int = 5000,
        start_pauses_s: Sequence[float] = _START_PAUSES_S,
    ) -> None:
        """decoder: the module whose `probe`, `probe_pages`, `places` and `decode` children call.

        lifetime: requests after which a child is replaced, and with it what codecs leak and leave
        in pieces; a start takes as long as decoding 100 small pictures.
        start_pauses_s: before a start is tried again that failed for want of memory.
        """
        self._limits = limits
        self._starter = _Starter(limits, policy, decoder, start_pauses_s)
        self._children = [_Child(self._starter, lifetime) for _ in range(count)]
        # Last in, first out: no more of them are started than the load needs.
        self._free = queue.LifoQueue[_Child]()
        for child in self._children:
            self._free.put(child)
        self._closed = False

    def file(self, data: bytes) -> "File":
        """A file, of which several things are to be read within one limit of time."""
        return File(self._ask, data, self._limits)

    def probe(self, data: bytes, page: int = 0) -> Facts:
        """What the header of a file says, of a TIFF's page. Errors as of `File.decode`."""
        return self.file(data).probe(page)

    def probe_pages(self, data: bytes) -> tuple[Facts, ...]:
        """What a file says of each of its pages. Errors as of `File.decode`."""
        return self.file(data).probe_pages()

    def decode(self, data: bytes, page: int = 0) -> Image:
        """The picture, or one page, that a file holds. Errors as of `File.decode`."""
        return self.file(data).decode(page)

    def close(self) -> None:
        """Ends the children, each when it has answered."""
        self._closed = True
        for _ in self._children:
            self._free.get().end()
        for child in self._children:
            self._free.put(child)  # for whoever still waits
        self._starter.close()

    def _ask(self, request: "_Request[T]") -> T:
        child = self._free.get()
        try:
            if self._closed:
                raise RuntimeError("the sandbox is closed")
            answer = child.ask(request)
        finally:
            self._free.put(child)
        if isinstance(answer, ItemError):
            raise answer
        return answer


class File:
    """What is read of one file; for one thread.

    Each answer has `limits.decode_s`, and so have all of them together: else a file of a thousand
    pages could take a thousand times as long. That is meant for any picture that is let in; so
    pages that have more pixels than `limits.max_input_pixels` together have it for each so many.
    """

    def __init__(self, ask: "Callable[[_Request[Any]], Any]", data: bytes, limits: Limits) -> None:
        self._ask, self._limits = ask, limits
        self._data: bytes | Shared = data
        self._places: tuple[Place | None, ...] = ()
        self._metadata_bytes = dict[int, int]()  # by page
        self._time = _Time(limits.decode_s)

    def probe(self, page: int = 0) -> Facts:
        """What the header says, of a TIFF's page. Errors as of `decode`."""
        return self._answer({"do": "probe", "page": page}, wire.facts_of)

    def probe_pages(self) -> tuple[Facts, ...]:
        """What is said of each page. Errors as of `decode`."""
        pages, self._places = self._answer({"do": "probe_pages"}, wire.pages_of)
        if any(self._places) and sys.platform == "linux":
            self._share()
        pixels = sum(page.width * page.height for page in pages)
        share = max(1, pixels / self._limits.max_input_pixels)
        self._time.limit = self._limits.decode_s * share
        return pages

    def decode(self, page: int = 0) -> Image:
        """The picture, or one page. Waits for a free child.

        Raises what the decoder raises; TooLargeError over `limits.decode_s` or
        `limits.decode_bytes`, where the pages decoded so far have more metadata together than
        `limits.max_metadata_bytes`, and where the node has no memory; DecodeError if the child
        died; FatalError if none can be started for another reason.
        """
        place = self._places[page] if page < len(self._places) else None
        asked = {"do": "decode", "page": page, "place": place and asdict(place)}
        image = self._answer(asked, wire.image_of)
        self._count_metadata(page, image.metadata.bytes)
        return image

    def _count_metadata(self, page: int, count: int) -> None:
        """Pages may share what they say: 30 MB that sixty name are 2 GB of a result."""
        self._metadata_bytes[page] = count
        said, limit = sum(self._metadata_bytes.values()), self._limits.max_metadata_bytes
        if said > limit:
            message = f"{said:,} bytes of metadata in {len(self._metadata_bytes):,} pages"
            raise TooLargeError(
                "metadata_too_large", f"{message}, limit {limit:,} (limits.max_metadata_bytes)"
            )

    def _share(self) -> None:
        """Many pages are asked of it: then it is handed over once, and not with each of them."""
        try:
            self._data = Shared(self._data) if isinstance(self._data, bytes) else self._data
        except OSError as error:
            message = f"no memory to share {len(self._data):,} bytes ({error.strerror})"
            raise TooLargeError("decode_memory", message) from error

    def _answer(self, head: Head, read: Callable[[Head, Samples | None], T]) -> T:
        return self._ask(_Request(head, self._data, read, self._time))


@dataclass(slots=True)
class _Time:
    """Seconds that children may have for one file, and have had."""

    limit: float
    used: float = 0


@dataclass(frozen=True, slots=True)
class _Request(Generic[T]):
    head: Head
    data: bytes | Shared
    read: Callable[[Head, Samples | None], T]
    """Makes of an answer what it says. Raises ValueError and the like if it says nothing."""
    time: _Time


class _Child:
    """One process at a time."""

    def __init__(self, starter: "_Starter", lifetime: int) -> None:
        self._starter, self._lifetime = starter, lifetime
        self._process: _Process | None = None

    def ask(self, request: _Request[T]) -> T | ItemError:
        """What the process answers, which may be an error, or the error that it ended with."""
        used = self._process is not None
        try:
            return self._ask(request)
        except ItemError as error:
            if not used or error.code not in _INHERITED:
                return error
        # Was it this file? Once more, in a process that has seen no other.
        try:
            return self._ask(request)
        except ItemError as error:
            return error

    def end(self) -> None:
        """Kills the process if there is one."""
        if self._process:
            self._process.end()
            self._process = None

    def _ask(self, request: _Request[T]) -> T | ItemError:
        process = self._process = self._process or self._starter.start()
        whole = False
        try:
            answer = process.ask(request)
            whole = True
        finally:
            # Interrupted between request and answer, it would answer the next with this one's.
            if not whole or process.answered >= self._lifetime:
                self.end()
        return answer


class _Starter:
    """Starts processes, in a thread of its own: the kernel ends a process that asked to die with
    its parent together with the thread that started it."""

    def __init__(
        self, limits: Limits, policy: Policy, decoder: str, pauses_s: Sequence[float]
    ) -> None:
        self._limits, self._pauses_s = limits, pauses_s
        self._settings = {
            "decoder": decoder,
            "limits": limits.model_dump(),
            "policy": policy.model_dump(),
        }
        self._thread = ThreadPoolExecutor(1, "sandbox")

    def start(self) -> "_Process":
        """Raises FatalError if the process does not come up; TooLargeError where the node has no
        memory for it, also after some pauses in which others may have given some back."""
        for pause_s in self._pauses_s:
            try:
                return self._started()
            except _NoMemoryError:
                time.sleep(pause_s)
        try:
            return self._started()
        except _NoMemoryError as error:
            message = f"{error}; tried {1 + len(self._pauses_s)} times"
            raise TooLargeError("decode_memory", message) from error

    def _started(self) -> "_Process":
        try:
            popen, pipe = self._thread.submit(_popen).result()
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EAGAIN):
                raise FatalError(f"a decoder process does not start: {error}") from error
            raise _NoMemoryError(f"a decoder process does not start ({error.strerror})") from error
        process = _Process(popen, pipe, self._limits)
        process.greet(self._settings)
        return process

    def close(self) -> None:
        """Ends what was started, too."""
        self._thread.shutdown()


class _NoMemoryError(Exception):
    """A process could not be started now; it may be later."""


class _Process:
    """A started process and our end of its pipe."""

    def __init__(
        self, popen: "subprocess.Popen[bytes]", pipe: socket.socket, limits: Limits
    ) -> None:
        self.answered = 0
        self.end = weakref.finalize(self, _end, popen, pipe)
        """Kills it, as does forgetting it."""
        self._popen, self._pipe, self._limits = popen, pipe, limits

    def greet(self, settings: Head) -> None:
        """Hands over the settings. Raises FatalError if the process does not come up, or
        _NoMemoryError."""
        try:
            wire.send(self._pipe, settings)
            self._receive(time.monotonic() + _START_S)
        except (OSError, EOFError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(_EXIT_S)
            status = self._popen.returncode  # before we kill it, as the kernel may have
            self.end()
            assert self._popen.stderr
            said = self._popen.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            message = f"a decoder process does not start (status {self._popen.returncode}): {said}"
            if status in (-signal.SIGKILL, NO_MEMORY) or _SAYS_NO_MEMORY.search(said):
                raise _NoMemoryError(message) from error
            raise FatalError(message) from error
        finally:
            if self._popen.stderr:
                self._popen.stderr.close()

    def ask(self, request: _Request[T]) -> T | ItemError:
        """Raises ItemError if the process is good for nothing any more."""
        start, allowed = time.monotonic(), request.time
        left = min(self._limits.decode_s, allowed.limit - allowed.used)
        try:
            self._patience(socket.SO_SNDTIMEO, left)
            wire.send(self._pipe, request.head, request.data)
            head, samples = self._receive(start + left)
            answer = wire.error_of(head) or request.read(head, samples)
        except BlockingIOError as error:
            took = time.monotonic() - start
            if left < self._limits.decode_s:
                raise self._late_in_all(took, allowed) from error
            raise self._late(f"{took:.1f} s") from error
        except (OSError, EOFError) as error:
            raise self._verdict(len(request.data)) from error
        except MemoryError as error:
            message = f"no memory to decode {len(request.data):,} bytes"
            raise TooLargeError("decode_memory", message) from error
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            message = f"the decoder's answer is none ({type(error).__name__}: {error})"
            raise DecodeError("decoder_crash", message) from error
        finally:
            allowed.used += time.monotonic() - start
        self.answered += 1
        return answer

    def _receive(self, deadline: float) -> tuple[Head, Samples | None]:
        """One message, the samples straight into their array. Raises ValueError among others."""
        head_bytes, body_bytes = wire.FRAME.unpack(
            self._filled(bytearray(wire.FRAME.size), deadline)
        )
        if head_bytes > 2 * self._limits.max_metadata_bytes + _HEAD_BYTES:
            raise ValueError(f"{head_bytes:,} bytes of metadata")
        said = self._filled(bytearray(head_bytes), deadline)
        head = wire.read(said)
        if not body_bytes:
            return head, None
        if body_bytes > self._limits.decode_bytes:
            raise ValueError(f"{body_bytes:,} bytes of samples")
        samples = wire.samples_of(head, body_bytes)
        self._filled(samples.data.cast("B"), deadline)
        return head, samples

    def _filled(self, room: Buffer, deadline: float) -> Buffer:
        view = memoryview(room)
        while view:
            self._patience(socket.SO_RCVTIMEO, deadline - time.monotonic())
            count = self._pipe.recv_into(view, 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError
            view = view[count:]
        return room

    def _patience(self, kind: int, seconds: float) -> None:
        """The kernel's own timeout: Python's costs two more calls for each piece that comes."""
        micros = max(1, round(seconds * 1e6))  # none would mean for ever
        self._pipe.setsockopt(socket.SOL_SOCKET, kind, struct.pack("ll", *divmod(micros, 10**6)))

    def _verdict(self, file_bytes: int) -> ItemError:
        """Why the process ended."""
        try:
            status = self._popen.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return DecodeError("decoder_crash", "the decoder closed its pipe")
        limit = f"{self._limits.decode_bytes:,} (limits.decode_bytes)"
        if status == NO_MEMORY:
            message = f"{file_bytes:,} bytes of file need more memory than {limit}"
            return TooLargeError("decode_memory_limit", message)
        if status == -signal.SIGXCPU:
            return self._late("too long on a processor")
        if status == -signal.SIGKILL:
            message = "the decoder was killed (SIGKILL), as the kernel does where memory runs out"
            return TooLargeError("decode_memory", f"{message}; its limit was {limit}")
        how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
        return DecodeError("decoder_crash", f"the decoder {how} on {file_bytes:,} bytes of file")

    def _late(self, took: str) -> ItemError:
        message = f"not decoded after {took}, limit {self._limits.decode_s:g} s (limits.decode_s)"
        return TooLargeError("decode_timeout", message)

    def _late_in_all(self, took: float, allowed: _Time) -> ItemError:
        message = f"{allowed.used + took:.1f} s for all that was read of it"
        limit = f"limit {allowed.limit:g} s (limits.decode_s, for limits.max_input_pixels or less)"
        return TooLargeError("decode_timeout", f"{message}, {limit}")


def _popen() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
    with theirs:
        popen = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", child_program.__name__, str(os.getpid())],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
            process_group=0,  # a terminal's Ctrl-C is for the one who started the run
        )
    return popen, ours


def _environment() -> dict[str, str]:
    """Where things are, but no credentials: a decoder may be taken over by what it decodes."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return kept | _GIVEN | {"PYTHONPATH": path}


def _end(popen: "subprocess.Popen[bytes]", pipe: socket.socket) -> None:
    pipe.close()
    popen.kill()
    popen.wait()
