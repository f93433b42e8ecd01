"""From seconds and pixels to what a person compares: pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one process did with the pictures.

    work_s: from the loaded network to the last result. device_s: in the network, with the copies to
    and from the device, added up over the workers. peak_bytes: the most memory held, on CUDA what
    torch allocated, else resident memory above that at the start of the work; None where unknown.
    """

    pictures: int
    input_pixels: float
    output_pixels: float
    work_s: float
    device_s: float
    peak_bytes: int | None
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One process of a contender. host_bytes: resident memory of it and all that it started."""

    work: Work
    process_s: float
    host_bytes: int


@dataclass(slots=True)
class Entry:
    """A contender and what became of it on one set of pictures.

    levels: largest difference of its results to those of `plain`, of 255.
    """

    name: str
    precision: str
    trials: list[Trial] = field(default_factory=list[Trial])
    levels: int | None = None
    error: str | None = None

    @property
    def with_start(self) -> bool:
        """Whether it is a whole command: its start, its files and its codecs count."""
        return self.name != "engine"

    def seconds(self) -> list[float]:
        """What its rate is counted by, in each round."""
        return [t.process_s if self.with_start else t.work.work_s for t in self.trials]


def row(
    entry: Entry, plain: Entry | None, survey: Mapping[str, Any], price_per_hour: float | None
) -> dict[str, Any]:
    """All figures of a contender, as in the JSON; medians over the rounds.

    plain: the yardstick, if it took part. survey: of `survey.survey`. price_per_hour: of the
    machine.
    """
    known: dict[str, Any] = {"contender": entry.name, "precision": entry.precision}
    known |= {"error": entry.error, "trials": [asdict(trial) for trial in entry.trials]}
    if entry.error or not entry.trials:
        return known
    seconds, work = entry.seconds(), entry.trials[0].work
    rates = [work.pictures / value for value in seconds]
    rate = median(rates)
    input_rate = rate * work.input_pixels / work.pictures
    flop_rate = input_rate * survey["flop_per_input_pixel"]
    peak = survey["product_flop_per_s"][entry.precision] * work.workers
    busy = [t.work.device_s / work.workers for t in entry.trials]
    return known | {
        "pictures": work.pictures,
        "images_per_s": rate,
        "images_per_s_range": [min(rates), max(rates)],
        "times_plain": _times(entry, plain),
        "input_megapixels_per_s": input_rate / 1e6,
        "output_megapixels_per_s": rate * work.output_pixels / work.pictures / 1e6,
        "tflop_per_s": flop_rate / 1e12,
        "share_of_peak": flop_rate / peak,
        "device_busy_share": median(b / s for b, s in zip(busy, seconds, strict=True)),
        "start_s": median(t.process_s - t.work.work_s for t in entry.trials),
        "peak_bytes": _most(trial.work.peak_bytes for trial in entry.trials),
        "host_bytes": _most(trial.host_bytes for trial in entry.trials),
        "largest_difference": entry.levels,
        "per_million_images": price_per_hour and price_per_hour / 3600 / rate * 1e6,
    }


def _times(entry: Entry, plain: Entry | None) -> float | None:
    """How many times faster than plain in the same round; the bare engine, than its network."""
    if plain is None or plain.error:
        return None
    pairs = zip(plain.trials, entry.trials, entry.seconds(), strict=True)
    return median(
        (yardstick.process_s if entry.with_start else yardstick.work.device_s) / seconds
        for yardstick, _, seconds in pairs
    )


def _most(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)


def heading(model: str, survey: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    peaks = ", ".join(f"{n} {v / 1e12:.3g}" for n, v in survey["product_flop_per_s"].items())
    return (
        f"{model} on {survey['device_name']} ({survey['device']}), torch {survey['torch']}, "
        f"{survey['threads']} threads\n"
        f"{survey['flop_per_input_pixel'] / 1e6:.3g} MFLOP per input pixel; best matrix product, "
        f"TFLOP/s: {peaks}"
    )


COLUMNS = (
    "CONTENDER",
    "PRECISION",
    "IMAGES/S",
    "RANGE",
    "TIMES PLAIN",
    "MPX/S IN",
    "MPX/S OUT",
    "TFLOP/S",
    "OF PEAK",
    "BUSY",
    "PEAK MB",
    "HOST MB",
    "DIFFERS",
    "PER MILLION",
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned text, a contender a line, below a heading; what failed says why."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines if len(line) > 3) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < 2 or len(line) == 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in lines
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["error"]:
        return row["contender"], row["precision"], f"failed: {row['error']}"
    low, high = row["images_per_s_range"]
    return (
        row["contender"],
        row["precision"],
        _short(row["images_per_s"]),
        f"{_short(low)}-{_short(high)}",
        _short(row["times_plain"]),
        _short(row["input_megapixels_per_s"]),
        _short(row["output_megapixels_per_s"]),
        _short(row["tflop_per_s"]),
        f"{row['share_of_peak']:.0%}",
        f"{row['device_busy_share']:.0%}",
        _megabytes(row["peak_bytes"]),
        _megabytes(row["host_bytes"]),
        "-" if row["largest_difference"] is None else str(row["largest_difference"]),
        _short(row["per_million_images"]),
    )


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"
