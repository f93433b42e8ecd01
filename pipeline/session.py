"""What one run is: its name, its places, its recipe, and what it notes about itself."""

import math
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from pipeline import __version__, local, uris
from pipeline import config as configuration
from pipeline.config import Device, Precision, Side, SourceSide, UpscaleConfig
from pipeline.errors import CODES
from pipeline.ledger import Ledger
from pipeline.models import zoo
from pipeline.models.zoo import ModelSpec
from pipeline.storage import Store

_A_DAY_S = 86_400
_VERSIONED = (
    *("ray", "torch", "numpy", "pyarrow", "fsspec", "s3fs"),
    *("pillow", "isal", "tifffile", "imagecodecs"),
)


@dataclass(frozen=True, slots=True)
class Session:
    """A run, settled before anything is planned or started."""

    config: UpscaleConfig
    run_id: str
    output: str
    source_store: Store
    output_store: Store
    report_store: Store
    model_store: Store
    ledger: Ledger
    head: Mapping[str, Any]
    model: ModelSpec
    device: Device
    precision: Precision
    recipe: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The recipe's digest."""
        return configuration.digest(self.recipe)

    @classmethod
    def settle(cls, config: UpscaleConfig, auto_device: Callable[[], str]) -> "Session":
        """The run that a configuration asks for.

        auto_device: what `device: auto` means where no earlier run has settled it.
        Raises ConfigError for places and models that cannot be.
        """
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        sides, output = config.storage, uris.absolute(config.output)
        report = uris.absolute(config.report_uri)
        report_store = _staged(sides.report or sides.output, report, run_id)
        model_store, ledger = _store(sides.models), Ledger(report_store, report)
        model = zoo.resolve(
            config.model,
            store=model_store,
            models_uri=os.environ.get("REMASTER_MODELS"),
            model_sha256=config.model_sha256,
            denoise=config.denoise,
        )
        head = ledger.head()
        device, precision = _settle_auto(config, head.get("auto", {}), auto_device)
        return cls(
            config=config,
            run_id=run_id,
            output=output,
            source_store=source_store(sides.source),
            output_store=_staged(sides.output, output, run_id),
            report_store=report_store,
            model_store=model_store,
            ledger=ledger,
            head=head,
            model=model,
            device=device,
            precision=precision,
            recipe=configuration.recipe(
                config,
                model_sha256=model.sha256,
                model_scale=model.scale,
                precision=precision,
                stated=dict(model.stated),
            ),
        )

    def row(self) -> dict[str, Any]:
        """What is the same in all rows of the run's report."""
        return {
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "model_licence": self.model.licence,
            "recipe": self.digest,
            "precision": self.precision,
            "device": self.device,
            "run_id": self.run_id,
            "last_run_id": self.run_id,
        }

    def line(self) -> str:
        """For example `model realesr-animevideov3 (anime video, fast), fp32 on cpu`."""
        purpose = f" ({zoo.ZOO[self.model.name].purpose})" if self.model.name in zoo.ZOO else ""
        return f"model {self.model.name}{purpose}, {self.precision} on {self.device}"

    def of_run(self, name: str) -> str:
        """A file of this run, relative to the report."""
        return f"runs/{self.run_id}/{name}"

    def difference(self, digest: str) -> str:
        """How an earlier recipe of this output differs from the run's, for people."""
        before = self.ledger.read_json(f"recipes/{digest}.json")
        names = [
            name
            for name in sorted({*before, *self.recipe})
            if before.get(name) != self.recipe.get(name)
        ]
        changes = (
            f"{n}: {before.get(n, '-')} before, {self.recipe.get(n, '-')} now" for n in names
        )
        return ", ".join(changes)

    def raised(self, run_id: str) -> frozenset[str]:
        """Codes of failures by limits that are higher now than they were in an earlier run."""
        before = self.ledger.read_yaml(f"runs/{run_id}/config.yaml").get("limits", {})
        now = self.config.limits.model_dump()
        return frozenset(
            name
            for name, code in CODES.items()
            if code.limit and before.get(code.limit, math.inf) < now[code.limit]
        )

    def open_report(self) -> None:
        """Writes down what the run is, before it starts; tidies up after runs that died."""
        for run_id in self.ledger.unfinished_runs():
            if not _lives(self.ledger.read_json(f"runs/{run_id}/environment.json")):
                self._sweep(run_id)
        self.ledger.write_json(self.of_run("environment.json"), _environment())
        config = self.config.to_yaml().encode()
        self.ledger.write(self.of_run("config.yaml"), config, "application/yaml")
        self.ledger.write_json(f"recipes/{self.digest}.json", self.recipe)
        self.ledger.set_head(self.settled_head())

    def close_report(self, summary: Mapping[str, Any], *, seconds_per_item: float | None) -> None:
        """Compacts the report, notes how the run ended and leaves nothing temporary.

        seconds_per_item: by which the next run sizes its blocks.
        """
        head = dict(self.head)
        if seconds_per_item is not None:  # there are results: `auto` is settled for good
            head = {**self.settled_head(), "seconds_per_item": seconds_per_item}
        head["last_run"] = self.run_id
        self.ledger.compact(head)
        self.ledger.write_json(self.of_run("summary.json"), summary)
        self._sweep(self.run_id)

    def settled_head(self) -> dict[str, Any]:
        """`latest.json` with what `auto` means from now on."""
        bound = dict(self.head.get("auto", {}))
        if self.config.device == "auto":
            bound["device"] = self.device
        if self.config.precision == "auto":
            bound["precision"] = self.precision
        return {**self.head, "auto": bound}

    def _sweep(self, run_id: str) -> None:
        sides = self.config.storage
        _staged(sides.output, self.output, run_id).sweep()
        _staged(sides.report or sides.output, self.ledger.uri, run_id).sweep()


def _settle_auto(
    config: UpscaleConfig, bound: Mapping[str, Any], auto_device: Callable[[], str]
) -> tuple[Device, Precision]:
    """What `auto` means: decided once per output, then the same every night."""
    device = config.device if config.device != "auto" else bound.get("device") or auto_device()
    precision = config.precision
    if precision == "auto":
        precision = bound.get("precision") or auto_precision(device)
    return cast(Device, device), cast(Precision, precision)


def auto_precision(device: str) -> Precision:
    """The fastest precision of this kind of device that nobody sees the difference of.

    On CPUs bf16 where a matrix product in it is faster than in fp32: with AMX, and on AMD with
    AVX512-BF16 (measured 2.7 times). Intel's AVX512-BF16 without AMX takes nearly twice as long as
    fp32 (measured on an Emerald Rapids whose AMX was hidden by the hypervisor).
    """
    if device == "cuda":
        return "fp16"
    facts = Path("/proc/cpuinfo")
    words = set(facts.read_text().split()) if facts.exists() else set[str]()
    fast = "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
    return "bf16" if fast else "fp32"


def source_store(side: SourceSide) -> Store:
    """What sources are read through: it refuses what a manifest may not ask for."""
    public_only = "private" not in side.allow
    return Store(side.fsspec_options(), only=side.families, public_only=public_only)


def _store(side: Side) -> Store:
    return Store(side.fsspec_options())


def _staged(side: Side, root: str, run_id: str) -> Store:
    """A store to publish to: local files are staged below their root, on its file system."""
    folder = uris.join(root, f"{local.STAGING}/{run_id}")
    staging = folder if uris.is_local(root) else None
    return Store(side.fsspec_options(), staging=staging)


def _lives(environment: Mapping[str, Any]) -> bool:
    """Whether a run that never noted its end may still be under way: a day long, elsewhere."""
    if environment.get("host") == platform.node():
        return Path(f"/proc/{environment.get('pid')}").exists()
    return time.time() - environment.get("started", 0.0) < _A_DAY_S


def _environment() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": time.time(),
        "remaster": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _VERSIONED},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
