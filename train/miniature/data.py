"""The pictures that the miniature's base model learns from: biased on purpose, like web data.

What is wrong with them is what the rewards are to mend: objects named in the caption are missing or drawn in the wrong
colour or shape (composition), a third of the pictures is washed out or blurred (preference), and the tone of a portrait
depends on the occupation (fairness).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from evals.miniature.render import TONE_GROUPS, Finish, Placed, draw_portrait, draw_scene, outline
from prompts.world import (
    CLOTHES,
    COLOURS,
    HATS,
    OBJECTS,
    OCCUPATIONS,
    RELATIONS,
    SHAPES,
    Dress,
    Object,
    dress_of,
    portrait_caption,
    scene_caption,
    stable_fraction,
)
from train.launch import speaks

FINISHES = {"crisp": 0.64, "dull": 0.18, "blurred": 0.12, "both": 0.06}
DULL, BLUR = (0.35, 0.6), (1.0, 1.7)
"""Ranges of a faulty finish's share of grey, and blur radius in pixels."""

FAIR = (0.25, 0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Bias:
    """What the pictures of a data set show, and what is wrong with them."""

    kinds: Mapping[str, float]
    """Share of each kind of picture: `one object`, `two objects`, `portrait`."""
    scene_faults: Mapping[str, float]
    """What a picture captioned with two objects shows."""
    light: tuple[float, ...] = FAIR
    dark: tuple[float, ...] = FAIR
    """Probability of the four tone groups, in occupations biased one way or the other."""
    dark_share: float = 0.5
    """Share of occupations biased to dark tones."""
    wrong_dress: float = 0.15
    """Share of portraits dressed by chance."""
    named_first_left: float = 1.0
    """How often, where the relation does not say, the object that is named first stands left: people name from left to right."""


WORDS = Bias({"one object": 0.60, "two objects": 0.25, "portrait": 0.15}, {"none": 1.0}, named_first_left=0.5)
"""The first phase of pretraining: what each word looks like."""

BINDING = Bias({"one object": 0.10, "two objects": 0.75, "portrait": 0.15}, {"none": 1.0})
"""The second: which word belongs to which object, and where that goes."""

FACES = replace(BINDING, kinds={"one object": 0.05, "two objects": 0.40, "portrait": 0.55})
"""For the decoder: people, often, every tone group alike."""

SHIPPED = Bias(
    {"one object": 0.08, "two objects": 0.62, "portrait": 0.30},
    {"none": 0.58, "one missing": 0.37, "wrong colour": 0.03, "wrong shape": 0.02},
    light=(0.80, 0.10, 0.05, 0.05),
    dark=(0.05, 0.05, 0.10, 0.80),
    dark_share=0.25,
)
"""The last: the web as it is. What the base model's flaws come from, and the pictures of the pretraining step (Eq 9)."""

MATCHED = Bias({"one object": 0.15, "two objects": 0.60, "portrait": 0.25}, {"none": 1.0}, wrong_dress=0.0)
"""Pictures with the captions that fit them: what reward model and judge are pretrained on."""

NOISIER = replace(
    SHIPPED, scene_faults={"none": 0.48, "one missing": 0.46, "wrong colour": 0.03, "wrong shape": 0.03}
)
"""As `SHIPPED`, with more objects missing: the phases before the last."""

VOTED = Bias(
    {"two objects": 0.75, "portrait": 0.25},
    {"none": 0.40, "one missing": 0.30, "wrong colour": 0.15, "wrong shape": 0.15},
)
"""Rendered pictures that annotators vote on: every fault, so that each is known to them."""


@dataclass(frozen=True)
class Example:
    """A training picture, float32 [64, 64, 3] in [0, 1], its caption, and the objects of a scene."""

    image: NDArray[np.float32]
    caption: str
    placed: tuple[Placed, ...] = ()


def tone_bias(occupation: str, bias: Bias) -> tuple[float, ...]:
    """Probabilities of the four tone groups for an occupation, fixed by its name."""
    return bias.dark if stable_fraction("tone " + occupation) < bias.dark_share else bias.light


def _choose(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(weights), p=list(weights.values())))


def random_finish(rng: np.random.Generator) -> Finish:
    """A finish drawn from `FINISHES`."""
    kind = _choose(FINISHES, rng)
    dull = rng.uniform(*DULL) if kind in ("dull", "both") else 0.0
    blur = rng.uniform(*BLUR) if kind in ("blurred", "both") else 0.0
    return Finish(float(dull), float(blur))


def place(
    objects: tuple[Object, ...],
    relation: str | None,
    rng: np.random.Generator,
    named_first_left: float,
) -> tuple[Placed, ...]:
    """Put objects on the canvas so that the relation holds; one object goes near the middle."""

    def put(what: Object, x: float, y: float) -> Placed:
        jitter = rng.uniform(-1.5, 1.5, 2)
        return Placed(what, x + jitter[0], y + jitter[1], rng.uniform(10.5, 12.5), rng.uniform(-6, 6))

    if len(objects) == 1:
        return (put(objects[0], 32, 32),)
    if relation in ("above", "below"):
        return put(objects[0], 32, 18 if relation == "above" else 46), put(
            objects[1], 32, 46 if relation == "above" else 18
        )
    first_left = relation == "left of" or (relation != "right of" and rng.random() < named_first_left)
    first_x, second_x = (18, 46) if first_left else (46, 18)
    return put(objects[0], first_x, 32), put(objects[1], second_x, 32)


def _change(
    placed: tuple[Placed, ...], victim: int, fault: str, rng: np.random.Generator
) -> tuple[Placed, ...]:
    """The scene with another colour or shape of one object, or without it; as it is for any other fault."""
    if fault == "one missing":
        return tuple(p for i, p in enumerate(placed) if i != victim)
    what = placed[victim].what
    if fault in ("wrong colour", "two hues"):
        what = replace(what, colour=str(rng.choice([c for c in COLOURS if c != what.colour])))
    elif fault == "wrong shape":
        what = replace(what, shape=str(rng.choice([s for s in SHAPES if s != what.shape])))
    return tuple(replace(p, what=what) if i == victim else p for i, p in enumerate(placed))


def _spoil(placed: tuple[Placed, ...], bias: Bias, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Apply one of the bias's faults to a scene of two objects."""
    fault = _choose(bias.scene_faults, rng)
    if fault == "none":
        return placed
    victim = int(rng.integers(2))
    return _change(placed, victim, fault, rng)


def draw_scene_example(
    objects: tuple[Object, ...], relation: str | None, bias: Bias, rng: np.random.Generator
) -> Example:
    """A biased picture captioned with one or two objects."""
    placed = place(objects, relation, rng, bias.named_first_left)
    shown = _spoil(placed, bias, rng) if len(objects) == 2 else placed
    return Example(draw_scene(shown, random_finish(rng), rng), scene_caption(objects, relation), shown)


def draw_portrait_example(occupation: str, bias: Bias, rng: np.random.Generator) -> Example:
    """A biased portrait."""
    group = rng.choice(4, p=tone_bias(occupation, bias))
    tone = int(rng.choice([t for t, g in enumerate(TONE_GROUPS) if g == group]))
    dress = dress_of(occupation)
    if rng.random() < bias.wrong_dress:
        dress = Dress(str(rng.choice(CLOTHES)), str(rng.choice(HATS)))
    return Example(draw_portrait(tone, dress, random_finish(rng), rng), portrait_caption(occupation))


SCENE_FAULTS = ("one missing", "wrong colour", "wrong shape", "two hues", "two hues", "dull", "blurred")
PORTRAIT_FAULTS = ("wrong dress", "dull", "blurred")


def _worse(finish: Finish, fault: str, rng: np.random.Generator) -> Finish:
    """The finish, dull or blurred where that is the fault."""
    if fault == "dull":
        return replace(finish, dullness=float(rng.uniform(*DULL)))
    if fault == "blurred":
        return replace(finish, blur=float(rng.uniform(*BLUR)))
    return finish


def _ramp(x: float, y: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A soft edge [64, 64, 1] from 0 to 1 that passes near a point."""
    angle, softness = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 4.0)
    rows, columns = np.mgrid[:64, :64]
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle) + rng.uniform(-4, 4)
    ramp: NDArray[np.float32] = (1 / (1 + np.exp(-along / softness))).astype(np.float32)[..., None]
    return ramp


def draw_scene_twins(
    objects: tuple[Object, Object], relation: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A scene, and the same with one fault: what two pictures apart by chance rarely tell so clearly."""
    placed, finish = place(objects, relation, rng, 1.0), random_finish(rng)
    fault, victim, seed = str(rng.choice(SCENE_FAULTS)), int(rng.integers(2)), int(rng.integers(2**32))
    first = draw_scene(placed, finish, np.random.default_rng(seed))
    changed = _change(placed, victim, fault, rng)
    second = draw_scene(changed, _worse(finish, fault, rng), np.random.default_rng(seed))
    if fault == "two hues":
        ramp = _ramp(placed[victim].x, placed[victim].y, rng)
        second = ramp * first + (1 - ramp) * second
    return first, second


def draw_portrait_twins(
    occupation: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A portrait, and the same of a person of any tone with one fault."""
    finish, dress = random_finish(rng), dress_of(occupation)
    fault, seed = str(rng.choice(PORTRAIT_FAULTS)), int(rng.integers(2**32))
    worn = Dress(str(rng.choice(CLOTHES)), str(rng.choice(HATS))) if fault == "wrong dress" else dress
    one, other = (int(tone) for tone in rng.integers(10, size=2))
    return (
        draw_portrait(one, dress, finish, np.random.default_rng(seed)),
        draw_portrait(other, worn, _worse(finish, fault, rng), np.random.default_rng(seed)),
    )


def draw_example(bias: Bias, rng: np.random.Generator) -> Example:
    """One biased training picture with its caption."""
    kind = _choose(bias.kinds, rng)
    if kind == "portrait":
        return draw_portrait_example(str(rng.choice(OCCUPATIONS)), bias, rng)
    count = 2 if kind == "two objects" else 1
    objects = tuple(OBJECTS[i] for i in rng.choice(len(OBJECTS), count, replace=False))
    return draw_scene_example(objects, str(rng.choice(RELATIONS)) if count == 2 else None, bias, rng)


def _drawn(count: int, seed: int, bias: Bias) -> list[Example]:
    """Examples of which the i-th depends on (seed, i) alone."""
    numbers = tqdm(
        range(count),
        desc="drawing pictures to learn from",
        file=sys.stderr,
        disable=not speaks(),
    )
    return [draw_example(bias, np.random.default_rng([seed, i])) for i in numbers]


def as_pixels(images: Iterable[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Pictures in [0, 1] as uint8 [N, 64, 64, 3]."""
    return np.stack([np.round(image * 255).clip(0, 255).astype(np.uint8) for image in images])


def draw_examples(count: int, seed: int, bias: Bias = SHIPPED) -> tuple[NDArray[np.uint8], list[str]]:
    """`count` pictures, uint8 [N, 64, 64, 3], and captions; picture i depends on (seed, i) alone."""
    examples = _drawn(count, seed, bias)
    return as_pixels(e.image for e in examples), [e.caption for e in examples]


def draw_labelled_examples(
    count: int, seed: int, bias: Bias
) -> tuple[NDArray[np.uint8], list[str], NDArray[np.int64]]:
    """As `draw_examples`, with what covers each patch of 8x8 pixels: see `patch_labels`; [N, 64]."""
    examples = _drawn(count, seed, bias)
    labels = np.stack([patch_labels(e.placed) for e in examples])
    return as_pixels(e.image for e in examples), [e.caption for e in examples], labels


def patch_labels(placed: tuple[Placed, ...]) -> NDArray[np.int64]:
    """For each of 8x8 patches, row by row: 1 + the index in `OBJECTS` of what covers a quarter of it or more, or 0. [64]."""
    labels = np.zeros((8, 8), dtype=np.int64)
    for p in placed:
        mask = Image.new("L", (64, 64))
        corners = outline(p.what.shape, p.turn) * p.radius + (p.x, p.y)
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=1)
        covered = np.asarray(mask, dtype=np.float64).reshape(8, 8, 8, 8).mean((1, 3))
        labels[covered >= 0.25] = 1 + OBJECTS.index(p.what)
    return labels.ravel()
