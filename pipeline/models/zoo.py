"""The zoo: which released weights there are, and how a run's weights get onto a node.

`resolve` turns what a person typed into a ModelSpec, in the driver; `materialise` turns that into
verified local files, on every node; `load_generator` makes the network of them. Weights are
identified by their sha256 at each step. This module is quick to import: torch comes with the first
network.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from pipeline.errors import ConfigError
from pipeline.models.files import PACKAGED, ModelFile, check_sha256, fetch, local_path, sha256_of
from pipeline.storage import Store
from pipeline.uris import absolute, is_local, redact

if TYPE_CHECKING:
    from pipeline.models.layouts import Generator

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_LIST_COMMAND = "python jobs/models.py list"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooEntry:
    """A released file of weights. uri: of its release. scale: the network's own factor."""

    name: str
    uri: str
    bytes: int
    sha256: str
    licence: str
    scale: int
    architecture: str
    parameters: int
    purpose: str

    @property
    def file(self) -> str:
        """The file's name, here and in a folder of models."""
        return self.uri.rpartition("/")[2]


def _released(tail: str, size: int, sha256: str, **facts: Any) -> ZooEntry:
    name = tail.rpartition("/")[2].removesuffix(".pth")
    uri = f"{_RELEASES}/{tail}"
    return ZooEntry(name=name, uri=uri, bytes=size, sha256=sha256, licence="BSD-3-Clause", **facts)


# Sizes and hashes of releases agree over OpenModelDB and at least three independent registries.
# Left out, because a download could not be verified: ESRGAN_SRx4_DF2KOST_official, of whose hash
# only the beginning (ff704c30) is published, and the discriminators *_netD, of which nothing is.
_ENTRIES = (
    ZooEntry(
        name="remaster-compact-x4",
        uri=f"{PACKAGED}remaster-compact-x4.safetensors",
        bytes=1_249_472,
        sha256="6726dd05b5e2f4ce275fc6d970034ba4e2157652c54e89784a63a710a143996e",
        licence="Apache-2.0",
        scale=4,
        architecture="SRVGG 64/16",
        parameters=621_424,
        purpose="photos, fast; comes with Remaster, trained by it",
    ),
    _released(
        "v0.1.0/RealESRGAN_x4plus.pth",
        67_040_989,
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        scale=4,
        architecture="RRDBNet 64/23",
        parameters=16_697_987,
        purpose="photos",
    ),
    _released(
        "v0.1.1/RealESRNet_x4plus.pth",
        67_040_989,
        "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        scale=4,
        architecture="RRDBNet 64/23",
        parameters=16_697_987,
        purpose="photos, smooth; start of GAN training",
    ),
    _released(
        "v0.2.1/RealESRGAN_x2plus.pth",
        67_061_725,
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        scale=2,
        architecture="RRDBNet 64/23",
        parameters=16_703_171,
        purpose="photos, twofold",
    ),
    _released(
        "v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        17_938_799,
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        scale=4,
        architecture="RRDBNet 64/6",
        parameters=4_467_779,
        purpose="anime stills",
    ),
    _released(
        "v0.2.5.0/realesr-animevideov3.pth",
        2_504_012,
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
        scale=4,
        architecture="SRVGG 64/16",
        parameters=621_424,
        purpose="anime video, fast",
    ),
    _released(
        "v0.2.5.0/realesr-general-x4v3.pth",
        4_885_111,
        "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        scale=4,
        architecture="SRVGG 64/32",
        parameters=1_213_296,
        purpose="anything, fast; takes a denoise strength",
    ),
    _released(
        "v0.2.5.0/realesr-general-wdn-x4v3.pth",
        4_885_111,
        "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        scale=4,
        architecture="SRVGG 64/32",
        parameters=1_213_296,
        purpose="anything, fast; keeps noise",
    ),
    _released(
        "v0.2.3.0/RealESRGANv2-animevideo-xsx2.pth",
        2_419_014,
        "27985aa2198711ecd72f9bb274ec7b164e018fc9ce2933daaa7c7ab36a2bd3fe",
        scale=2,
        architecture="SRVGG 64/16",
        parameters=600_652,
        purpose="anime video, superseded by realesr-animevideov3",
    ),
    _released(
        "v0.2.3.0/RealESRGANv2-animevideo-xsx4.pth",
        2_502_086,
        "5e04b111c16d5b40deb8f8062d09fdff72fa80281fb9607be23b62650c08daff",
        scale=4,
        architecture="SRVGG 64/16",
        parameters=621_424,
        purpose="anime video, superseded by realesr-animevideov3",
    ),
)
ZOO: Mapping[str, ZooEntry] = {entry.name: entry for entry in _ENTRIES}

# Denoise strength 1 is the first of the two alone, 0 the second.
_DENOISE = (ZOO["realesr-general-x4v3"], ZOO["realesr-general-wdn-x4v3"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """All that a worker on another node needs to know of the run's generator.

    weights: one per file, their shares in a blend. stated: architecture and hyper-parameters from
    a model YAML. scale: the network's own factor; None until its file is read.
    """

    name: str
    files: tuple[ModelFile, ...]
    weights: tuple[float, ...] = (1.0,)
    stated: tuple[tuple[str, Any], ...] = ()
    licence: str = "unknown"
    scale: int | None = None

    @property
    def sha256(self) -> str:
        """Identifies the weights: of the file, or for a blend of its files' hashes and shares."""
        if len(self.files) == 1:
            return self.files[0].sha256
        shares = [
            [file.sha256, weight] for file, weight in zip(self.files, self.weights, strict=True)
        ]
        return hashlib.sha256(json.dumps(shares, separators=(",", ":")).encode()).hexdigest()


def table() -> str:
    """The zoo as aligned text, one model a line, below a heading."""
    rows = [("NAME", "SCALE", "NETWORK", "PARAMETERS", "MB", "LICENCE", "FOR")]
    for e in ZOO.values():
        facts = (f"{e.parameters:,}", f"{e.bytes / 1e6:.1f}", e.licence, e.purpose)
        rows.append((e.name, f"x{e.scale}", e.architecture, *facts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


# --------------------------------------------------------------------------------- in the driver


def resolve(
    model: str,
    *,
    store: Store,
    models_uri: str | None = None,
    model_sha256: str | None = None,
    denoise: float | None = None,
) -> ModelSpec:
    """What the run's generator is, from what a person typed.

    model: name in the zoo, path or URI of a checkpoint, or of a YAML with `checkpoint` and, if one
    likes, `sha256`, `licence`, `architecture` and hyper-parameters. models_uri: folder or URI
    prefix in which zoo files are looked for first. model_sha256: what the weights must be.
    denoise: strength from 0 to 1, for realesr-general-x4v3 alone.
    A checkpoint of one's own is read once, for its hash; zoo files are not touched here.
    Raises ConfigError for whatever does not exist or does not fit together.
    """
    if denoise is not None and model != _DENOISE[0].name:
        raise ConfigError(f"denoise is a setting of {_DENOISE[0].name} alone, not of {model}")
    pinned = None if model_sha256 is None else _checked("model_sha256", model_sha256)
    if model in ZOO:
        spec = _from_zoo(ZOO[model], models_uri, denoise)
    elif model.lower().endswith((".yaml", ".yml")):
        spec = _from_yaml(model, pinned, store)
    else:
        _refuse_unknown_name(model)
        spec = _from_checkpoint(model, pinned, store)
    if pinned is not None:
        check_sha256(redact(model), spec.sha256, pinned)
    return spec


def _from_zoo(entry: ZooEntry, models_uri: str | None, denoise: float | None) -> ModelSpec:
    shares = {entry: 1.0}
    if denoise is not None:
        if not 0 <= denoise <= 1:
            raise ConfigError(f"denoise is a strength from 0 to 1, not {denoise}")
        shares = dict(zip(_DENOISE, (denoise, 1 - denoise), strict=True))
    used = {entry: share for entry, share in shares.items() if share}
    return ModelSpec(
        name=entry.name,
        files=tuple(_zoo_file(part, models_uri) for part in used),
        weights=tuple(used.values()),
        licence=entry.licence,
        scale=entry.scale,
    )


def _zoo_file(entry: ZooEntry, models_uri: str | None) -> ModelFile:
    uris = (entry.uri,)
    if models_uri:
        uris = (f"{absolute(models_uri)}/{entry.file}", entry.uri)
    return ModelFile(name=entry.file, uris=uris, sha256=entry.sha256, bytes=entry.bytes)


def _refuse_unknown_name(model: str) -> None:
    """Raise ConfigError for what can only be a name, and is none of the zoo's."""
    if "/" in model or os.path.exists(model):
        return
    names = {name.casefold(): name for name in ZOO}
    close = [names[name] for name in difflib.get_close_matches(model.casefold(), names, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ";"
    raise ConfigError(
        f"{model!r} is no file here and no model of the zoo{hint} `{_LIST_COMMAND}` lists them"
    )


def _from_checkpoint(model: str, pinned: str | None, store: Store) -> ModelSpec:
    """A file of one's own. Where a pinned one is remote it is only read on the nodes."""
    if is_local(model):
        path = Path(absolute(model))
        sha256, size = sha256_of(path), path.stat().st_size
    elif pinned is not None:
        sha256, size = pinned, None
    else:
        data = _read(model, store)
        sha256, size = hashlib.sha256(data).hexdigest(), len(data)
    if pinned is not None:
        check_sha256(redact(model), sha256, pinned)
    # What is relative means each node's own copy of the job's folder, if not this one.
    uris = tuple(dict.fromkeys((absolute(model), model)))
    name = model.partition("?")[0].rpartition("/")[2].strip(".") or "weights"
    file = ModelFile(name=name, uris=uris, sha256=sha256, bytes=size)
    return ModelSpec(name=redact(model), files=(file,))


def _from_yaml(model: str, pinned: str | None, store: Store) -> ModelSpec:
    """A checkpoint with what is stated of it; a relative path in it is relative to the YAML."""
    values = _parse_yaml(model, _read(model, store))
    checkpoint, sha256 = values.pop("checkpoint", None), values.pop("sha256", None)
    licence = values.pop("licence", "unknown")
    if not isinstance(checkpoint, str):
        raise ConfigError(f"{redact(model)}: checkpoint must be a path or URI, not {checkpoint!r}")
    if sha256 is not None:
        pinned = _checked(f"{redact(model)}: sha256", sha256)
    if "://" not in checkpoint:
        checkpoint = os.path.join(os.path.dirname(model), os.path.expanduser(checkpoint))
    stated = _checked_shape(redact(model), values)
    scale = stated.get("scale")
    return replace(
        _from_checkpoint(checkpoint, pinned, store),
        name=redact(model),
        stated=tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in stated.items()),
        licence=str(licence),
        scale=scale if isinstance(scale, int) else None,
    )


def _parse_yaml(model: str, data: bytes) -> dict[str, Any]:
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ConfigError(f"{redact(model)}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{redact(model)}: holds no keys but {type(values).__name__}")
    return {str(key): value for key, value in cast(dict[object, Any], values).items()}


def _checked_shape(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    from pipeline.models import layouts

    try:
        return layouts.check_stated(values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(where: str, sha256: object) -> str:
    text = str(sha256).lower()
    if not _SHA256.fullmatch(text):
        raise ConfigError(f"{where} must be 64 hexadecimal digits, not {sha256!r}")
    return text


def _read(uri: str, store: Store) -> bytes:
    data = fetch(uri, store, None)
    if data is None:
        raise ConfigError(f"no model at {redact(uri)}")
    return data


# --------------------------------------------------------------------------------- on every node


def default_cache_dir() -> Path:
    """Where this user keeps downloaded weights: below XDG_CACHE_HOME or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "remaster" / "models"


def load_generator(spec: ModelSpec, *, store: Store, cache_dir: str | Path) -> "Generator":
    """The network, ready to run: float32 on the CPU, in evaluation mode.

    Raises ConfigError when a file cannot be had, is another one, or is no usable checkpoint.
    """
    from pipeline.models import checkpoints

    paths = materialise(spec, store=store, cache_dir=cache_dir)
    loaded = [checkpoints.load(path, stated=dict(spec.stated)) for path in paths]
    mixed = loaded[0] if len(loaded) == 1 else checkpoints.blend(loaded, spec.weights)
    return checkpoints.build(mixed)


def materialise(spec: ModelSpec, *, store: Store, cache_dir: str | Path) -> list[Path]:
    """Local files with the weights, whose sha256 was verified just now.

    Files on a local disk are used where they are. Others come from `cache_dir`, and into it once
    per node, whatever the number of processes.
    Raises ConfigError with both hashes when a file is not the one that the spec means, and when
    it cannot be had.
    """
    return [local_path(file, store, Path(cache_dir)) for file in spec.files]
