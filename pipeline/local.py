"""What is special about local disks: files staged and moved to their place, links, folders.

Paths are absolute.
"""

import errno
import os
import re
import stat as modes
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress

STAGING = ".staging"
"""The folder that files are written in before they are moved to their place."""

_STAGED = re.compile(r"[0-9a-f]{32}\.part")


def read(path: str, start: int, length: int | None) -> bytes:
    """As `Store.read`."""
    stat(path)  # opening a pipe would wait for its writer
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def stat(path: str) -> os.stat_result:
    """Of a regular file. Raises FileNotFoundError for anything else."""
    try:
        found = os.stat(path)
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", path) from error
    if not modes.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
    return found


def walk(
    folder: str, *, deep: bool, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Files below `folder`, by their paths; a dangling link has no stat.

    A link to a folder that it lies in (above: those, by device and number) is not entered.
    """
    try:
        here = os.stat(folder)
        entries = [(entry, _followed(entry)) for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    # With its slash a folder's name sorts among the files as the paths below it do.
    named = sorted(
        (entry.path + "/" * bool(found and modes.S_ISDIR(found.st_mode)), found)
        for entry, found in entries
    )
    for path, found in named:
        if found is None or modes.S_ISREG(found.st_mode):
            yield path, found
        elif modes.S_ISDIR(found.st_mode) and deep and not path.endswith(f"/{STAGING}/"):
            yield from walk(path[:-1], deep=True, above=(*above, identity))


def _followed(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # a dangling link, a link to itself, or just deleted: reading it will tell
        return None


def publish(path: str, data: bytes | bytearray | memoryview, staging: str) -> None:
    """Staged in the folder `staging`, flushed to the disk, moved."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    os.makedirs(staging, exist_ok=True)
    staged = os.path.join(staging, f"{uuid.uuid4().hex}.part")
    try:
        with open(staged, "xb") as file:  # the umask decides the rights, unlike in mkstemp
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(staged)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)  # else a power cut may undo the move
    finally:
        os.close(descriptor)


def clear(staging: str) -> int:
    """Remove what killed publishes left in a staging folder; how many files that was."""
    if not os.path.isdir(staging):
        return 0
    leftovers = [entry.path for entry in os.scandir(staging) if _STAGED.fullmatch(entry.name)]
    for path in leftovers:
        os.unlink(path)
    return len(leftovers)


def remove_empty(staging: Iterable[str]) -> None:
    """Remove staging folders, and `.staging` around them, where nothing is in them."""
    for folder in staging:
        with suppress(OSError):  # gone already, or in use
            os.rmdir(folder)
            if os.path.basename(os.path.dirname(folder)) == STAGING:
                os.rmdir(os.path.dirname(folder))
