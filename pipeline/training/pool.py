"""Pairs of earlier steps, mixed with those of this one.

What a lane makes in one step shares a resize and a kind of noise; what it trains on should not. The
recipe's pool: X. Wang et al., "Real-ESRGAN" (2021), section 4.1, "training pair pool".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError


class Pool:
    """Up to so many pairs of one lane, on the device that they come from."""

    def __init__(self, capacity: int) -> None:
        """capacity: pairs, a multiple of the batch; 0 hands every batch through as it is."""
        self._capacity = capacity
        self._fill = 0
        self._targets: Tensor | None = None
        self._inputs: Tensor | None = None

    def exchange(
        self, rng: np.random.Generator, targets: Tensor, inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As many pairs, drawn from all that are held; the batch takes their places.

        While the pool fills, the batch itself; it is kept as well.
        rng: drawn from by a full pool only. targets: (n, 3, H, W) uint8. inputs: (n, 3, h, w)
        uint8. Raises ValueError when the capacity is no multiple of n.
        """
        if not self._capacity:
            return targets, inputs
        count = len(targets)
        if self._capacity % count:
            raise ValueError(f"a pool of {self._capacity} is no multiple of a batch of {count}")
        self._targets = _room(self._targets, self._capacity, targets)
        self._inputs = _room(self._inputs, self._capacity, inputs)
        if self._fill < self._capacity:
            places = slice(self._fill, self._fill + count)
            self._targets[places], self._inputs[places] = targets, inputs
            self._fill += count
            return targets, inputs
        # The recipe shuffles all and takes the first: the same draw, without moving the others.
        drawn = rng.choice(self._capacity, count, replace=False)
        places = torch.from_numpy(drawn).to(targets.device)
        pairs = self._targets[places], self._inputs[places]
        self._targets[places], self._inputs[places] = targets, inputs
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """`fill`, the pairs that are held, and unless that is 0 their `targets` and `inputs`.

        The tensors are copies: torch.save would write all of what a view is a part of.
        """
        if self._targets is None or self._inputs is None:
            return {"fill": 0}
        return {
            "fill": self._fill,
            "targets": self._targets[: self._fill].clone(),
            "inputs": self._inputs[: self._fill].clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Holds what `state_dict` gave, on any device. Raises ConfigError when it does not fit."""
        fill = int(state["fill"])
        if fill > self._capacity:
            raise ConfigError(
                f"the checkpoint's pool holds {fill} pairs, there is room for {self._capacity} "
                "(pool)"
            )
        self._fill, self._targets, self._inputs = fill, None, None
        if fill:
            self._targets = _room(None, self._capacity, state["targets"])
            self._inputs = _room(None, self._capacity, state["inputs"])
            self._targets[:fill], self._inputs[:fill] = state["targets"], state["inputs"]


def _room(held: Tensor | None, capacity: int, batch: Tensor) -> Tensor:
    """What is held, on the batch's device; at first, room for pictures like the batch's."""
    if held is None:
        return batch.new_empty((capacity, *batch.shape[1:]))
    return held.to(batch.device)
