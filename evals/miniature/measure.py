"""Reads a miniature picture back: which objects it shows, where, whose portrait, and how crisp it is.

Because the renderer is known these are measurements, not opinions: colours are read as hues in CIELAB, shapes by overlap
with the renderer's own outlines, skin by its distance to the ten Monk tones. They serve as the compositional reward
(the miniature's detector) and as gold measures. Pictures are float32 [64, 64, 3] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from evals.miniature.render import CLOTHES_RGB, GREY, MONK_TONES, WALLS_RGB, outline
from prompts.world import COLOURS, SHAPES, Object, dress_of

Picture = NDArray[np.float32]

MIN_CHROMA = 17.0
"""CIELAB chroma from which a pixel belongs to an object: backgrounds stay below 8, washed-out objects above 20."""
MIN_AREA = 50
"""Pixels from which a patch of colour is an object; the smallest that is ever drawn covers about 130."""
MAX_DULLNESS = 0.75
"""Share of grey above which a picture is not undone further: the dullest that are drawn have .6."""
CLEAR = 0.6
"""Share of a crisp face's `eye_contrast`, at the tone read, above which a face is clear."""
CRISP_EYES = (90, 89, 89, 88, 87, 86, 82, 74, 77, 72)
"""`eye_contrast` of crisp portraits of each Monk tone, the median of the renderer's."""
CLEAN_OVERLAP = dict.fromkeys(SHAPES, 0.88) | {"star": 0.80}
"""Overlap with its outline from which a shape is drawn without fault: what 19 of 20 crisp drawings of it reach, and .88 at most.

A star is nearly all edge, so that half a pixel takes off it what takes a whole one off a circle.
"""
TOLD_APART = 0.6
"""Overlap up to which the confidence is 0."""
DETECTED = 0.5
"""Confidence from which an object counts as shown."""
_GRID = 24


@dataclass(frozen=True)
class Found:
    """An object seen in a picture: best-matching shape, confidence in [0, 1], box centre and size in pixels."""

    what: Object
    confidence: float
    x: float
    y: float
    width: float
    height: float


def to_lab(rgb: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """SRGB in [0, 1] to CIELAB (D65), any shape [..., 3]. IEC 61966-2-1 and CIE 15."""
    c = np.asarray(rgb, dtype=np.float64)
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = linear @ _RGB_TO_XYZ.T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_COLOUR_NAMES = tuple(COLOURS)
_PALETTE_LAB = to_lab(np.array(list(COLOURS.values())) / 255)
_PALETTE_HUES = np.arctan2(_PALETTE_LAB[:, 2], _PALETTE_LAB[:, 1])
_MONK_LAB = to_lab(np.array(MONK_TONES) / 255)
_EYES = ((23, 31), (33, 41))
"""Columns in which an eye is."""
_EYE_ROWS = slice(26, 31)
"""Rows in which both are; a helmet's lower edge is there as well, so that helmets are the last to be unclear."""
_WALLS = np.array(WALLS_RGB) / 255
_WALL_TINTS = _WALLS - _WALLS.mean(1, keepdims=True)


@cache
def _templates() -> NDArray[np.bool_]:
    """Masks [shapes * turns, 24, 24] of every shape, filling its own box, at five small rotations."""
    return np.stack([_fill_box(_mask_of(shape, turn)) for shape in SHAPES for turn in (-8, -4, 0, 4, 8)])


def _mask_of(shape: str, turn: float) -> NDArray[np.bool_]:
    image = Image.new("L", (96, 96))
    corners = outline(shape, turn) * 36 + 48
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return np.asarray(image) > 127


def _fill_box(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cut a mask to its bounding box and stretch that to 24x24."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(cut.astype(np.uint8) * 255)
    return np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BILINEAR)) > 127


def _shape_overlaps(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Best intersection over union with each of `SHAPES`, whatever the mask's size and small rotation."""
    box, templates = _fill_box(mask), _templates()
    union = (templates | box).sum((1, 2))
    overlaps: NDArray[np.float64] = ((templates & box).sum((1, 2)) / union).reshape(len(SHAPES), -1).max(1)
    return overlaps


def _confidence(shape: str, overlap: float) -> float:
    """0 up to `TOLD_APART`, 1 from the shape's `CLEAN_OVERLAP`."""
    return float(np.clip((overlap - TOLD_APART) / (CLEAN_OVERLAP[shape] - TOLD_APART), 0, 1))


def find_objects(picture: Picture) -> list[Found]:
    """Every patch of one palette hue that is large enough, as an object of its best-matching shape."""
    lab = to_lab(picture)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    turned = np.arctan2(lab[..., 2], lab[..., 1])[..., None] - _PALETTE_HUES
    nearest = np.abs(np.angle(np.exp(1j * turned))).argmin(-1)
    found = []
    for index, colour in enumerate(_COLOUR_NAMES):
        labels, count = ndimage.label((nearest == index) & (chroma > MIN_CHROMA))
        for number in range(1, count + 1):
            mask = labels == number
            if mask.sum() >= MIN_AREA:
                found.append(_as_object(mask, colour))
    return found


def _as_object(mask: NDArray[np.bool_], colour: str) -> Found:
    overlaps = _shape_overlaps(mask)
    best = int(overlaps.argmax())
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Found(
        Object(colour, SHAPES[best]),
        _confidence(SHAPES[best], float(overlaps[best])),
        float(columns[0] + columns[-1]) / 2,
        float(rows[0] + rows[-1]) / 2,
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    )


def expected_objects(expect: Mapping[str, Any]) -> list[Object]:
    """The objects that a scene prompt names.

    Raises:
        ValueError: where they are none of this world's.
    """
    try:
        named = [Object(o["colour"], o["shape"]) for o in expect["objects"]]
        known = all(o.colour in COLOURS and o.shape in SHAPES for o in named)
    except (TypeError, KeyError):
        named, known = [], False
    if not named or not known:
        raise ValueError(
            f"`expect.objects` must be a list of objects with a colour ({', '.join(COLOURS)}) and a shape "
            f"({', '.join(SHAPES)}), but is {expect['objects']!r}"
        )
    return named


def best_match(what: Object, found: Sequence[Found]) -> Found | None:
    """The most confident find of an object, or None."""
    return max((f for f in found if f.what == what), key=lambda f: f.confidence, default=None)


def detection_score(expect: Mapping[str, Any], found: Sequence[Found]) -> float:
    """Paper Eq 13: mean over the objects named of the best detection confidence, 0 where there is none."""
    matches = [best_match(what, found) for what in expected_objects(expect)]
    return float(np.mean([m.confidence if m else 0.0 for m in matches]))


def relation_holds(relation: str, a: Found, b: Found) -> bool:
    """Whether `a relation b`.

    A direction must dominate its axis; `and` asks for presence only; the rest for closeness: the gap between the boxes
    is at most a quarter of the picture.
    """
    dx, dy = b.x - a.x, b.y - a.y
    if relation == "and":
        return True
    if relation in ("left of", "right of"):
        return abs(dx) > abs(dy) and (dx > 0) == (relation == "left of")
    if relation in ("above", "below"):
        return abs(dy) > abs(dx) and (dy > 0) == (relation == "above")
    gap_x = abs(dx) - (a.width + b.width) / 2
    gap_y = abs(dy) - (a.height + b.height) / 2
    return max(gap_x, gap_y) <= 16


def fully_right(expect: Mapping[str, Any], found: Sequence[Found]) -> bool:
    """Every object named is detected, nothing else is, and the relation holds."""
    matches = [best_match(what, found) for what in expected_objects(expect)]
    if any(m is None or m.confidence < DETECTED for m in matches) or len(found) != len(matches):
        return False
    first, second = (m for m in matches if m is not None)
    return relation_holds(expect["relation"], first, second)


def _wall_of(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Median colour of what a person stands before: both sides of the head."""
    sides = np.concatenate([picture[4:30, 2:8], picture[4:30, 56:62]]).reshape(-1, 3)
    return np.median(sides.astype(np.float64), axis=0)


def dullness(picture: Picture) -> float:
    """Share of grey that a portrait is mixed with, read off its wall, which has one of three colours; below .15 counts as 0.

    Grey mixed in moves every tone to the middle of the scale, so it has to be known before a tone can be read; the wall tells it
    without a look at the person.
    """
    colour = _wall_of(picture)
    colour -= colour.mean()
    match = _WALL_TINTS @ colour
    best = int((match / np.linalg.norm(_WALL_TINTS, axis=1)).argmax())
    grey = float(np.clip(1 - match[best] / (_WALL_TINTS[best] ** 2).sum(), 0, MAX_DULLNESS))
    return grey if grey >= 0.15 else 0.0


def face_tone(picture: Picture) -> int | None:
    """Nearest Monk tone (0 to 9) of the person in a portrait, None without a usable face.

    Read after undoing a dull picture's grey (`dullness`). Usable: the cheeks are of one colour, near a Monk tone in chroma and hue,
    unlike the wall, with two eyes that stand out above them. No gate on how light or dark the colour is.
    """
    grey = dullness(picture)
    lab = to_lab(np.clip((picture - GREY * grey) / (1 - grey), 0, 1))
    cheeks = np.concatenate([lab[31:37, 24:28], lab[31:37, 37:41]]).reshape(-1, 3)  # beside the mouth
    skin = np.median(cheeks, axis=0)
    alike = float((np.linalg.norm(cheeks - skin, axis=1) < 12).mean())
    eyes = [np.linalg.norm(lab[_EYE_ROWS, x0:x1] - skin, axis=-1).max() for x0, x1 in _EYES]
    distances = np.linalg.norm(_MONK_LAB - skin, axis=1)
    usable = (
        alike > 0.5 and np.linalg.norm(_wall_of(lab) - skin) > 12 and min(eyes) > 8 and distances.min() < 16
    )
    return int(distances.argmin()) if usable else None


def eye_contrast(picture: Picture) -> float:
    """Range of CIELAB lightness about the eyes, of the eye where it is less: white of the eye to pupil or skin.

    How clearly a person can be seen. Crisp portraits of light skin span 90, of dark skin 75 (`CRISP_EYES`); grey takes the same share of
    either, blur more of the dark ones, whose brightest spots are the small whites of the eyes.
    """
    lightness = to_lab(picture[_EYE_ROWS])[..., 0]
    return float(min(np.ptp(lightness[:, x0:x1]) for x0, x1 in _EYES))


def clear_face_tone(picture: Picture) -> int | None:
    """`face_tone` of a face that can be seen clearly, None of one that is too faint or blurred to say whose it is."""
    tone = face_tone(picture)
    return tone if tone is not None and eye_contrast(picture) > CLEAR * CRISP_EYES[tone] else None


def dress_score(occupation: str, picture: Picture) -> float:
    """1 where the clothes have the occupation's colour, 0 from a CIELAB distance of 40 on."""
    wanted = to_lab(np.array(CLOTHES_RGB[dress_of(occupation).clothes]) / 255)
    worn = np.median(to_lab(picture[54:63, 18:46]).reshape(-1, 3), axis=0)
    return float(np.clip(1 - (np.linalg.norm(worn - wanted) - 10) / 30, 0, 1))


def crispness(picture: Picture) -> float:
    """Steepest edges of the picture, 0 (blurred or washed out) to 1.

    The mean of the steepest hundred lightness or colour steps between neighbouring pixels, where 12 CIELAB units or less count 0 and 42 or more count 1.
    """
    lab = to_lab(picture)
    steps = np.concatenate(
        [
            np.linalg.norm(np.diff(lab, axis=0), axis=-1).ravel(),
            np.linalg.norm(np.diff(lab, axis=1), axis=-1).ravel(),
        ]
    )
    steepest = np.partition(steps, -100)[-100:]
    return float(np.clip((steepest.mean() - 12) / 30, 0, 1))


def smoothness(picture: Picture) -> float:
    """1 for the flat surfaces of this world, 0 for noise: from the median step between neighbouring pixels."""
    lab = to_lab(picture)
    return float(np.clip(1.5 - np.median(np.linalg.norm(np.diff(lab, axis=1), axis=-1)) / 2, 0, 1))
