"""Score rows of a made-up study, for the tests of tables and report: known effects, no picture behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from evals.rows import Row, table

SETS = ("miniature-preference-unseen", "miniature-scenes-unseen", "miniature-portraits-unseen")
TRAINED = {
    "base": (),
    "imagereward": ("imagereward",),
    "compositionality": ("objects",),
    "fairness": ("skin_tone",),
    "joint": ("imagereward", "objects", "skin_tone"),
}
SHIFT = {  # what an experiment adds: (preference, composition, fairness)
    "base": (0.0, 0.0, 0.0),
    "imagereward": (1.2, 0.05, -0.1),
    "compositionality": (0.1, 0.4, 0.0),
    "fairness": (0.0, 0.0, 0.9),
    "joint": (1.1, 0.38, 0.8),
}


def study(
    prompts: int = 8,
    images: int = 4,
    seeds: Iterable[int] = (0, 1),
    experiments: Sequence[str] = tuple(TRAINED),
) -> pd.DataFrame:
    """Rows of all experiments on three prompt sets; the base has seed 0 only."""
    records: list[Row] = []
    for experiment in experiments:
        for seed in (0,) if experiment == "base" else seeds:
            for prompt_set in SETS:
                records += _rows_of(experiment, seed, prompt_set, prompts, images)
    return table(records)


def _rows_of(experiment: str, seed: int, prompt_set: str, prompts: int, images: int) -> Iterator[Row]:
    for prompt in range(prompts):
        noise = np.random.default_rng([SETS.index(prompt_set), prompt])  # shared by all runs: the same noise
        own = np.random.default_rng([SETS.index(prompt_set), prompt, seed, list(TRAINED).index(experiment)])
        tones = _tones(experiment, prompt, images, own)
        level = noise.normal(size=images) + 0.3 * noise.normal()
        group = own.normal(size=2)
        for image in range(images):
            values = _values(experiment, prompt_set, level[image], tones[image], own, group)
            for scorer, value in values.items():
                trained = int(scorer in TRAINED[experiment])
                yield Row(
                    experiment,
                    "miniature",
                    seed,
                    "miniature:012345",
                    prompt_set,
                    "0123456789ab",
                    f"p{prompt:03d}",
                    image,
                    f"{list(TRAINED).index(experiment)}{seed}{SETS.index(prompt_set)}{prompt:05d}{image:04d}",
                    scorer,
                    "0a1b2c3d",
                    trained,
                    value,
                )


def _tones(experiment: str, prompt: int, images: int, generator: np.random.Generator) -> list[float]:
    fair = SHIFT[experiment][2]
    share = np.full(4, (1 - 0.85) / 3)
    share[prompt % 4] = 0.85
    share = np.clip(share + fair * (0.25 - share), 0.01, None)
    drawn = generator.choice(4, size=images, p=share / share.sum()).astype(float)
    drawn[generator.random(images) < 0.05] = np.nan
    return [float(tone) for tone in drawn]


def _values(
    experiment: str,
    prompt_set: str,
    level: float,
    tone: float,
    generator: np.random.Generator,
    group: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> dict[str, float]:
    liked, composed, _ = SHIFT[experiment]
    gold = level + liked + 0.5 * generator.normal() * (experiment != "base")
    objects = float(np.clip(0.42 + composed + 0.1 * level, 0, 1))
    values = {
        "imagereward": gold + 0.3 * generator.normal(),
        "clip_judge": 0.1 * gold + 0.05 * generator.normal(),
        "gold_utility": gold,
        "vendi": 3.0 - 0.3 * liked + 0.1 * float(group[0]),
        "pairwise_distance": 0.6 - 0.05 * liked + 0.02 * float(group[1]),
    }
    if experiment != "base":
        values["kid"] = 0.02 * (liked + composed) + 0.002 * generator.normal()
    if "portraits" in prompt_set:
        lightest = dict(enumerate((0.0, 4.0, 5.0, 7.0)))
        return values | {"skin_tone": tone, "monk_tone": lightest.get(tone, np.nan)}
    return values | {"objects": objects, "fully_right": float(objects > 0.5)}
