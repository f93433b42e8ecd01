"""A decoded picture: its samples, and what its header said."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(height, width, channels), 0 to 255; 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha (straight)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the file's header says, before anything is decoded."""

    format: str
    """png, jpeg, webp or tiff."""
    mode: str
    """The colour model and layout of the samples as stored, by Pillow's name."""
    bit_depth: int
    """Bits a sample; of the index in a palette picture."""
    frames: int
    width: int
    """Pixels as stored, before the orientation is applied."""
    height: int
    channels: int
    """Of the decoded picture, 1 to 4."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture the right way up."""

    pixels: Pixels
    facts: Facts
    icc_profile: bytes | None
    """The embedded colour profile, byte for byte; the samples stay in its space."""
    dpi: tuple[float, float] | None
    warnings: tuple[str, ...]
    """What the file said and the result will not say."""

    @property
    def width(self) -> int:
        """Pixels, the right way up."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels, the right way up."""
        return self.pixels.shape[0]
