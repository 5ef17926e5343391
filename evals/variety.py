"""Two alarms for the foot of a table: prompts that have lost their variety, and pictures that are one and the same.

Both are pure functions of score rows. A mean Vendi score can stay up while some prompts collapse to one picture, and a prompt whose pictures were all
drawn from one seed looks collapsed whatever the model can do (OneIG-Benchmark's issue 6: a diversity a thousand times too small).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special

from evals import order, stats
from evals.metrics import Array, per_prompt
from evals.metrics._equal import refuse_unequal
from evals.rows import PROMPT

ONE_PICTURE = 1.05
"""Vendi score of order 1 up to which the pictures of a prompt are one picture; of another order that is `one_picture`.

Four pictures reach it where every two have a cosine of .991, sixteen at .994: copies that differ in their noise.
"""
LOST = 0.5
"""Share of the base's variety, its Vendi score less the 1 that every set has, below which a prompt has lost it: half of what there was to see."""
LEVEL = 0.05
"""How often a table of runs that have lost nothing may sound an alarm: its significance, after Holm's correction over all of the table (`corrected`)."""
RUN = ["experiment", "model", "seed", "prompt_set"]
"""What tells one run's pictures of one prompt set."""
FIRST = 3
"""How many prompts or pictures a sentence names."""


@dataclass(frozen=True)
class Collapse:
    """What became of the variety of one prompt set in one run."""

    experiment: str
    seed: int
    prompt_set: str
    scorer: str
    prompts: int
    """That have a score on both sides."""
    collapsed: tuple[str, ...]
    """Prompts that have, by the base's measure (`is_collapsed`)."""
    base_collapsed: int
    """How many of the base's have by the run's measure: what chance does to two models of equal variety."""
    p: float
    """Exact McNemar test of these two counts, after Holm's correction where `tests` is more than one."""
    tests: int = 1
    """Over how many tests p is corrected."""
    conflict: str = ""
    """Where a comparison was forced: in what the scores of run and base differ."""

    @property
    def alarm(self) -> bool:
        """Whether significantly more prompts have collapsed than the other way round."""
        return len(self.collapsed) > self.base_collapsed and self.p < LEVEL

    @property
    def sentence(self) -> str:
        """For the foot of a table."""
        verdict = "COLLAPSE" if self.alarm else "no collapse"
        named = f", the first {', '.join(self.collapsed[:FIRST])}" if self.collapsed else ""
        how = f" after Holm's correction over {self.tests} such tests" if self.tests > 1 else ""
        return (
            f"{verdict}: {self.experiment} seed {self.seed} on {self.prompt_set} ({self.scorer}): {len(self.collapsed)} of {self.prompts} prompts "
            f"have lost their variety{named}; {self.base_collapsed} would have with run and base exchanged (p = {self.p:.2g}{how})"
            f"{f'; ‡ forced: {self.conflict}' if self.conflict else ''}"
        )


def order_of(scorer: str) -> float | None:
    """The order of a Vendi scorer; None for any other."""
    if scorer in order.VENDI:
        return 1.0
    other = order.split(scorer)
    return None if other is None else other[1]


@cache
def one_picture(q: float, images: int) -> float:
    """Vendi score of order q up to which so many pictures, two or more, are one: that of pictures as alike as those whose score of order 1 is `ONE_PICTURE`."""
    if q == 1:
        return ONE_PICTURE
    cosine = float(optimize.brentq(lambda c: _alike(1, images, c) - ONE_PICTURE, 0.0, 1.0, xtol=1e-14))
    return _alike(q, images, cosine)


def _alike(q: float, images: int, cosine: float) -> float:
    """Vendi score of order q of pictures of which every two have that cosine: one eigenvalue is large, and all others are the same."""
    first, other = (1 + (images - 1) * cosine) / images, (1 - cosine) / images
    if q == float("inf"):
        return 1 / first
    if q == 1:
        return float(np.exp(special.entr(first) + (images - 1) * special.entr(other)))
    return float((first**q + (images - 1) * other**q) ** (1 / (1 - q)))


def is_collapsed(vendi_P: Array, base_P: Array, one: float = ONE_PICTURE) -> npt.NDArray[np.bool_]:
    """Which prompts have one picture (`one_picture`), or less than half of the base's variety (`LOST`); both scores at the same number of pictures."""
    collapsed: npt.NDArray[np.bool_] = (vendi_P <= one) | (vendi_P - 1 < LOST * (base_P - 1))
    return collapsed


def collapses(rows: pd.DataFrame, base_rows: pd.DataFrame) -> list[Collapse]:
    """One record for each training seed and prompt set.

    Half of a prompt's variety can be lost by chance, so what is tested is whether the run lost that much of the base's more often than the base of
    the run's: for two models of equal variety one is as likely as the other.

    Args:
        rows: of one experiment and one Vendi scorer, of any order.
        base_rows: the base's, row by row (`evals.rows.same_images`).

    Raises:
        ValueError: rows of another scorer; prompts with different numbers of images.
    """
    if rows.empty:
        return []
    experiment, scorer = str(rows["experiment"].iloc[0]), str(rows["scorer"].iloc[0])
    q = order_of(scorer)
    if q is None:
        raise ValueError(
            f"a collapse is told from a Vendi score ({' or '.join(order.VENDI)}, of any order), not from {scorer}"
        )
    refuse_unequal(rows)
    found = per_prompt(rows, run=rows["value"], base=base_rows["value"]).dropna()
    images = rows.dropna(subset="value").groupby(list(PROMPT)).size().groupby("prompt_set").max()
    return [
        _collapse(
            experiment,
            scorer,
            int(str(seed)),
            str(prompt_set),
            part,
            one_picture(q, int(images[str(prompt_set)])),
        )
        for (seed, prompt_set), part in found.groupby(["seed", "prompt_set"], sort=True)
    ]


def _collapse(
    experiment: str, scorer: str, seed: int, prompt_set: str, part: pd.DataFrame, one: float
) -> Collapse:
    run_P, base_P = part["run"].to_numpy(), part["base"].to_numpy()
    mine, other = is_collapsed(run_P, base_P, one), is_collapsed(base_P, run_P, one)
    return Collapse(
        experiment,
        seed,
        prompt_set,
        scorer,
        prompts=len(part),
        collapsed=tuple(part.index.get_level_values("prompt_id")[mine]),
        base_collapsed=int(other.sum()),
        p=stats.mcnemar_exact(int((mine & ~other).sum()), int((other & ~mine).sum())),
    )


def corrected(found: Sequence[Collapse]) -> list[Collapse]:
    """The records of all runs, training seeds, prompt sets and scorers of a table, which are one family, after Holm's correction.

    Every seed is tested by itself, for variety is lost in single runs; a table of many would else sound an alarm by chance alone.
    """
    p = stats.holm([one.p for one in found])
    return [replace(one, p=after, tests=len(found)) for one, after in zip(found, p, strict=True)]


@dataclass(frozen=True)
class Duplicates:
    """Pictures of one prompt set in one run that are the same, pixel by pixel."""

    experiment: str
    seed: int
    prompt_set: str
    within: tuple[tuple[str, tuple[int, ...]], ...]
    """A prompt, and those of its images that are one picture."""
    across: tuple[tuple[tuple[str, int], ...], ...]
    """A picture that several prompts have: each as (prompt, image)."""
    prompts: int
    """Of the set, with at least one picture."""

    @property
    def sentences(self) -> list[str]:
        """For the foot of a table."""
        where, told = f"{self.experiment} seed {self.seed} on {self.prompt_set}", []
        if self.within:
            prompts = len({prompt for prompt, _ in self.within})
            prompt, images = self.within[0]
            told.append(
                f"SAME PICTURE: {where}: {prompts} of {self.prompts} prompts have one picture several times, the first {prompt} "
                f"(images {', '.join(map(str, images))}): were they drawn from one seed, or blanked?"
            )
        if self.across:
            # of a prompt that has it several times the first
            of_prompts = dict(reversed(self.across[0]))
            places = " and ".join(
                f"{prompt} (image {image})" for prompt, image in [*reversed(of_prompts.items())][:FIRST]
            )
            count = f"{len(self.across)} picture{'s are' if len(self.across) > 1 else ' is'}"
            told.append(
                f"SAME PICTURE: {where}: {count} shared by prompts, the first by {places}: have they one text, or was the picture blanked?"
            )
        return told


def duplicates(rows: pd.DataFrame) -> list[Duplicates]:
    """One record for each run and prompt set that has the same picture twice.

    Sets are looked at one by one: two of them may share a text, and then rightly share its picture. A picture without a hash is not looked at.

    Args:
        rows: of any scorers, with the column `picture`.
    """
    pictures = _pictures(rows)
    pictures = pictures[pictures["picture"] != ""].sort_values([*RUN, "prompt_id", "image"], kind="stable")
    again = pictures[pictures.duplicated([*RUN, "picture"], keep=False)]
    prompts = pictures.groupby(RUN)["prompt_id"].nunique().rename("prompts")
    return [_duplicates(part) for _, part in again.join(prompts, on=RUN).groupby(RUN, sort=True)]


def duplicate_notes(rows: pd.DataFrame) -> list[str]:
    """All that is to be said of `duplicates`, for the foot of a table; also of how many pictures nothing can be."""
    notes = [sentence for found in duplicates(rows) for sentence in found.sentences]
    pictures = _pictures(rows)
    unknown = int((pictures["picture"] == "").sum())
    if unknown:
        notes.append(
            f"of {len(pictures)} pictures {unknown} {'has' if unknown == 1 else 'have'} no hash, as none was kept or nothing could be decoded: whether such a picture is there twice is not known"
        )
    return notes


def copies(rows: pd.DataFrame, base_rows: pd.DataFrame) -> list[str]:
    """A sentence for every run and prompt set whose pictures are all those of another, pixel by pixel, prompt by prompt: it was scored under two names, or nothing of it was trained.

    Args:
        rows: of runs.
        base_rows: of what they are compared with.
    """
    key = ["prompt_set", "prompt_id", "image"]
    of_base = _pictures(base_rows)[["experiment", *key, "picture"]].drop_duplicates()
    mine = _pictures(rows)
    both = mine.merge(of_base, on=[*key, "picture"], how="left", suffixes=("", "_base"))
    both["same"] = both["experiment_base"].notna() & (both["picture"] != "")
    told = []
    for where, part in both.groupby(RUN, sort=True):
        if part["same"].all():
            experiment, _, seed, prompt_set = where
            told.append(
                f"SAME PICTURES: {experiment} seed {seed} on {prompt_set}: all {len(part)} are those of {part['experiment_base'].iloc[0]}, to the pixel: "
                "was one checkpoint scored under two names, the same folder given twice, or is nothing of it trained?"
            )
    return told


def _pictures(rows: pd.DataFrame) -> pd.DataFrame:
    """Every picture once, however many scorers it has rows of; "" where its hash is not known."""
    columns = rows[[*RUN, "prompt_id", "image", "picture"]]
    return columns.fillna({"picture": ""}).drop_duplicates()


def _duplicates(part: pd.DataFrame) -> Duplicates:
    """Of the rows of pictures that one run has twice in one prompt set."""
    within, across = [], []
    for _, same in part.groupby("picture", sort=False):
        places = list(zip(map(str, same["prompt_id"]), map(int, same["image"]), strict=True))
        prompts = dict.fromkeys(prompt for prompt, _ in places)
        for prompt in prompts:
            images = tuple(image for other, image in places if other == prompt)
            if len(images) > 1:
                within.append((prompt, images))
        if len(prompts) > 1:
            across.append(tuple(places))
    first = part.iloc[0]
    return Duplicates(
        str(first["experiment"]),
        int(first["seed"]),
        str(first["prompt_set"]),
        tuple(within),
        tuple(across),
        int(first["prompts"]),
    )
