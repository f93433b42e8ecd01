"""How often an item took its worker down: counted in an actor on the driver's node.

A worker begins an item here before it touches a byte of it, and ends it whatever became of it; what
was begun and never ended was under way when its worker died. With several items under way the
innocent are suspects too, so suspects run alone, and the count tells them apart. A verdict does not
end an item: until its row has reached the driver the block may run once more, and two such items in
one block would acquit each other for ever.
"""

from collections import Counter
from collections.abc import Sequence


class AttemptLedger:
    """Counts of begun and never ended items. One call at a time, in each caller's order."""

    def __init__(self) -> None:
        self._open = Counter[str]()

    def begin(self, item_id: str) -> None:
        """To be awaited before the item is touched: a crash can follow within a millisecond."""
        self._open[item_id] += 1

    def end(self, item_id: str) -> None:
        """The item is over, done or failed; its worker lives."""
        del self._open[item_id]

    def crashes(self, item_ids: Sequence[str]) -> dict[str, int]:
        """Of these items the suspects: how often each was under way when its worker died."""
        return {item_id: self._open[item_id] for item_id in item_ids if item_id in self._open}
