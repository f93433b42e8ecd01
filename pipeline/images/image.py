"""A decoded picture: its samples, what its header said of them, and what else the file says."""

from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(height, width, channels), 0 to 255; 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha (straight)."""
Samples = NDArray[np.uint8] | NDArray[np.uint16]
"""`Pixels`, or the same in 16 bits, 0 to 65,535."""


def eight_bit(samples: Samples) -> Pixels:
    """The same in 8 bits, each rounded to the nearest level."""
    if samples.dtype == np.uint8:
        return cast(Pixels, samples)
    return ((samples.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)


Colour = Literal["bilevel", "gray", "rgb", "palette", "cmyk", "ycck", "lab", "other"]
Alpha = Literal["none", "straight", "premultiplied", "transparent_colour"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the file's header says, before anything is decoded."""

    format: str
    """png, jpeg, webp, tiff, jpeg2000, gif, bmp or pnm."""
    mode: str
    """The colour model and layout of the samples as stored, by Pillow's name; the report's
    `source_mode`. Above 8 bits with the bits behind a semicolon: `RGB;16`."""
    bit_depth: int
    """Bits a sample; of the index in a palette picture, unless the entries have more than 8."""
    frames: int
    """Pages of a TIFF, frames of an animation."""
    width: int
    """Pixels as stored, before the orientation is applied."""
    height: int
    channels: int
    """Of the decoded picture, 1 to 4."""
    colour: Colour = "rgb"
    """As stored."""
    alpha: Alpha = "none"
    """As stored; `transparent_colour` is PNG's tRNS, GIF's and palettes' transparent entries."""
    orientation: int = 1
    """EXIF's, 1 to 8: how the samples have to be turned to be the right way up."""
    stored_channels: int = 0
    """Samples a pixel of a TIFF, with those that mean nothing to us. 0: `channels` or fewer."""
    metadata_bytes: int = field(default=0, compare=False)
    """Of what the file says beside its samples, inflated. Only probes count it, and of pages no
    further than `limits.max_metadata_bytes`, as decoding ends there."""

    @property
    def sample_bytes(self) -> int:
        """Of a decoded sample: 1, or 2 above 8 bits."""
        return 2 if self.bit_depth > 8 else 1


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a file says beside its samples, as it stands there, without its container's wrapping."""

    icc_profile: bytes | None = None
    """The embedded colour profile; the samples stay in its space."""
    exif: bytes | None = None
    """A TIFF stream (`II*\\0` or `MM\\0*` and so on), without JPEG's `Exif\\0\\0`."""
    xmp: bytes | None = None
    """An XMP packet, UTF-8."""
    iptc: bytes | None = None
    """IPTC-IIM records, without Photoshop's image resource around them."""
    dpi: tuple[float, float] | None = None
    """Pixels an inch, across and down; None where the file says none, or no unit."""
    aspect: float | None = None
    """Where there is no unit: pixels across for as many down in the same length, if not 1."""
    mark: bytes | None = None
    """Of a result: an XMP packet with our own statements alone, for where no other fits."""

    @property
    def bytes(self) -> int:
        """Of all blocks together."""
        return sum(len(one) for one in (self.icc_profile, self.exif, self.xmp, self.iptc) if one)


@dataclass(frozen=True, slots=True)
class Image:
    """A picture the right way up: of several pages, one."""

    pixels: Samples
    facts: Facts
    metadata: Metadata = field(default_factory=Metadata)
    """Upright like the pixels: dpi across and down as they are now. EXIF still has its tags as
    the file had them, the orientation included."""
    warnings: tuple[str, ...] = ()
    """Codes of what was decided or missing while reading."""

    @property
    def width(self) -> int:
        """Pixels, the right way up."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels, the right way up."""
        return self.pixels.shape[0]


def check(pixels: Samples, facts: Facts) -> None:
    """Raises ValueError where a picture the right way up is not what its header said."""
    stored = facts.height, facts.width
    wanted = (*(stored[::-1] if facts.orientation > 4 else stored), facts.channels)
    if pixels.shape != wanted or pixels.itemsize != facts.sample_bytes:
        message = f"{pixels.shape} samples of {8 * pixels.itemsize} bits"
        raise ValueError(f"{message}, not {wanted} of {8 * facts.sample_bytes}")
