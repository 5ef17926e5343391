"""Draws the miniature world: 64x64 scenes of shapes and portraits.

Everything random is decided by the caller's `numpy` generator, so a picture is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from prompts.world import COLOURS, Dress, Object

SIZE = 64
_SCALE = 4  # drawn at 256 px and averaged down: anti-aliased edges

MONK_TONES: tuple[tuple[int, int, int], ...] = (
    (246, 237, 228),
    (243, 231, 219),
    (247, 234, 208),
    (234, 218, 186),
    (215, 189, 150),
    (160, 126, 86),
    (130, 92, 67),
    (96, 65, 52),
    (58, 49, 42),
    (41, 36, 32),
)
"""The ten tones of the Monk Skin Tone scale as sRGB (skintone.google; values as published there)."""

TONE_GROUPS: tuple[int, ...] = (0, 0, 0, 0, 1, 2, 2, 3, 3, 3)
"""Group of each Monk tone: {1-4}, {5}, {6-7}, {8-10}. Its cuts lie in the widest gaps of the scale
(CIELAB distance 11.5, 23.4 and 13.8); no source fixes a four-way grouping, so this one is declared and kept."""

CLOTHES_RGB: dict[str, tuple[int, int, int]] = COLOURS | {"white": (238, 238, 240), "black": (40, 40, 46)}
WALLS_RGB = ((96, 142, 178), (112, 156, 140), (140, 128, 172))
"""What portraits stand before."""
GREY = 0.62
"""What a dull picture is mixed with, of 1."""
_HAIR = ((28, 24, 22), (70, 44, 26), (120, 78, 40), (186, 144, 80), (150, 150, 154))


@dataclass(frozen=True)
class Placed:
    """An object with its place: centre and radius in pixels, rotation in degrees."""

    what: Object
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Finish:
    """What may be wrong with a picture as a picture: 0 is a crisp, saturated one."""

    dullness: float = 0.0
    """Share of grey mixed in, 0 to 1."""
    blur: float = 0.0
    """Gaussian blur radius in pixels."""


def outline(shape: str, turn_degrees: float = 0.0) -> NDArray[np.float64]:
    """Corners [N, 2] of a shape of radius 1 about the origin, y pointing down."""
    if shape == "circle":
        corners = [(cos(t), sin(t)) for t in np.linspace(0, 2 * pi, 48, endpoint=False)]
        corners = [(0.92 * x, 0.92 * y) for x, y in corners]
    elif shape == "square":
        corners = [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    elif shape == "triangle":
        corners = [(0.0, -1.0), (1.02, 0.84), (-1.02, 0.84)]
    elif shape == "star":
        radii = [1.12 if i % 2 == 0 else 0.46 for i in range(10)]
        corners = [(r * sin(i * pi / 5), -r * cos(i * pi / 5)) for i, r in enumerate(radii)]
    elif shape == "heart":
        ts = np.linspace(0, 2 * pi, 48, endpoint=False)
        corners = [
            (sin(t) ** 3 * 1.02, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 15.5 - 0.12)
            for t in ts
        ]
    elif shape == "cross":
        w, r = 0.33, 1.0
        corners = [(-w, -r), (w, -r), (w, -w), (r, -w), (r, w), (w, w), (w, r), (-w, r), (-w, w), (-r, w)]
        corners += [(-r, -w), (-w, -w)]
    else:
        raise ValueError(f"unknown shape {shape!r}")
    turn = turn_degrees * pi / 180
    rotation = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]])
    turned: NDArray[np.float64] = np.asarray(corners) @ rotation.T
    return turned


def _background(rng: np.random.Generator, chroma: float) -> NDArray[np.float64]:
    """A soft vertical gradient [256, 256, 3] of a light, nearly grey tint."""
    tint = rng.uniform(-chroma, chroma, 3)
    top = rng.uniform(206, 236) + tint
    bottom = top - rng.uniform(4, 22)
    ramp = np.linspace(0, 1, SIZE * _SCALE)[:, None, None]
    return np.broadcast_to((1 - ramp) * top + ramp * bottom, (SIZE * _SCALE, SIZE * _SCALE, 3))


def _canvas(background: NDArray[np.float64]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def _shade(rgb: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    r, g, b = (int(min(255, c * factor)) for c in rgb)
    return r, g, b


def _finish(image: Image.Image, finish: Finish) -> NDArray[np.float32]:
    """Average down to 64x64 and apply the defects. Returns float32 [64, 64, 3] in [0, 1]."""
    if finish.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(finish.blur * _SCALE))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255
    mixed = pixels * (1 - finish.dullness) + np.float32(GREY) * finish.dullness
    return mixed.astype(np.float32)


def draw_scene(placed: tuple[Placed, ...], finish: Finish, rng: np.random.Generator) -> NDArray[np.float32]:
    """A picture of the placed objects: float32 [64, 64, 3] in [0, 1]."""
    image, pen = _canvas(_background(rng, chroma=4))
    for p in placed:
        corners = (outline(p.what.shape, p.turn) * p.radius + (p.x, p.y)) * _SCALE
        fill = _shade(COLOURS[p.what.colour], rng.uniform(0.93, 1.05))
        pen.polygon([(float(x), float(y)) for x, y in corners], fill=fill)
    return _finish(image, finish)


def draw_portrait(tone: int, dress: Dress, finish: Finish, rng: np.random.Generator) -> NDArray[np.float32]:
    """A portrait of a person of Monk tone `tone` (0 to 9): float32 [64, 64, 3] in [0, 1]."""
    wall = np.array(WALLS_RGB[rng.integers(len(WALLS_RGB))], dtype=np.float64)
    image, pen = _canvas(np.broadcast_to(wall * rng.uniform(0.95, 1.05), (SIZE * _SCALE, SIZE * _SCALE, 3)))
    x, y = 32 + rng.uniform(-1.5, 1.5), 29 + rng.uniform(-1.5, 1.5)
    width, height = rng.uniform(11, 12.5), rng.uniform(14, 15.5)
    skin = _shade(MONK_TONES[tone], rng.uniform(0.97, 1.03))
    hair = _HAIR[rng.integers(len(_HAIR))]

    def ellipse(cx: float, cy: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        pen.ellipse(
            [(cx - rx) * _SCALE, (cy - ry) * _SCALE, (cx + rx) * _SCALE, (cy + ry) * _SCALE], fill=fill
        )

    def box(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, int, int]) -> None:
        pen.rectangle([x0 * _SCALE, y0 * _SCALE, x1 * _SCALE, y1 * _SCALE], fill=fill)

    long_hair = rng.random() < 0.5
    ellipse(x, y - 3, width + 2.5, height + (3 if long_hair else 0), hair)
    if long_hair:
        box(x - width - 2.5, y - 3, x + width + 2.5, y + height - 2, hair)
    ellipse(x, 66, 25, 20, CLOTHES_RGB[dress.clothes])
    box(x - 4.5, y + height - 4, x + 4.5, y + height + 4, _shade(skin, 0.9))
    ellipse(x, y, width, height, skin)
    for side in (-1, 1):
        ellipse(x + side * 4.8, y - 1, 2.6, 1.9, (250, 250, 250))
        ellipse(x + side * 4.8, y - 1, 1.5, 1.7, (24, 22, 22))
    ellipse(x, y + 8, 3.6, 1.3, (176, 70, 70))
    _draw_hat(dress.hat, x, y - height, width, box, ellipse)
    return _finish(image, finish)


def _draw_hat(hat: str, x: float, top: float, width: float, box, ellipse) -> None:  # type: ignore[no-untyped-def]
    """The hat on a head whose crown is at (x, top)."""
    if hat == "cap":
        box(x - width, top - 2, x + width, top + 5, (196, 40, 48))
        box(x - width, top + 3, x + width + 6, top + 6, (150, 28, 36))
    elif hat == "helmet":
        ellipse(x, top + 4, width + 2.5, 8.5, (244, 200, 32))
        box(x - width - 4, top + 4, x + width + 4, top + 7, (216, 170, 20))
    elif hat == "toque":
        ellipse(x, top - 4, width + 1, 7, (248, 248, 248))
        box(x - width + 2, top - 2, x + width - 2, top + 6, (232, 232, 236))
    elif hat == "beret":
        ellipse(x + 3, top + 1, width + 3, 5, (36, 64, 150))
