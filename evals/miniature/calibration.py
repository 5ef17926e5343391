"""How far each scorer of the miniature agrees with what is true in its world: `python -m evals calibrate miniature`.

What is true is known in two ways. The renderer was told what to draw, so of its pictures it is exact what is in them, in what tone and with which fault; of the base
model's pictures the hidden utility is measured, which is what the simulated people value (`evals.miniature.annotators`). Each scorer is held to the truth that it claims
to tell, by the measure that fits it (`Measure`).

Scenes are of `held_out.jsonl`: captions of which the reward model and the judge were shown no picture and no vote (`tests/test_calibration.py` draws all of theirs again); as
a false caption of another picture nearly every caption of this world has come up. Of portraits there is no such set, as both were taught every occupation: what they see here are
other pictures of occupations that they know. The scorers that read pixels were not trained on anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

import prompts
from evals import stats
from evals.files import write_text
from evals.miniature import measure, weights_folder
from evals.miniature.measure import Picture
from evals.miniature.render import GREY, MONK_TONES, TONE_GROUPS, Finish, Placed, draw_portrait, draw_scene
from evals.stats import Array, Interval
from prompts import Prompt
from prompts.world import CLOTHES, COLOURS, SHAPES, Dress, Object, dress_of

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = Path(__file__).parent / "held_out.jsonl"
PORTRAITS = "miniature-portraits-unseen"
SEED = 20261126
"""Of what is drawn here, by the renderer and by the base: no picture that a scorer was taught with."""
DULL, BLUR = (0.35, 0.6), (1.0, 1.7)
"""Share of grey and radius in pixels of what is dull or blurred, as in the pictures that the base learnt from."""
BASE_IMAGES = 4
CLEAR = 0.3
"""Of the hidden utility, which goes to 4.6: from there on people's votes go the same way two times in three (`annotators.TEMPERATURE`)."""
SET_SIZE = 10
"""Prompts whose pictures are one set for a distance of sets."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a set that is another than it was."""
COPIES = (1, 2, 4)
"""Different pictures of four."""
TONES = (1, 2, 5, 10)
"""Different tones of ten portraits."""

FAULTLESS = "faultless"
WITHOUT, ANY = "drawn without: ", "any fault"
SCENES = (FAULTLESS, "one missing", "wrong colour", "wrong shape", "wrong side", "dull", "blurred")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PORTRAITS_AS = (FAULTLESS, "wrong dress", "dull", "blurred")


@dataclass(frozen=True)
class Drawn:
    """A picture and what is true of it."""

    prompt: Prompt
    picture: Picture
    """8 bits a channel, as files have it."""
    version: str = ""
    """Its fault, where the renderer drew it."""
    tone: int | None = None
    """Of a rendered portrait: 0 to 9 on the Monk scale."""
    objects: float = np.nan
    """Of a rendered scene: share of the objects named that are in it as named."""


# --------------------------------------------------------------------------------------------------------------- pictures


def to_8bit(picture: Picture) -> Picture:
    """What a file keeps of a picture."""
    return np.asarray((picture * 255).round() / 255, dtype=np.float32)


def _finish(version: str, rng: np.random.Generator) -> Finish:
    return Finish(
        float(rng.uniform(*DULL)) if version == "dull" else 0.0,
        float(rng.uniform(*BLUR)) if version == "blurred" else 0.0,
    )


def _placed(objects: Sequence[Object], relation: str, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Two objects in a relation; where it does not say, the one that is named first stands left."""
    near, far = (18.0, 46.0) if relation not in ("right of", "below") else (46.0, 18.0)
    places = [(32.0, near), (32.0, far)] if relation in ("above", "below") else [(near, 32.0), (far, 32.0)]
    return tuple(
        Placed(
            what,
            x + rng.uniform(-1.5, 1.5),
            y + rng.uniform(-1.5, 1.5),
            rng.uniform(10.5, 12.5),
            rng.uniform(-6, 6),
        )
        for what, (x, y) in zip(objects, places, strict=True)
    )


def scene(prompt: Prompt, version: str, rng: np.random.Generator) -> Drawn:
    """A scene as its prompt asks for it, or with one fault, by the renderer."""
    objects, relation = measure.expected_objects(prompt.expect), prompt.expect["relation"]
    placed = list(_placed(objects, OPPOSITE[relation] if version == "wrong side" else relation, rng))
    victim = int(rng.integers(2))
    what = placed[victim].what
    if version == "one missing":
        del placed[victim]
    elif version == "wrong colour":
        others = [c for c in COLOURS if c not in {o.colour for o in objects}]
        placed[victim] = replace(placed[victim], what=replace(what, colour=str(rng.choice(others))))
    elif version == "wrong shape":
        others = [s for s in SHAPES if s not in {o.shape for o in objects}]
        placed[victim] = replace(placed[victim], what=replace(what, shape=str(rng.choice(others))))
    shown = {p.what for p in placed}
    picture = to_8bit(draw_scene(tuple(placed), _finish(version, rng), rng))
    return Drawn(prompt, picture, version, objects=float(np.mean([o in shown for o in objects])))


def portrait(prompt: Prompt, version: str, tone: int, rng: np.random.Generator) -> Drawn:
    """A portrait of a person of that tone, dressed as the occupation or not, by the renderer."""
    dress = dress_of(prompt.expect["occupation"])
    if version == "wrong dress":
        dress = Dress(str(rng.choice([c for c in CLOTHES if c != dress.clothes])), dress.hat)
    picture = to_8bit(draw_portrait(tone, dress, _finish(version, rng), rng))
    return Drawn(prompt, picture, version, tone=tone)


def rendered(scenes: Sequence[Prompt], portraits: Sequence[Prompt]) -> tuple[list[Drawn], list[Drawn]]:
    """Every scene in each version that it can have, every portrait in each version and tone; a picture is a function of its prompt, version and tone."""
    drawn_scenes = [
        scene(prompt, version, _generator(prompt, version))
        for prompt in scenes
        for version in SCENES
        if version != "wrong side" or prompt.expect["relation"] in OPPOSITE
    ]
    drawn_portraits = [
        portrait(prompt, version, tone, _generator(prompt, version, tone))
        for prompt in portraits
        for version in PORTRAITS_AS
        for tone in range(10)
    ]
    return drawn_scenes, drawn_portraits


def _generator(prompt: Prompt, *of: object) -> np.random.Generator:
    return np.random.default_rng([SEED, *" ".join(map(str, (prompt.id, *of))).encode()])


def by_the_base(asked: Sequence[Prompt]) -> list[Drawn]:
    """Pictures of the shipped base, `BASE_IMAGES` of each prompt, in the sampling of the miniature's suite."""
    from evals.checkpoints import load_pipeline
    from evals.diffusion import Painter
    from evals.suites.miniature import SUITE

    every = [(prompt, image) for prompt in asked for image in range(BASE_IMAGES)]
    painter = Painter.of(load_pipeline(str(weights_folder("pipeline"))), SUITE.sampling)
    images = painter.paint([prompt.text for prompt, _ in every], [image for _, image in every], SEED)
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
    return [Drawn(prompt, to_8bit(picture)) for (prompt, _), picture in zip(every, pictures, strict=True)]


# --------------------------------------------------------------------------------------------------------------- measures


class Measure(NamedTuple):
    """A number that is a function of the mean over prompts of statistics of each prompt, so that one bootstrap over prompts serves all."""

    name: str
    finish: Callable[[Array], Array]
    """Of `[..., S]`."""


def ratio(mean_S: Array) -> Array:
    """What of what was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = mean_S[..., 0] / mean_S[..., 1]
    return share


def from_products(mean_S: Array) -> Array:
    """Correlation, or Kendall's tau-b: a sum of products over the root of both sums of squares."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Array = mean_S[..., 0] / np.sqrt(mean_S[..., 1] * mean_S[..., 2])
    return value


PAIRS = Measure("pairs in the right order, %", ratio)
CLEAR_PAIRS = Measure(f"pairs that differ by more than {CLEAR} in the right order, %", ratio)
CORRELATION = Measure("correlation within prompts", from_products)
TAU = Measure("Kendall's tau-b within prompts", from_products)
WRONG = Measure("wrong, %", ratio)
FAR = Measure("wrong by more than one tone, %", ratio)
ZERO = Measure("mean where nothing differs", ratio)


def in_order(score_B: Array, truth_B: Array, least: float = 0.0) -> tuple[float, float]:
    """Pairs whose truths differ by more than `least` and whose scores differ as they do, a tie of the scores half; and how many pairs there are."""
    truth_BB, score_BB = (np.subtract.outer(x, x) for x in (truth_B, score_B))
    counts_BB = np.triu(np.abs(truth_BB) > least, 1)
    right_BB = (np.sign(score_BB) * np.sign(truth_BB) + 1) / 2
    return float(right_BB[counts_BB].sum()), float(counts_BB.sum())


def products(score_B: Array, truth_B: Array) -> tuple[float, float, float]:
    """Sums of products and squares about the means."""
    x, y = score_B - score_B.mean(), truth_B - truth_B.mean()
    return float(x @ y), float(x @ x), float(y @ y)


def signs(score_B: Array, truth_B: Array) -> tuple[float, float, float]:
    """The same of the signs of the differences of all pairs, of which tau-b is made."""
    x, y = (np.sign(np.subtract.outer(v, v))[np.triu_indices(len(v), 1)] for v in (score_B, truth_B))
    return float(x @ y), float(x @ x), float(y @ y)


def estimate(values_PS: Sequence[Sequence[float]], finish: Callable[[Array], Array]) -> Interval:
    """A measure with its 95 % interval, prompts resampled; Wilson's, of as many prompts, for a share of 0 or 1 in which no resample can vary."""
    statistics_PS = np.asarray(values_PS, dtype=np.float64)
    value = float(finish(statistics_PS.mean(0)))
    if finish is ratio and value in (0.0, 1.0):
        return stats.wilson(value * len(statistics_PS), len(statistics_PS))
    weight_NP = stats.weights(len(statistics_PS), stats.RESAMPLES, 0, "calibrate miniature")
    return stats.percentile_interval(value, finish(weight_NP @ statistics_PS))


# ------------------------------------------------------------------------------------------------------------------ lines


@dataclass(frozen=True)
class Line:
    """One number of one scorer."""

    scorer: str
    pictures: str
    truth: str
    """What the scorer is held to."""
    measure: str
    value: Interval
    prompts: int
    """Or sets of prompts, that were resampled."""
    count: int
    """Pairs or pictures."""
    unscored: float
    """Share of the pictures of which it says nothing."""


def scores(name: str, scorer: Any, drawn: Sequence[Drawn], group: int = 1) -> Array:
    """A scorer's answers, asked for about 128 pictures at a time, whole groups of `group`."""
    from evals.scorers import ask

    at_once = max(1, 128 // group) * group
    parts = [drawn[start : start + at_once] for start in range(0, len(drawn), at_once)]
    answers = [
        ask(name, scorer, as_images(few), [d.prompt for d in few], lambda i: f"picture {i}") for few in parts
    ]
    return np.concatenate([answer.numpy() for answer in answers]).astype(np.float64)


def as_images(drawn: Sequence[Drawn]) -> Tensor:
    """float32 [B, 3, 64, 64]."""
    import torch

    return torch.from_numpy(np.stack([d.picture for d in drawn])).permute(0, 3, 1, 2).contiguous()


def by_prompt(drawn: Sequence[Drawn]) -> Iterator[list[int]]:
    """Places of the pictures of each prompt."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(drawn):
        groups.setdefault(one.prompt.id, []).append(place)
    yield from groups.values()


def line(
    scorer: str,
    pictures: str,
    truth: str,
    measure_: Measure,
    values_PS: Sequence[tuple[float, ...]],
    count: float,
    unscored: float = 0.0,
) -> Line:
    """A measure of the statistics of some prompts."""
    return Line(
        scorer,
        pictures,
        truth,
        measure_.name,
        estimate(values_PS, measure_.finish),
        len(values_PS),
        int(count),
        unscored,
    )


def by_utility(name: str, pictures: str, drawn: Sequence[Drawn], score_B: Array, gold_B: Array) -> list[Line]:
    """A preference scorer held to the hidden utility, pictures of a prompt among each other: what it gives to another prompt's means nothing."""
    groups = list(by_prompt(drawn))
    statistics: dict[Measure, list[tuple[float, ...]]] = {
        PAIRS: [in_order(score_B[g], gold_B[g]) for g in groups],
        CLEAR_PAIRS: [in_order(score_B[g], gold_B[g], CLEAR) for g in groups],
        TAU: [signs(score_B[g], gold_B[g]) for g in groups],
        CORRELATION: [products(score_B[g], gold_B[g]) for g in groups],
    }
    counts = {
        PAIRS: sum(pairs for _, pairs in statistics[PAIRS]),
        CLEAR_PAIRS: sum(pairs for _, pairs in statistics[CLEAR_PAIRS]),
        TAU: sum(len(g) * (len(g) - 1) / 2 for g in groups),
        CORRELATION: len(drawn),
    }
    return [line(name, pictures, "hidden utility", m, values, counts[m]) for m, values in statistics.items()]


def by_fault(name: str, pictures: str, drawn: Sequence[Drawn], score_B: Array) -> list[Line]:
    """How often a picture without a fault is preferred to one of the same prompt with it, a tie half: exact, whatever anybody values."""
    version_B = np.array([d.version for d in drawn])
    lines = []
    for fault in (ANY, *dict.fromkeys(v for v in version_B if v != FAULTLESS)):
        values = []
        for places in by_prompt(drawn):
            group = np.array(places)
            is_good = version_B[group] == FAULTLESS
            good = score_B[group[is_good]]
            bad = score_B[group[~is_good if fault == ANY else version_B[group] == fault]]
            if len(bad):
                better = (np.sign(np.subtract.outer(good, bad)) + 1) / 2
                values.append((float(better.sum()), float(better.size)))
        lines.append(line(name, pictures, f"{WITHOUT}{fault}", PAIRS, values, sum(n for _, n in values)))
    return lines


def by_drawing(
    name: str, drawn: Sequence[Drawn], score_B: Array, truth_B: Array, truth: str, steps: Sequence[float]
) -> Iterator[Line]:
    """A scorer that reads what is there, held to what was drawn: crisp pictures, and dull or blurred ones.

    Args:
        name: of the scorer.
        drawn: by the renderer.
        score_B: NaN where it says nothing; those pictures are counted apart.
        truth_B: of `steps`.
        truth: what it is.
        steps: what can be true. A score says the nearest of them.
    """
    dim_B = np.array([one.version in ("dull", "blurred") for one in drawn])
    said_B = np.asarray(steps)[np.abs(np.nan_to_num(score_B)[:, None] - np.asarray(steps)).argmin(1)]
    misses = {WRONG: said_B != truth_B}
    if len(steps) == len(MONK_TONES):
        misses[FAR] = np.abs(said_B - truth_B) > 1
    for kind, here_B in (("crisp", ~dim_B), ("dull or blurred", dim_B)):
        known_B = here_B & ~np.isnan(score_B)
        groups = [[place for place in group if known_B[place]] for group in by_prompt(drawn)]
        unscored = float(1 - known_B.sum() / here_B.sum())
        for measure_, missed_B in misses.items():
            values = [(float(missed_B[group].sum()), float(len(group))) for group in groups if group]
            pictures = f"{what_is_drawn(drawn)}, {kind}"
            yield line(name, pictures, truth, measure_, values, known_B.sum(), unscored)


def what_is_drawn(drawn: Sequence[Drawn]) -> str:
    """Scenes or portraits, and by whom."""
    kind = "scenes" if "objects" in drawn[0].prompt.expect else "portraits"
    return f"rendered {kind}" if drawn[0].version else f"{kind} by the base"


def by_kinds(
    name: str, scorer: Any, groups: Mapping[tuple[str, int], Sequence[Drawn]], pictures: str, truth: str
) -> list[Line]:
    """A measure of diversity held to how many kinds there are in groups of one size.

    Args:
        name: of the scorer.
        scorer: to be asked.
        groups: pictures by prompt and number of kinds.
        pictures: what they are.
        truth: what the kinds are.
    """
    size = len(next(iter(groups.values())))
    members = [
        replace(one, prompt=replace(one.prompt, id=f"{prompt}.{kinds}"))
        for (prompt, kinds), some in groups.items()
        for one in some
    ]
    score_G = scores(name, scorer, members, size).reshape(-1, size).mean(1)
    return by_rank(name, score_G, list(groups), pictures, truth)


def by_rank(
    name: str, score_G: Array, of_G: Sequence[tuple[str, float]], pictures: str, truth: str
) -> list[Line]:
    """Scores of groups or sets of pictures, held to the order that they are known to have among those of one key."""
    values: dict[Measure, list[tuple[float, ...]]] = {PAIRS: [], TAU: []}
    for key in dict.fromkeys(key for key, _ in of_G):
        places = [place for place, (other, _) in enumerate(of_G) if other == key]
        score, rank = score_G[places], np.array([of_G[place][1] for place in places], dtype=np.float64)
        values[PAIRS].append(in_order(score, rank))
        values[TAU].append(signs(score, rank))
    pairs = sum(some[1] for some in values[PAIRS])
    return [line(name, pictures, truth, m, some, pairs) for m, some in values.items()]


def copies(drawn: Sequence[Drawn]) -> dict[tuple[str, int], list[Drawn]]:
    """Of each prompt's `BASE_IMAGES` pictures, groups of as many in which only some are different."""
    return {
        (drawn[group[0]].prompt.id, kinds): [drawn[group[i % kinds]] for i in range(BASE_IMAGES)]
        for group in by_prompt(drawn)
        for kinds in COPIES
    }


def tones(portraits: Sequence[Prompt]) -> dict[tuple[str, int], list[Drawn]]:
    """Of each occupation, groups of ten faultless portraits, all of them different, in which only some tones occur, from end to end of the scale."""
    return {
        (prompt.id, kinds): [
            portrait(prompt, FAULTLESS, int(tone), _generator(prompt, "tones", kinds, i))
            for i, tone in enumerate(np.resize(np.linspace(0, 9, kinds).round(), 10))
        ]
        for prompt in portraits
        for kinds in TONES
    }


def by_share(name: str, scorer: Any, drawn: Sequence[Drawn]) -> list[Line]:
    """A distance of sets held to the share of a set that was changed, half mixed with grey; without a change it is 0 in expectation.

    A prompt's first half of pictures are the base's side, the others the side that is changed: both are drawn by one model.
    """
    from evals.scorers import ask

    groups = list(by_prompt(drawn))
    sets = [groups[start : start + SET_SIZE] for start in range(0, len(groups), SET_SIZE)]
    value_G, of_G = [], []
    for number, some in enumerate(sets):
        half = BASE_IMAGES // 2
        base, ours = (
            [drawn[place] for group in some for place in group[side]]
            for side in (slice(half), slice(half, None))
        )
        order = np.random.default_rng([SEED, number]).permutation(len(ours))
        for share in SHARES:
            changed = {*order[: round(share * len(ours))].tolist()}
            now = [in_grey(one) if place in changed else one for place, one in enumerate(ours)]
            asked = [one.prompt for one in now]
            answer = ask(name, scorer, as_images(now), asked, lambda i: f"picture {i}", as_images(base))
            value_G.append(float(answer.mean()))
            of_G.append((f"set {number}", share))
    score_G = np.array(value_G)
    nothing = [(value, 1.0) for value, (_, share) in zip(value_G, of_G, strict=True) if share == 0]
    pictures = what_is_drawn(drawn)
    return [
        *by_rank(name, score_G, of_G, pictures, "share made dull"),
        line(name, pictures, "share made dull", ZERO, nothing, len(nothing)),
    ]


def in_grey(one: Drawn) -> Drawn:
    """A picture half mixed with grey."""
    return replace(one, picture=to_8bit(np.asarray(one.picture * 0.5 + GREY * 0.5, dtype=np.float32)))


def measured(scenes: Sequence[Prompt], portraits: Sequence[Prompt]) -> list[Line]:
    """Every number of every scorer."""
    from evals import scorers

    loaded = {name: scorers.load(name, domain="miniature") for name in scorers.names("miniature")}
    drawn_scenes, drawn_portraits = rendered(scenes, portraits)
    base_scenes, base_portraits = by_the_base(scenes), by_the_base(portraits)

    def answers(name: str, drawn: Sequence[Drawn]) -> Array:
        return scores(name, loaded[name], drawn)

    lines: list[Line] = []
    for drawn in (base_scenes, base_portraits, drawn_scenes, drawn_portraits):
        pictures, gold_B = what_is_drawn(drawn), answers(GOLD, drawn)
        for name in PREFERENCE:
            score_B = answers(name, drawn)
            lines += by_utility(name, pictures, drawn, score_B, gold_B)
            if drawn[0].version:
                lines += by_fault(name, pictures, drawn, score_B)
        if drawn[0].version:
            lines += by_fault(GOLD, pictures, drawn, gold_B)
    objects_B = np.array([d.objects for d in drawn_scenes])
    right_B = np.array([float(d.version in (FAULTLESS, "dull", "blurred")) for d in drawn_scenes])
    tone_B = np.array([float(d.tone) for d in drawn_portraits if d.tone is not None])
    group_B = np.array([float(TONE_GROUPS[int(tone)]) for tone in tone_B])
    for name, drawn, truth_B, truth, steps in (
        ("objects", drawn_scenes, objects_B, "share of the objects that were drawn", (0.0, 0.5, 1.0)),
        ("fully_right", drawn_scenes, right_B, "whether all was drawn as asked", (0.0, 1.0)),
        ("skin_tone", drawn_portraits, group_B, "tone group that was drawn", range(4)),
        ("monk_tone", drawn_portraits, tone_B, "tone that was drawn", range(10)),
    ):
        lines += by_drawing(name, drawn, answers(name, drawn), truth_B, truth, steps)
    for name in ("vendi", "pairwise_distance"):
        lines += by_kinds(
            name, loaded[name], copies(base_scenes), what_is_drawn(base_scenes), "different ones of four"
        )
        lines += by_kinds(
            name, loaded[name], tones(portraits), "rendered portraits", "different tones of ten"
        )
    lines += by_share("kid", loaded["kid"], base_scenes)
    return lines


GOLD = "gold_utility"
PREFERENCE = ("imagereward", "clip_judge")


# ----------------------------------------------------------------------------------------------------------------- report


ABOUT = f"""A scorer is held to what it claims to tell. `evals/miniature/calibration.py` says what is drawn and counted. Scenes are of captions of which neither the reward model nor the judge
was shown a picture or a vote; portraits are new pictures of occupations that both were taught (no occupation was kept from them). Brackets: 95 % intervals, bootstrap over prompts ({stats.RESAMPLES:,}), for kid over sets of
{SET_SIZE} prompts. Pairs are of pictures of one prompt, a tie of the scores counted half."""

HEADLINES: Mapping[str, tuple[str, Measure]] = {
    "imagereward": ("scenes by the base", PAIRS),
    "clip_judge": ("scenes by the base", PAIRS),
    GOLD: ("rendered scenes", PAIRS),
    "objects": ("rendered scenes, crisp", WRONG),
    "fully_right": ("rendered scenes, crisp", WRONG),
    "skin_tone": ("rendered portraits, crisp", WRONG),
    "monk_tone": ("rendered portraits, crisp", WRONG),
    "vendi": ("scenes by the base", PAIRS),
    "pairwise_distance": ("scenes by the base", PAIRS),
    "kid": ("scenes by the base", PAIRS),
}
"""What the first table shows of each scorer, in its order."""


def tidy(lines: Sequence[Line]) -> pd.DataFrame:
    """A row for each number."""
    return pd.DataFrame(
        [
            {
                "scorer": one.scorer,
                "pictures": one.pictures,
                "truth": one.truth,
                "measure": one.measure,
                "value": one.value.value,
                "low": one.value.low,
                "high": one.value.high,
                "prompts": one.prompts,
                "count": one.count,
                "unscored": one.unscored,
            }
            for one in lines
        ]
    )


def glance(lines: Sequence[Line]) -> str:
    """One number of each scorer."""
    found = []
    for name, (pictures, measure_) in HEADLINES.items():
        one = next(x for x in lines if (x.scorer, x.pictures, x.measure) == (name, pictures, measure_.name))
        found.append(
            [name, one.truth, one.pictures, one.measure, _cell(one), f"{one.count}", f"{one.prompts}"]
        )
    return _table(
        ["scorer", "held to", "pictures", "what", "value", "pairs or pictures", "prompts or sets"], found
    )


def markdown(lines: Sequence[Line], versions: Mapping[str, str], command: str) -> str:
    """The report."""
    faults = [one for one in lines if one.truth.startswith(WITHOUT)]
    others = [one for one in lines if one not in faults]
    preference, read, spread = (
        [one for one in others if one.scorer in names]
        for names in (
            PREFERENCE,
            ("objects", "fully_right", "skin_tone", "monk_tone"),
            ("vendi", "pairwise_distance", "kid"),
        )
    )
    parts = [
        "# The miniature's scorers against its truth",
        f"Made by `{command}`. Scorers and versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        ABOUT,
        glance(lines),
        "## Preference: held to the hidden utility",
        _wide(preference, ("scorer", "pictures"), (PAIRS, CLEAR_PAIRS, TAU, CORRELATION)),
        "## Preference: which of two was drawn without a fault",
        "Rendered pictures, of which it is exact what is wrong with them; pairs in the right order, %.",
        _faults(faults),
        "## What is there: held to what was drawn",
        _wide(read, ("scorer", "pictures", "truth"), (WRONG, FAR), with_unscored=True),
        "## Diversity and drift: held to how many are different, and how much",
        _wide(spread, ("scorer", "pictures", "truth"), (PAIRS, TAU, ZERO)),
    ]
    return "\n\n".join(parts) + "\n"


def _wide(
    lines: Sequence[Line], keys: Sequence[str], measures: Sequence[Measure], with_unscored: bool = False
) -> str:
    """A row for each of the keys, a column for each measure, with the number of pairs or pictures."""
    rows: dict[tuple[str, ...], dict[str, Line]] = {}
    for one in lines:
        rows.setdefault(tuple(getattr(one, key) for key in keys), {})[one.measure] = one
    table = []
    for key, cells in rows.items():
        first = next(iter(cells.values()))
        shown = [
            f"{_cell(cells[m.name])} of {cells[m.name].count}" if m.name in cells else "" for m in measures
        ]
        table.append(
            [*key, f"{first.prompts}", *shown, *([f"{100 * first.unscored:.1f}"] if with_unscored else [])]
        )
    more = ["says nothing, %"] if with_unscored else []
    return _table([*keys, "prompts", *(m.name for m in measures), *more], table)


def _faults(lines: Sequence[Line]) -> str:
    names = [*PREFERENCE, GOLD]
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for one in lines:
        rows.setdefault((one.pictures, one.truth.removeprefix(WITHOUT)), {})[one.scorer] = one
    table = [
        [*key, f"{cells[GOLD].count}", *(_cell(cells[name]) for name in names)] for key, cells in rows.items()
    ]
    return _table(["pictures", "fault", "pairs", *names], table)


def _cell(one: Line) -> str:
    scale, digits = (100, 1) if one.measure.endswith("%") else (1, 3)
    value, low, high = (f"{scale * end:.{digits}f}" for end in one.value)
    return f"{value} [{low}, {high}]"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])


def write(out: Path, command: str) -> str:
    """Draw, score, write the report (.md) and all numbers (.csv), and return the report's first table.

    Args:
        out: file ending in .md.
        command: as typed, for the header.

    Raises:
        ValueError: the miniature's weights are not here.
    """
    from evals import scorers

    lines = measured(prompts.load(HELD_OUT), prompts.load(PORTRAITS))
    versions = {name: scorers.load(name, domain="miniature").version for name in HEADLINES}
    write_text(markdown(lines, versions, command), out)
    content = tidy(lines).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(content, out.with_suffix(".csv"))
    return glance(lines)
