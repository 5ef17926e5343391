"""Metrics: what score rows say about a checkpoint. One file each; the file name is the registry.

The map of this package
    win_rate_reward (ImageReward), win_rate_pickscore,
    win_rate_hpsv2, win_rate_aesthetic,
    win_rate_clip_score, win_rate_judge, win_rate_gold  preferred to the base at the same prompt and noise: the panel of judges
    reward_mean, pickscore_mean, hpsv2_mean,
    aesthetic_mean, clip_score_mean, judge_mean,
    gold_quality                                        means of a score
    detection, fully_right                              composition (Eq 13, and its strict form)
    parity, parity_excess, parity_excess_regrouped,
    parity_unbiased, parity_pooled, unusable            fairness of tone (Eq 12, its floor, its forms)
    diversity_vendi, diversity_vendi_clip, and of
    another order q diversity_vendi_q2 (`evals.order`),
    diversity_distance, diversity_lpips                 variety within a prompt
    drift, drift_cmmd                                   distance from the base
    geneval, geneval_<task>, geneval_prompts            GenEval: mean over its six tasks, each of them, prompts with an image that is right
    t2i_attributes, t2i_spatial, t2i_numeracy           T2I-CompBench
    _means, _equal, _wins, _parity, _geneval, _bounds   what several of them share

A win rate has one more constant, `tie_margin`: up to which difference of its scores two pictures are a tie, with the reason for the number. A parity
gap has `most_missing`: above which share of images without a value it is refused, and no number is told. A score that cannot be any number has `bounds`, the least and the largest
value that it can have of so many images of a prompt (`bounds_of`). Which metrics are headlines of a prompt set says the suite (`evals.suites.Part`).

A metric splits as torchmetrics splits update and compute: `statistics` gives S numbers per prompt, `finish` makes the value of
their mean over prompts. So one bootstrap serves them all: resample prompts, average, finish. To add a metric, add one file with
the attributes of `Metric`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from evals import order
from evals.rows import PROMPT
from evals.stats import Array as Array

_DIVERSITY = "diversity_"
"""A metric that is the mean of a score of variety is called this and its scorer."""


class Metric(Protocol):
    """What every module of this package has."""

    title: str
    """As printed in a table."""
    unit: str
    """How it is printed: a "share" in per cent, a "score" with three decimals."""
    higher_is_better: bool | None
    """None: not a quality, a change is only said to be one."""
    scorer: str
    """The scorer whose rows are read."""
    needs_base: bool
    """The value itself is relative to the base (a win rate)."""
    reference: float | None
    """The base's value where that is so by definition, and needs no rows of the base; else None."""
    specialist: str | None
    """The experiment that exists to improve this metric; None: a side effect."""
    ratio_to_base: bool
    """The ratio to the base is meaningful (zero means none) and is printed."""

    def statistics(self, rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
        """Sufficient statistics, indexed [seed, prompt_set, prompt_id]; base_rows has the index of rows, row by row.

        A metric of some prompts leaves out the others.
        """

    def finish(self, mean_S: Array) -> Array:
        """The metric [...] of the mean over prompts of the statistics [..., S]."""


def names(scored: Iterable[str] = ()) -> tuple[str, ...]:
    """All metrics: the files of this folder without a leading underscore, and those of Vendi scores of another order among the scorers given."""
    files = (path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    ordered = (f"{_DIVERSITY}{scorer}" for scorer in {*scored} if order.split(scorer))
    return tuple(sorted((*files, *ordered)))


@cache
def load(name: str) -> Metric:
    """The metric of that name; looked for once, as tables ask thousands of times.

    Raises:
        ValueError: there is none; lists the choices.
    """
    scorer = name.removeprefix(_DIVERSITY)
    if name not in names([scorer]):
        hint = f"; {order.CHOICES}" if order.is_meant(scorer) else ""
        raise ValueError(f"there is no metric {name!r}; choose from {', '.join(names())}{hint}")
    ordered = order.split(scorer)
    if ordered is None:
        return cast(Metric, import_module(f"evals.metrics.{name}"))
    return _of_order(scorer, *ordered)


def _of_order(scorer: str, vendi: str, q: float) -> Metric:
    """The metric of a Vendi scorer, read from one of another order."""
    plain = load(f"{_DIVERSITY}{vendi}")
    parts = {
        name: getattr(plain, name)
        for name in (*Metric.__annotations__, "statistics", "finish", "bounds", "__doc__")
    }
    parts |= {"title": f"{plain.title.removesuffix(')')}, order {q:g})", "scorer": scorer}
    return cast(Metric, SimpleNamespace(**parts))


def bounds_of(metric: Metric, images: int) -> tuple[float, float]:
    """The least and the largest value that a metric can have, of at most so many images of a prompt."""
    known: Callable[[int], tuple[float, float]] | None = getattr(metric, "bounds", None)
    if known is not None:
        return known(images)
    return (0.0, 1.0) if metric.unit == "share" else (-math.inf, math.inf)


def per_prompt(rows: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Mean over the images of each prompt of columns aligned with `rows`; NaN images are left out, all NaN gives NaN."""
    frame = pd.DataFrame(columns, index=rows.index).astype(np.float64)
    # by the names of columns: given columns themselves, pandas first looks for one of that name, and prints them to say there is none
    return frame.assign(**{name: rows[name] for name in PROMPT}).groupby(list(PROMPT), sort=True).mean()


def first(mean_S: Array) -> Array:
    """The only statistic is the value."""
    return mean_S[..., 0]
