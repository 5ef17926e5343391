"""Several judges of one pair of checkpoints: how far they agree, and where they do not.

A judge is a scorer that a win rate is made of. What it says of a pair of checkpoints is the half-tie win rate of `evals.metrics._wins`, at the margin that its metric
fixes beforehand; of a picture, the difference of its two scores at the same prompt and noise.

Shape suffixes, beside those of `evals.stats`: J judges, B pictures (of all training seeds of both sides).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from evals import metrics, stats
from evals.rows import without_copies
from evals.stats import Array, Interval, Resampled, Resampler, Sample

TAU_RESAMPLES = 1_000
"""Resamples of a Kendall tau, whose cost grows with the square of the number of prompts."""
_CHUNK = 512
"""Pictures that are set beside all others at a time: memory only."""


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two judges over the pictures of a run, each by its difference to the base's picture."""

    model: str
    prompt_set: str
    experiment: str
    judges: tuple[str, str]
    """Scorers."""
    tau: Interval
    pictures: int
    """Pairs of pictures that every judge of the panel has scored."""
    prompts: int


@dataclass(frozen=True)
class Verdict:
    """What one judge says of two checkpoints."""

    metric: str
    rate: Interval
    """Half-tie win rate of the first over the second."""
    trained_on: bool
    """One of the two was trained on it."""


@dataclass(frozen=True)
class Flip:
    """Two checkpoints that judges order differently, each distinguishably."""

    model: str
    prompt_set: str
    first: str
    second: str
    for_first: tuple[Verdict, ...]
    for_second: tuple[Verdict, ...]


@dataclass(frozen=True)
class Panel:
    """What several judges say of each other."""

    agreements: tuple[Agreement, ...]
    flips: tuple[Flip, ...]
    pairs: int
    """Pairs of checkpoints, prompt sets and all, that two judges or more were asked about."""


class _Judged(NamedTuple):
    """One checkpoint in the eyes of the panel on one prompt set."""

    experiment: str
    scores_JRB: Array
    """NaN where a judge has no score of a picture."""
    trained_on: tuple[bool, ...]


class _Bench(NamedTuple):
    """The panel on one prompt set."""

    prompt_set: str
    judges: tuple[str, ...]
    """Names of metrics."""
    prompt_B: npt.NDArray[np.int64]
    """The prompt of each picture, ascending."""
    prompts: tuple[str, ...]
    """Ids."""
    judged: tuple[_Judged, ...]


def judges() -> tuple[str, ...]:
    """The metrics that are win rates with a tie margin."""
    return tuple(
        name
        for name in metrics.names()
        if metrics.load(name).needs_base and hasattr(metrics.load(name), "tie_margin")
    )


def together(panels: Sequence[Panel]) -> Panel:
    """The panels of several models as one."""
    return Panel(
        agreements=tuple(a for panel in panels for a in panel.agreements),
        flips=tuple(f for panel in panels for f in panel.flips),
        pairs=sum(panel.pairs for panel in panels),
    )


def of_model(model: str, rows: pd.DataFrame, against: str, resampler: Resampler) -> Panel:
    """What the judges of one model's rows say, on every prompt set that two or more of them have scored.

    Args:
        model: its name.
        rows: its score rows.
        against: the experiment that is first in every order.
        resampler: that of the tables, so that a rate here is the one there.
    """
    agreements: list[Agreement] = []
    flips: list[Flip] = []
    pairs = 0
    for bench in _benches(rows, against):
        sample = resampler.prompts(bench.prompt_set, bench.prompts)
        base, *runs = bench.judged
        for run in runs if base.experiment == against else ():
            agreements += _agreements(model, bench, run, base, sample.weight_NP)
        for place, second in enumerate(bench.judged):
            others = bench.judged[place + 1 :]
            pairs += len(others)
            flips += _flips(model, bench, others, second, sample, resampler)
    return Panel(tuple(agreements), tuple(flips), pairs)


def _benches(rows: pd.DataFrame, against: str) -> Iterator[_Bench]:
    scorer_of = {name: metrics.load(name).scorer for name in judges()}
    rows = rows[rows["scorer"].isin(scorer_of.values())]
    for prompt_set, part in rows.groupby("prompt_set", sort=False):
        scored = set(part["scorer"])
        asked = tuple(name for name, scorer in scorer_of.items() if scorer in scored)
        if len(asked) < 2 or part["experiment"].nunique() < 2:
            continue
        pictures = pd.MultiIndex.from_frame(part[["prompt_id", "image"]])
        number, known = pd.factorize(pictures, sort=True)
        prompt_B, ids = pd.factorize(pd.MultiIndex.from_tuples(known).get_level_values(0))
        part = part.assign(picture_number=number)
        names = sorted(part["experiment"].unique(), key=lambda name: name != against)
        judged = [
            _judged(name, part[part["experiment"] == name], asked, scorer_of, len(prompt_B)) for name in names
        ]
        yield _Bench(
            str(prompt_set), asked, np.asarray(prompt_B, np.int64), tuple(map(str, ids)), tuple(judged)
        )


def _judged(
    experiment: str, rows: pd.DataFrame, asked: Sequence[str], scorer_of: dict[str, str], pictures: int
) -> _Judged:
    rows = without_copies(rows)
    seeds = {seed: place for place, seed in enumerate(sorted(rows["seed"].unique()))}
    scores_JRB = np.full((len(asked), len(seeds), pictures), np.nan)
    trained = []
    for place, name in enumerate(asked):
        mine = rows[rows["scorer"] == scorer_of[name]]
        scores_JRB[place, mine["seed"].map(seeds), mine["picture_number"]] = mine["value"]
        trained.append(bool(mine["trained_on"].any()))
    return _Judged(experiment, scores_JRB, tuple(trained))


# ------------------------------------------------------------------------------------------------- agreement


def _agreements(model: str, bench: _Bench, run: _Judged, base: _Judged, weight_NP: Array) -> list[Agreement]:
    """Tau-b of every two judges over one run's differences to the base, of the pictures that both judges of a pair and all others have scored."""
    able = [
        place
        for place in range(len(bench.judges))
        if np.isfinite(run.scores_JRB[place]).any() and np.isfinite(base.scores_JRB[place]).any()
    ]
    seeds = product(range(run.scores_JRB.shape[1]), range(base.scores_JRB.shape[1]))
    parts = [run.scores_JRB[able][:, r] - base.scores_JRB[able][:, s] for r, s in seeds]
    order = np.argsort(np.tile(bench.prompt_B, len(parts)), kind="stable")
    difference_JB = np.concatenate(parts, axis=1)[:, order]
    prompt_B = np.tile(bench.prompt_B, len(parts))[order]
    scored_B = np.isfinite(difference_JB).all(axis=0)
    difference_JB, prompt_B = difference_JB[:, scored_B], prompt_B[scored_B]
    if len(able) < 2 or len(prompt_B) < 2:
        return []
    taus = kendall(difference_JB, prompt_B, weight_NP[:TAU_RESAMPLES])
    return [
        Agreement(
            model,
            bench.prompt_set,
            run.experiment,
            (metrics.load(bench.judges[able[j]]).scorer, metrics.load(bench.judges[able[k]]).scorer),
            tau,
            len(prompt_B),
            len(np.unique(prompt_B)),
        )
        for (j, k), tau in taus.items()
    ]


def kendall(
    difference_JB: Array, prompt_B: npt.NDArray[np.int64], weight_NP: Array
) -> dict[tuple[int, int], Interval]:
    """Kendall's tau-b of every two judges, with the interval of a bootstrap over prompts.

    With c_ab the product of the signs of both judges' x_a - x_b, tau-b is sum c_ab over the root of the products of each judge's own sum (its untied pairs). A resample
    weighs every prompt w, so each sum is w' C w with C summed by prompts: the tau-b of the pictures repeated as they were drawn, since copies are tied. One prompt alone
    cannot be resampled: the interval has no ends.

    Args:
        difference_JB: finite.
        prompt_B: prompt of each picture, ascending.
        weight_NP: resamples.
    """
    judges = range(len(difference_JB))
    sums: dict[tuple[int, int], tuple[float, Array]] = {}
    for j in judges:
        for k in judges[j:]:
            agree_PP = _concordance(difference_JB[j], difference_JB[k], prompt_B, weight_NP.shape[1])
            weighed_N = np.einsum("np,np->n", weight_NP.astype(np.float32) @ agree_PP, weight_NP)
            sums[j, k] = float(agree_PP.sum(dtype=np.float64)), weighed_N
    found = {}
    alone = len(np.unique(prompt_B)) < 2
    with np.errstate(invalid="ignore", divide="ignore"):
        for j, k in combinations(judges, 2):
            point, draws_N = (
                np.divide(sums[j, k][i], np.sqrt(np.multiply(sums[j, j][i], sums[k, k][i]))) for i in range(2)
            )
            ends = np.full_like(draws_N, np.nan) if alone else np.asarray(draws_N)
            found[j, k] = stats.percentile_interval(float(point), ends)
    return found


def _concordance(
    x_B: Array, y_B: Array, prompt_B: npt.NDArray[np.int64], prompts: int
) -> npt.NDArray[np.float32]:
    """Sum of sign(x_a - x_b) sign(y_a - y_b) over the pictures a and b of every two prompts, [P, P]."""
    starts = np.flatnonzero(np.diff(prompt_B, prepend=-1))
    of_picture = np.zeros((len(x_B), len(starts)), np.float32)
    for low in range(0, len(x_B), _CHUNK):
        rows = slice(low, low + _CHUNK)
        product_BB = np.sign(x_B[rows, None] - x_B[None, :]) * np.sign(y_B[rows, None] - y_B[None, :])
        of_picture[rows] = np.add.reduceat(product_BB, starts, axis=1)
    agree_PP = np.zeros((prompts, prompts), np.float32)
    present = prompt_B[starts]
    agree_PP[np.ix_(present, present)] = np.add.reduceat(of_picture, starts, axis=0)
    return agree_PP


# --------------------------------------------------------------------------------------------------- flips


def _flips(
    model: str,
    bench: _Bench,
    others: Sequence[_Judged],
    second: _Judged,
    sample: Sample,
    resampler: Resampler,
) -> list[Flip]:
    """The checkpoints that a judge puts above the second and another below it, both with an interval that leaves out one half."""
    rates = [_rates(bench, place, others, second, sample, resampler) for place in range(len(bench.judges))]
    found = []
    for first, of_judges in zip(others, zip(*rates, strict=True), strict=True):
        verdicts = [
            Verdict(name, rate, first.trained_on[place] or second.trained_on[place])
            for place, (name, rate) in enumerate(zip(bench.judges, of_judges, strict=True))
        ]
        above = tuple(v for v in verdicts if v.rate.low > 0.5)
        below = tuple(v for v in verdicts if v.rate.high < 0.5)
        if above and below:
            found.append(Flip(model, bench.prompt_set, first.experiment, second.experiment, above, below))
    return found


def _rates(
    bench: _Bench,
    place: int,
    others: Sequence[_Judged],
    second: _Judged,
    sample: Sample,
    resampler: Resampler,
) -> list[Interval]:
    """One judge's half-tie win rates over the second checkpoint, every training seed of one beside every seed of the other.

    Args:
        bench: the panel.
        place: of the judge.
        others: the checkpoints, [K] training seeds together with those of the second.
        second: what they are compared with.
        sample: of the prompts.
        resampler: of the training seeds.
    """
    margin: float = getattr(metrics.load(bench.judges[place]), "tie_margin")  # noqa: B009  no part of the protocol
    starts = np.flatnonzero(np.diff(bench.prompt_B, prepend=-1))
    beside_QB = second.scores_JRB[place]
    difference_KB = np.concatenate(
        [(one.scores_JRB[place][:, None] - beside_QB[None]).reshape(-1, beside_QB.shape[1]) for one in others]
        or [np.empty((0, beside_QB.shape[1]))]
    )
    net_KB = (difference_KB > margin).astype(np.float64) - (difference_KB < -margin)
    pairs_KP = np.add.reduceat(np.isfinite(difference_KB).astype(np.float64), starts, axis=1)
    valid_KP = (pairs_KP > 0).astype(np.float64)
    net_KP = np.add.reduceat(net_KB, starts, axis=1) / np.maximum(pairs_KP, 1)
    net_NK = sample.weight_NP @ net_KP.T
    valid_NK = np.ones_like(net_NK) if valid_KP.all() else sample.weight_NP @ valid_KP.T
    weight_NQ = resampler.seeds(f"seeds of {second.experiment}", len(beside_QB))
    found: list[Interval] = []
    start = 0
    for one in others:
        weight_NR = resampler.seeds(f"seeds of {one.experiment}", len(one.scores_JRB[place]))
        weight_NK = (weight_NR[:, :, None] * weight_NQ[:, None, :]).reshape(len(weight_NR), -1)
        mine = slice(start, start := start + weight_NK.shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            lead = np.divide(net_KP[mine].sum(), valid_KP[mine].sum()) / 2
            lead_N = (
                (weight_NK * net_NK[:, mine]).sum(axis=1) / (weight_NK * valid_NK[:, mine]).sum(axis=1) / 2
            )
        if not stats.several_prompts(valid_KP[mine] > 0):
            lead_N = np.full_like(lead_N, np.nan)
        told_KPS = np.stack([net_KP[mine], valid_KP[mine]], axis=2)
        influence_KP = stats.influence(told_KPS, _lead, sample.strata)
        ends = stats.interval(Resampled(float(lead), lead_N, influence_KP, sample.strata))
        found.append(Interval(*(0.5 + min(max(end, -0.5), 0.5) for end in ends)))
    return found


def _lead(mean_S: Array) -> Array:
    """How far the half-tie rate is above one half, of the mean net wins and the mean share of prompts with a pair."""
    with np.errstate(invalid="ignore", divide="ignore"):
        lead: Array = mean_S[..., 0] / mean_S[..., 1] / 2
    return lead
