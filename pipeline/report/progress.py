"""How far a run is: a bar on a terminal, else a line every few seconds."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

from pipeline.report.summary import Tally


class Progress:
    """Shows a tally against a total; `tick` may come from another thread than `close`."""

    def __init__(self, total: int, tally: Tally, stream: TextIO = sys.stderr) -> None:
        self._total = total
        self._tally = tally
        self._stream = stream
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar = tqdm(total=total, unit="img", file=stream) if stream.isatty() else None

    def tick(self) -> None:
        """Shows how things stand now."""
        if self._bar is None:
            print(self.line(), file=self._stream, flush=True)
            return
        self._bar.set_postfix_str(self._rates(time.monotonic() - self._start))
        self._bar.update(self._tally.seen - self._bar.n)

    def close(self) -> None:
        """Shows the end; a bar is finished."""
        if self._bar is not None:
            self.tick()
            self._bar.close()

    def line(self) -> str:
        """For example `12/200 done, 1.9 img/s, 0.7 Mpx/s, 1 failed, 1:39 left`."""
        tally, now = self._tally, time.monotonic()
        seconds = now - self._start
        if not tally.seen:
            return f"0/{self._total} done, waiting for the first results ({seconds:.0f} s)"
        speed = f"{tally.seen / seconds:.1f} img/s, {self._rates(seconds)}"
        return f"{tally.seen}/{self._total} done, {speed}, {self._left(now)} left"

    def _left(self, now: float) -> str:
        """From the pace since the first outcomes: before them everything was starting."""
        seen = self._tally.seen
        if self._first is None and seen:
            self._first = (now, seen)
        if self._first is None or seen == self._first[1]:
            return "?"
        pace = (now - self._first[0]) / (seen - self._first[1])
        return _clock((self._total - seen) * pace)

    def _rates(self, seconds: float) -> str:
        megapixels = self._tally.input_pixels / 1e6 / seconds
        return f"{megapixels:.2f} Mpx/s, {self._tally.failed} failed"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
