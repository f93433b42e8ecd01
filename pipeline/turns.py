"""What the items under way in a worker take turns at, beside its locks."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Budget:
    """Bytes that may be held at once; what is larger than all of it is let in alone."""

    limit: int
    _held: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _freed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def held(self, amount: int) -> Generator[None]:
        """Waits until there is room for so many bytes, and has them until it is left."""
        # One waits for room and the others for their turn: small ones do not pass by a large one.
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self._held or self._held + amount <= self.limit)
            self._held += amount
        try:
            yield
        finally:
            with self._freed:
                self._held -= amount
                self._freed.notify_all()


class Company:
    """Items under way together, or one of them alone: a lock with many readers, one writer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._joined = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def joined(self) -> Generator[None]:
        """Together with others; waits while someone is alone, or waiting to be."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._joined += 1
        try:
            yield
        finally:
            with self._changed:
                self._joined -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """With nobody else inside; waits until all have left."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._alone and not self._joined)
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
