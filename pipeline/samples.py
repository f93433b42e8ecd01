"""Pictures for the demo and the tests: drawn by this module, then degraded as archives do it.

    python -m pipeline.samples FOLDER

Each is drawn `SUPER` times finer than `drawings` yields it, in each direction, which antialiases
it; all coordinates below are of that fine surface. `write` then blurs, reduces, adds noise and
compresses, and leaves files. Nothing is copied from anywhere, text included.
"""

import argparse
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Pixels = NDArray[np.uint8]
Field = NDArray[np.floating]
Point = tuple[float, float]

SUPER = 2


def _pixels(fine: Image.Image) -> Pixels:
    return np.asarray(fine.reduce(SUPER))


def _image(colours: Field) -> Image.Image:
    """colours: (H, W, 3), 0..255 and clipped to that."""
    return Image.fromarray(np.clip(colours + 0.5, 0, 255).astype(np.uint8))


def _grid(width: int, height: int) -> tuple[Field, Field]:
    """x (1, W) and y (H, 1)."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    return x[None, :], y[:, None]


def _mix(a: ArrayLike, b: ArrayLike, share: Field) -> Field:
    """From colour a (share 0) to b (share 1), 0..255: share's shape and an axis of 3 after it."""
    t = np.clip(share, 0, 1)[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def _fade(values: Field, start: float, end: float) -> Field:
    """0 at start, 1 at end, smooth between; start may be the larger."""
    t = np.clip((values - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _fractal(rng: Generator, shape: tuple[int, ...], beta: float, stretch: float = 1.0) -> Field:
    """Noise whose amplitude falls as 1/frequency^beta: mean 0, deviation 1, periodic.

    Spectral synthesis (Saupe, in Peitgen & Saupe, The Science of Fractal Images, 1988).
    stretch: how much longer its features are along the last axis than along the others.
    """
    axes = [np.fft.fftfreq(n, 1 / n) for n in shape[:-1]]
    axes.append(np.fft.rfftfreq(shape[-1], 1 / shape[-1]) * stretch)
    squared = sum(np.square(f) for f in np.meshgrid(*axes, indexing="ij", sparse=True))
    spectrum = np.fft.rfftn(rng.standard_normal(shape, np.float32))
    spectrum *= np.maximum(squared, 1.0) ** (-beta / 2)
    noise = np.fft.irfftn(spectrum, shape, range(len(shape))).astype(np.float32)
    return (noise - noise.mean()) / noise.std()


# Landscape ------------------------------------------------------------------------------------

DARK = (16, 20, 28)


def landscape(rng: Generator) -> Pixels:
    """Mountains over a lake at dusk, 1280 x 800."""
    x, y = _grid(2560, 1600)
    shore = 1024
    above = _mountains(rng, _sky(rng, x, y[:shore]), y[:shore])
    fine = _image(np.concatenate([above, _reflection(rng, above, y.size - shore)]))
    pen = ImageDraw.Draw(fine)
    _banks(rng, pen)
    _branch(rng, pen, (420, 1490), angle=-1.5, length=188)
    return _pixels(fine)


def _sky(rng: Generator, x: Field, y: Field) -> Field:
    distance = np.hypot(x - 1750, y - 400)
    colours = _mix((44, 66, 122), (158, 146, 182), y / 600)
    colours = _mix(colours, (255, 190, 132), _fade(y, 260, 900))
    colours = _mix(colours, (255, 214, 150), 0.9 * np.exp(-distance / 230))
    clouds = _fade(_fractal(rng, distance.shape, beta=1.7, stretch=4), 0.2, 1.8)
    lit = _mix((214, 170, 178), (255, 226, 176), np.exp(-distance / 540))
    colours = _mix(colours, lit, 0.75 * clouds * _fade(y, 0, 320))
    return _mix(colours, (255, 246, 214), _fade(distance, 74, 71))


def _mountains(rng: Generator, colours: Field, y: Field) -> Field:
    """Four ranges, each lit from the sun's side; the far ones hazy, the farthest under snow."""
    relief = _fractal(rng, colours.shape[:2], beta=1.9)
    slope = np.gradient(relief, axis=1) + 0.5 * np.gradient(relief, axis=0)
    haze, rock = (212, 166, 160), (30, 36, 58)
    for near, base, height in ((0, 620, 125), (0.4, 752, 92), (0.75, 892, 64), (1, 992, 30)):
        ridge = base - height * _fractal(rng, (slope.shape[1],), beta=1.55)[None, :]
        light = 0.5 + 0.25 * np.roll(slope, round(1994 * near), axis=1) / slope.std()
        face = _mix(_mix((150, 126, 158), rock, np.array(near)), haze, 0.5 * light)
        if near == 0:
            snow = _fade(y - ridge + 60 * relief, 300, 120)
            face = _mix(face, _mix((140, 142, 190), (255, 238, 226), light), snow)
        mist = _fade(y, base - 120, base + 220) * (0.75 - 0.5 * near)
        colours = np.where((y > ridge)[..., None], _mix(face, haze, mist), colours)
    return colours


def _reflection(rng: Generator, above: Field, rows: int) -> Field:
    """The lake: what is above it upside down, broken by ripples that grow towards us."""
    height, width = above.shape[:2]
    depth = np.arange(rows, dtype=np.float32)[:, None]
    ripple = _fractal(rng, (rows, width), beta=1.1, stretch=10) * (2 + 0.06 * depth)
    row = np.clip(height - 1 - 1.3 * depth + 2 * ripple, 0, height - 1).astype(np.intp)
    column = np.clip(np.arange(width) + 0.6 * ripple, 0, width - 1).astype(np.intp)
    return _mix(above[row, column], (24, 40, 74), 0.16 + 0.4 * depth / rows)


def _banks(rng: Generator, pen: ImageDraw.ImageDraw) -> None:
    """Conifers on the far bank; on ours a hill with grass."""
    for x in rng.uniform(0, 2560, 90):
        height = 18 + 64 * rng.random() ** 2
        for tier in np.linspace(0, 0.85, 6):
            half, foot = height * (0.26 - 0.24 * tier), 1030 - height * tier
            tip = (x, foot - 0.34 * height)
            pen.polygon([(x - half, foot), tip, (x + half, foot)], "#1a202c")
    along = np.arange(0, 2580, 20)
    hill = 1580 - 148 * np.exp(-(((along - 300) / 660) ** 2)) - 18 * _fractal(rng, along.shape, 1.2)
    pen.polygon([(0, 1600), *zip(along.tolist(), hill.tolist(), strict=True), (2560, 1600)], DARK)
    for x in rng.uniform(0, 2560, 420):
        foot = np.interp(x, along, hill) + 6
        pen.line([(x, foot), (x + rng.normal(0, 14), foot - rng.uniform(12, 60))], DARK, 2)


def _branch(
    rng: Generator, pen: ImageDraw.ImageDraw, foot: Point, *, angle: float, length: float
) -> None:
    """A tree by recursion: each branch ends in two or three shorter ones, the last in leaves."""
    tip = (foot[0] + length * np.cos(angle), foot[1] + length * np.sin(angle))
    pen.line([foot, tip], DARK, max(1, round(length / 9)))
    if length < 16:
        pen.circle(tip, rng.uniform(3, 8), DARK)
        return
    for turn in (-0.42, 0.38, 0.02)[: rng.integers(2, 4)]:
        bend = angle + turn + rng.normal(0, 0.13)
        _branch(rng, pen, tip, angle=bend, length=length * rng.uniform(0.66, 0.8))


# Still life -----------------------------------------------------------------------------------

BALLS = (  # centre (x, y, z; the floor is y = 0), radius, colour, share that it mirrors
    ((-1.25, 0.80, 0.50), 0.80, (214, 62, 48), 0.12),
    ((0.55, 1.00, 1.30), 1.00, (222, 226, 232), 0.65),
    ((1.55, 0.52, -0.50), 0.52, (44, 112, 190), 0.15),
    ((0.10, 0.36, -0.90), 0.36, (240, 186, 60), 0.10),
    ((-0.62, 0.24, -1.35), 0.24, (62, 150, 96), 0.10),
)
LIGHT = np.array((-0.52, 0.72, -0.46), np.float32)
TILES = np.array(((1.1, 0.5), (0, 0), (-0.5, 1.1)), np.float32)


def still_life(_: Generator) -> Pixels:
    """Balls on a checkered floor by ray tracing, 800 x 600."""
    x, y = _grid(1600, 1200)
    ray = np.stack(np.broadcast_arrays(x - 800, 340 - y, np.float32(1380)), axis=-1)
    ray = (ray / np.linalg.norm(ray, axis=-1, keepdims=True)).astype(np.float32)
    eye = np.full_like(ray, (0, 1.55, -4.9))
    seen = _trace(eye.reshape(-1, 3), ray.reshape(-1, 3), bounces=1)
    return _pixels(_image(seen.reshape(ray.shape)))


def _trace(start: Field, ray: Field, bounces: int) -> Field:
    """Colours (N, 3) that rays from start (N, 3) along the unit vectors ray (N, 3) meet."""
    colours = _mix((236, 226, 214), (120, 150, 190), 1.6 * ray[:, 1] + 0.05)
    nearest = np.where(ray[:, 1] < 0, start[:, 1] / np.maximum(-ray[:, 1], 1e-4), np.inf)
    hit = np.flatnonzero(nearest < 40)
    at = start[hit] + nearest[hit, None] * ray[hit]
    odd = np.floor(at @ TILES).sum(axis=1) % 2
    floor = _mix((232, 222, 204), (84, 66, 62), odd) * (0.35 + 0.65 * _sunlight(at))[:, None]
    colours[hit] = _mix(floor, (226, 220, 212), _fade(nearest[hit], 6, 34))
    for centre, radius, colour, mirror in BALLS:
        to = start - np.array(centre, np.float32)
        along = _dot(to, ray)
        inside = along**2 - _dot(to, to) + radius**2
        distance = -along - np.sqrt(np.maximum(inside, 0))
        hit = np.flatnonzero((inside > 0) & (distance > 1e-3) & (distance < nearest))
        nearest[hit] = distance[hit]
        normal = (to[hit] + distance[hit, None] * ray[hit]) / radius
        at = start[hit] + distance[hit, None] * ray[hit] + 1e-3 * normal
        colours[hit] = _shade(at, normal, ray[hit], colour, mirror, bounces)
    return colours


def _dot(a: Field, b: Field) -> Field:
    return np.einsum("ni,ni->n", a, b)


def _shade(
    at: Field, normal: Field, ray: Field, colour: ArrayLike, mirror: float, bounces: int
) -> Field:
    """A ball's surface: diffuse light, what it mirrors, and the light's highlight."""
    cosine = _dot(ray, normal)
    reflected = ray - 2 * cosine[:, None] * normal
    sun = np.clip(normal @ LIGHT, 0, 1) * _sunlight(at)
    shade = (0.3 + 0.14 * normal[:, 1] + 0.72 * sun)[:, None] * np.asarray(colour, np.float32)
    if bounces and at.size:  # it mirrors more at a grazing angle (Schlick 1994)
        share = mirror + (1 - mirror) * (1 - np.abs(cosine)) ** 5
        shade = _mix(shade, _trace(at, reflected, bounces - 1), 0.9 * share)
    return shade + 190 * (np.clip(reflected @ LIGHT, 0, 1) ** 60 * (sun > 0))[:, None]


def _sunlight(at: Field) -> Field:
    """Share of the light (0..1) that reaches the points (N, 3); shadows have soft edges."""
    share = np.ones(len(at), np.float32)
    for centre, radius, *_ in BALLS:
        to = np.array(centre, np.float32) - at
        along = to @ LIGHT
        gap = np.sqrt(np.maximum(_dot(to, to) - along**2, 0)) - radius
        softness = 0.02 + 0.12 * np.maximum(along, 0)
        share *= np.where(along > 0, _fade(gap / softness, -1, 1), 1)
    return share


# Flat sheets ----------------------------------------------------------------------------------

STORY = """\
When the last reader has gone home, the machines turn the lamps down and begin. Sheet by sheet
they lift what the years have blurred: a ship's name on a stern, the grain of a quay, a face at
the rail. Nothing is invented that the plate does not hold; nothing that it holds is lost. By
morning each drawer has its report, one line for every picture, and the harbour is sharp again."""


def page(_: Generator) -> Pixels:
    """A typeset page, black on white, from a headline down to small print, 720 x 960."""
    fine = Image.new("RGB", (1440, 1920), "white")
    pen = ImageDraw.Draw(fine)
    title, motto = ImageFont.load_default(124), ImageFont.load_default(64)
    pen.text((720, 210), "The Harbour Archive", "black", title, "ms")
    pen.text((720, 310), "restored by night, plate by plate", "black", motto, "ms")
    pen.line([(120, 360), (1320, 360)], "black", 6)
    top = 390
    for size, letters in ((52, 49), (40, 66), (29, 90), (20, 132)):
        lines, font = textwrap.fill(STORY, letters), ImageFont.load_default(size)
        pen.text((120, top), lines, "black", font, spacing=0.5 * size, align="justify")
        top = pen.textbbox((120, top), lines, font, spacing=0.5 * size)[3] + 0.8 * size
    return _pixels(fine)


def chart(_: Generator) -> Pixels:
    """Zone plate, Siemens star, gratings, colours and grays, 960 x 720."""
    x, y = _grid(1920, 1440)
    zone, star = np.hypot(x - 480, y - 480), np.hypot(x - 1440, y - 480)
    # The rims have 9 and 19 clean pixels a cycle: a reduction by four just keeps the first.
    gray = np.where(zone < 432, 0.5 + 0.5 * np.cos(np.pi * zone**2 / (18 * 432)), 0.5)
    gray = np.where(star < 432, np.sin(72 * np.arctan2(y - 480, x - 1440)) > 0, gray)
    cell = np.clip((x - 48) // 228, 0, 7).astype(np.intp)
    inside = (x - 48) % 228
    period = np.array((16, 18, 20, 24, 32, 40, 56, 72))[cell]
    bars = np.where(inside < 216, inside % period < period / 2, 0.5)
    gray = np.where((y > 960) & (y < 1110), bars, gray)
    gray = np.where((y > 1280) & (y < 1340), cell / 7, gray)
    gray = np.where((y > 1340) & (y < 1400), (x - 48) / 1824, gray)
    gray = np.where((x > 48) & (x < 1872), gray, 0.5)
    fine = _image(np.repeat(255 * gray[..., None], 3, axis=-1))
    pen = ImageDraw.Draw(fine)
    for i, hue in enumerate((4, 28, 48, 130, 186, 216, 280, 330)):
        pen.rectangle((48 + 228 * i, 1122, 263 + 228 * i, 1268), f"hsl({hue}, 68%, 45%)")
    return _pixels(fine)


def engraving(rng: Generator) -> Pixels:
    """A nautilus in ink: spirals, hatching, septa and a guilloche, 800 x 800."""
    ink, fine = (46, 34, 30), Image.new("RGB", (1600, 1600), (243, 234, 214))
    pen, around = ImageDraw.Draw(fine), np.linspace(0, 2 * np.pi, 1440)
    for phase in np.linspace(0, 2 * np.pi, 7)[:-1]:
        pen.line(_polar((800, 800), 738 + 34 * np.sin(36 * around + phase), around), ink, 3)
    for corner in ((130, 130), (130, 1470), (1470, 130), (1470, 1470)):
        pen.line(_polar(corner, np.linspace(4, 92, 1440), 3 * around), ink, 5, joint="curve")
    for angle in np.arange(-0.04, -15, -0.02):
        tone = 0.16 + 0.3 * np.cos(angle - 0.9) ** 2 + rng.normal(0, 0.025)
        pen.line(_across(angle, np.array((0, tone)), 0.25), ink, 2)
    for angle, bend in ((0, -0.12), *((a, 0.5) for a in np.arange(-1.75, -15, -0.27))):
        pen.line(_across(angle, np.linspace(0, 1, 60), bend), ink, 6, joint="curve")
    spiral = np.linspace(0, -20, 2400)
    pen.line(_polar(SHELL, _whorl(spiral), spiral), ink, 11, joint="curve")
    return _pixels(fine)


SHELL = (640, 930)


def _whorl(angle: Field) -> Field:
    """Radius of the shell's outline: it triples each turn, as a nautilus's does."""
    return 770 * 3 ** (angle / (2 * np.pi))


def _across(angle: float, share: Field, bend: float) -> list[Point]:
    """A bent line from the whorl at angle (share 0) inwards to the whorl before it (share 1)."""
    ends = _whorl(np.array((angle, angle - 2 * np.pi)))
    radius = ends[0] * (1 - share) + ends[1] * share
    return _polar(SHELL, radius, angle - bend * np.sin(np.pi * share))


def _polar(centre: Point, radius: Field, angle: Field) -> list[Point]:
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return list(zip(x.tolist(), y.tolist(), strict=True))


BOAT = (  # polygons of the fine surface, from the back to the front
    ("#8c5c38", ((784, 180), (804, 180), (804, 800), (784, 800))),
    ("#faf4e6", ((768, 220), (768, 732), (432, 732))),
    ("#e04a3e", ((820, 192), (820, 732), (1144, 732))),
    ("#faf4e6", ((820, 400), (945, 400), (1024, 532), (820, 532))),
    ("#964634", ((400, 780), (1200, 780), (1080, 990), (520, 990))),
    ("#f0d6a0", ((400, 780), (1200, 780), (1172, 824), (428, 824))),
)


def boat(rng: Generator) -> Pixels:
    """A sailing boat in flat colours within outlines, as in animation, 800 x 600."""
    ink, fine = "#1c2a44", Image.new("RGB", (1600, 1200), "#7ec8e8")
    pen = ImageDraw.Draw(fine)
    pen.circle((1300, 250), 134, "#ffe27a", ink, 10)
    for x, y, size in ((340, 300, 1.0), (1010, 170, 0.7), (1400, 480, 0.8)):
        lift = rng.normal(0, 16, 5)
        for rim, fill in ((10, ink), (0, "white")):
            for i in range(-2, 3):
                puff = (x + 92 * size * i, y + lift[i])
                pen.circle(puff, size * (104 - 26 * abs(i)) + rim, fill)
    x = np.linspace(0, 1600, 200)
    for i, sea in enumerate(("#348cbe", "#2670aa", "#1a5492")):
        for fill, points in BOAT if i == 1 else ():
            pen.polygon(points, fill)
            pen.line([*points, *points[:2]], ink, 10, joint="curve")
        y = 800 + 124 * i + (22 + 10 * i) * np.sin(x / (88 + 32 * i) + rng.uniform(0, 6))
        crest = list(zip(x.tolist(), y.tolist(), strict=True))
        pen.polygon([(0, 1200), *crest, (1600, 1200)], sea)
        pen.line(crest, ink, 10, joint="curve")
    return _pixels(fine)


def logo(_: Generator) -> Pixels:
    """An emblem with a soft shadow upon nothing, 640 x 640; the fourth channel is alpha."""
    art = Image.new("RGBA", (1280, 1280))
    pen = ImageDraw.Draw(art)
    pen.circle((640, 520), 440, "#f5f0e1")
    pen.circle((820, 380), 90, "#e8873a")
    stairs = [(640 - 60 * i + 60 * j, 260 + 85 * i) for i in range(6) for j in (0, -1)]
    pen.polygon([*stairs, (280, 770), (1000, 770)], "#1f7a8c")
    pen.chord((170, 50, 1110, 990), 32, 148, "#163a54")
    pen.circle((640, 520), 470, outline="#12486b", width=60)
    pen.text((640, 1180), "REMASTER", "#12486b", ImageFont.load_default(190), "ms", stroke_width=4)
    opaque = art.getchannel("A").filter(ImageFilter.GaussianBlur(18))
    shadow = Image.new("RGBA", art.size, "black")
    shadow.putalpha(ImageChops.offset(opaque.point([level // 2 for level in range(256)]), 12, 18))
    return _pixels(Image.alpha_composite(shadow, art))


# Archive --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """A drawing and how the archive holds it.

    mode: Pillow's name of the file's pixels. blur: deviation in pixels of the file. noise:
    deviation in levels of 255. quality: the encoder's, where it loses something.
    """

    file: str
    draw: Callable[[Generator], Pixels]
    mode: str
    blur: float
    noise: float
    quality: int | None = None


SAMPLES = (
    Sample("landscape.jpg", landscape, "RGB", blur=0.6, noise=3, quality=60),
    Sample("still-life.webp", still_life, "RGB", blur=0.7, noise=3, quality=50),
    Sample("boat.jpg", boat, "RGB", blur=0.6, noise=2, quality=35),
    Sample("page.jpg", page, "L", blur=0.4, noise=4, quality=45),
    Sample("chart.png", chart, "RGB", blur=0.5, noise=3),
    Sample("engraving.png", engraving, "P", blur=0.4, noise=3),
    Sample("logo.png", logo, "RGBA", blur=0.5, noise=2),
)


def drawings(rng: Generator) -> Iterator[tuple[str, Pixels]]:
    """(name, clean drawing): uint8, RGB (H, W, 3); `logo` alone is RGBA (H, W, 4)."""
    for sample, child in zip(SAMPLES, rng.spawn(len(SAMPLES)), strict=True):
        yield Path(sample.file).stem, sample.draw(child)


def degrade(
    rng: Generator, drawing: Pixels, *, blur: float, noise: float, reduction: int = 4
) -> Image.Image:
    """What an archive holds of an RGB or RGBA drawing: blurred, reduced, with noise.

    blur: deviation in pixels of the result; noise: deviation in levels. Alpha gets no noise.
    """
    clean = Image.fromarray(drawing)
    # Premultiplied by alpha, else the colour of what is transparent bleeds into what is not.
    work = clean.convert("RGBa") if clean.mode == "RGBA" else clean
    small = work.filter(ImageFilter.GaussianBlur(blur * reduction)).reduce(reduction)
    levels = np.array(small.convert(clean.mode), np.float32)
    levels[..., :3] += rng.normal(0, noise, levels[..., :3].shape)
    return Image.fromarray(np.clip(levels + 0.5, 0, 255).astype(np.uint8))


def write(folder: Path, *, seed: int = 0) -> list[Path]:
    """Leaves the degraded `drawings(default_rng(seed))` as files, 160 x 160 to 320 x 200 pixels.

    The folder is made where it is missing; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    for sample, (_, drawing) in zip(SAMPLES, drawings(rng), strict=True):
        picture = degrade(rng, drawing, blur=sample.blur, noise=sample.noise)
        picture = picture.quantize(16) if sample.mode == "P" else picture.convert(sample.mode)
        paths.append(folder / sample.file)
        picture.save(paths[-1], quality=sample.quality)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.samples", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="other mountains, other clouds")
    options = parser.parse_args()
    for path in write(options.folder, seed=options.seed):
        print(path)


if __name__ == "__main__":
    main()
