"""Which pictures there are to train on, and how one of them is read."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np

from pipeline import manifest, uris
from pipeline.config import Limits, Policy, Scan
from pipeline.errors import ConfigError, ItemError, PipelineError
from pipeline.images.decode import decode
from pipeline.images.image import Pixels, eight_bit
from pipeline.storage import Store
from pipeline.training.config import TrainConfig

_LIMITS = Limits()
_LIST = ".txt"
_EXAMPLES = 3
_PROBED = 10  # pictures of a list of which one at least must be there


@dataclass(frozen=True, slots=True)
class File:
    """A picture's bytes: `length` of them from `offset` on, by default all."""

    uri: str
    offset: int | None = None
    length: int | None = None

    def __str__(self) -> str:
        return self.uri if self.offset is None else f"{self.uri} from byte {self.offset} on"


@dataclass(frozen=True, slots=True)
class Pictures:
    """What there is to train on, in an order that does not depend on how a store lists it."""

    targets: tuple[File, ...]
    """High-resolution pictures."""
    inputs: tuple[File, ...] | None
    """The low-resolution picture of each; None where they are made by degradation."""

    def __len__(self) -> int:
        return len(self.targets)

    def digest(self) -> str:
        """Of their names and their order, wherever they are."""
        names = (f"{file.uri.rpartition('/')[2]} {file.offset}\n" for file in self.targets)
        return hashlib.sha256("".join(names).encode()).hexdigest()


def find(config: TrainConfig) -> Pictures:
    """The pictures that `images`, `root` and `pairs` name; nothing of them is read.

    Targets and inputs are matched by their paths below `images` and `pairs`, without suffix; in a
    table by its column `key`, else by the file's name. A meta_info list may name both, targets
    below `root`, inputs below `pairs` or else `root` too.
    Raises ConfigError when there is nothing, or it does not match.
    """
    store = Store(config.storage.source.fsspec_options())
    try:
        if config.images.lower().endswith(_LIST):
            return _listed(config, config.images, store)
        targets = _scanned(config, config.images, "images", store)
        return _matched(config, targets, store)
    except OSError as error:  # a store that does not answer, or not to us
        raise ConfigError(str(error)) from error


Named = tuple[str, File]
"""A file, and its path without the suffix: what it is matched by."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A training's pictures as `manifest.read` is asked for them."""

    manifest: str
    output: str
    report_uri: str
    scan: Scan
    probe: bool = False
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    carry: Literal["all", "none"] | list[str] = "none"


def _scanned(config: TrainConfig, uri: str, key: str, store: Store) -> list[Named]:
    """The files of a folder, a glob or a table that the setting `key` names."""
    asked = _Asked(uri, config.output, config.output, config.scan)
    sources = manifest.read(asked, store, key=key).sources
    if not sources.num_rows:
        raise ConfigError(f"{uri} names no pictures ({key})")
    columns = [sources[name].to_pylist() for name in ("key", "uri", "offset", "length")]
    rows = cast(
        Iterable[tuple[str | None, str, int | None, int | None]], zip(*columns, strict=True)
    )
    return [
        (_stem(name or uri.rpartition("/")[2]), File(uri, offset, length))
        for name, uri, offset, length in rows
    ]


def _listed(config: TrainConfig, uri: str, store: Store) -> Pictures:
    """The files of a meta_info list: `path`, up to a blank, or `target path, input path`."""
    if config.root is None:
        raise ConfigError(f"{uri} is a list: the folder its paths are relative to is wanted (root)")
    lines = _lines(uri, store)
    pairs = [line.split(", ") for line in lines if ", " in line]
    if len(pairs) not in (0, len(lines)) or any(len(pair) > 2 for pair in pairs):
        raise ConfigError(
            f"{uri}: {len(pairs)} of {len(lines)} lines hold ', '; wanted is one path in each "
            "line, or in each two, 'target, input' (images)"
        )
    paths = [high for high, _ in pairs] or [line.split()[0] for line in lines]
    targets = [_below(config.root, path, uri) for path in paths]
    _refuse_absent(targets, config.root, uri, store)
    if not pairs:
        return _matched(config, list(zip(map(_stem, paths), targets, strict=True)), store)
    inputs = [_below(config.pairs or config.root, low, uri) for _, low in pairs]
    return _ordered(list(zip(targets, inputs, strict=True)))


def _lines(uri: str, store: Store) -> list[str]:
    """Without blank ones and what surrounds them."""
    try:
        text = store.read(uris.absolute(uri)).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no list {uri} (images)") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the list {uri} is not UTF-8: {error} (images)") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"the list {uri} is empty (images)")
    return lines


def _below(root: str, path: str, uri: str) -> File:
    try:
        return File(uris.join(uris.absolute(root), path))
    except ValueError as error:
        raise ConfigError(f"{uri}: {error} (images, root)") from error


def _refuse_absent(files: Sequence[File], root: str, uri: str, store: Store) -> None:
    """Raises ConfigError when the first files are all missing: the root is likely another's."""
    first = files[:_PROBED]
    if not any(store.exists(file.uri) for file in first):
        raise ConfigError(
            f"of the first {len(first)} pictures that {uri} names none is below {root}, such as "
            f"{first[0].uri} (root)"
        )


def _matched(config: TrainConfig, targets: Sequence[Named], store: Store) -> Pictures:
    """Each target with its input, where there are such."""
    if config.pairs is None:
        return _ordered([(file, None) for _, file in targets])
    target_of = _by_name(targets, "images")
    input_of = _by_name(_scanned(config, config.pairs, "pairs", store), "pairs")
    lone_targets = sorted(target_of.keys() - input_of.keys())
    lone_inputs = sorted(input_of.keys() - target_of.keys())
    if lone_targets or lone_inputs:
        raise ConfigError(
            f"{len(lone_targets)} of {len(target_of)} targets have no input{_such_as(lone_targets)}"
            f", {len(lone_inputs)} of {len(input_of)} inputs no target{_such_as(lone_inputs)}; "
            "they are matched by their paths without suffix (images, pairs)"
        )
    return _ordered([(file, input_of[name]) for name, file in target_of.items()])


def _by_name(files: Sequence[Named], key: str) -> dict[str, File]:
    twice = [name for name, count in Counter(name for name, _ in files).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} names are there more than once{_such_as(sorted(twice))}; pairs are "
            f"matched by their paths without suffix ({key})"
        )
    return dict(files)


def _ordered(pairs: Sequence[tuple[File, File | None]]) -> Pictures:
    ordered = sorted(pairs, key=lambda pair: (pair[0].uri, pair[0].offset or 0))
    inputs = tuple(low for _, low in ordered if low is not None)
    return Pictures(tuple(high for high, _ in ordered), inputs or None)


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _such_as(names: Sequence[str]) -> str:
    return f" (such as {', '.join(names[:_EXAMPLES])})" if names else ""


class UnusableError(PipelineError):
    """A picture that cannot be trained on; the message says why."""

    def __init__(self, file: File, message: str) -> None:
        super().__init__(message)
        self.file = file


def read_rgb(file: File, store: Store) -> Pixels:
    """The picture as (height, width, 3) uint8, gray as RGB, 16 bits reduced to 8.

    Raises UnusableError.
    """
    try:
        data = store.read(
            file.uri, offset=file.offset, length=file.length, limit=_LIMITS.max_source_bytes
        )
        pixels = eight_bit(decode(data, _LIMITS, Policy()).pixels)
    except (ItemError, OSError) as error:
        raise UnusableError(file, str(error)) from error
    except (ConfigError, ValueError) as error:  # a bucket with a space, a NUL in a path
        raise UnusableError(file, f"no URI that its store could have: {error}") from error
    if pixels.shape[2] in (2, 4):
        if pixels[:, :, -1].min() < 255:
            raise UnusableError(file, "has transparency")
        pixels = pixels[:, :, :-1]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
