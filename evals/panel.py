"""Several judges of one pair of checkpoints: how far they agree, and where they do not.

A judge is a scorer that a win rate is made of. What it says of a pair of checkpoints is the half-tie win rate of `evals.metrics._wins`, at the margin that its metric
fixes beforehand; of a picture, the difference of its two scores at the same prompt and noise.

Shape suffixes, beside those of `evals.stats`: J judges, B pictures (of all training seeds of both sides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from evals import metrics, stats
from evals.rows import HUMAN, Voices, is_copy, seed_pairs, seeds_of
from evals.stats import Array, Interval, Resampler

_CHUNK = 64
"""Pictures that are set beside all others at a time: memory only."""
_VOTER = "voter"
"""The column that says how many raters have numbers in the place of a row's training seed; 0 where none have."""
_EVEN = 0.5
"""The half-tie win rate of a checkpoint over itself."""


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
    """Pairs of pictures, one of the run and one of the base, that every judge of the panel has scored."""
    prompts: int
    seeds: int
    """Pairs of training seeds that they are of, as the tables set them beside each other."""


@dataclass(frozen=True)
class Verdict:
    """What one judge says of two checkpoints."""

    metric: str
    rate: Interval
    """Half-tie win rate of the first over the second."""
    trained_on: bool
    """One of the two was trained on it."""
    seeds: int = 1
    """Pairs of training seeds: of each seed with itself, or, where they are not the same on both sides, of every two."""


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
    scores: tuple[Mapping[int, Array], ...]
    """Of each judge and each training seed that it saw of this set; NaN where it has no score of a picture."""
    seeds: tuple[tuple[int, ...], ...]
    """Of each judge, those that it saw of any set."""
    trained_on: tuple[bool, ...]
    raters: tuple[int, ...]
    """Of each judge, how many raters stand in the place of each training seed; 0 where none do."""


class _Seeds(NamedTuple):
    """Training seeds of two checkpoints that are set beside each other."""

    pairs: tuple[tuple[int, int], ...]
    streams: tuple[tuple[str, int], ...]
    """What resamples them, by name, and how many seeds or pairs that has: the weights of a pair are the product of its parts'."""


class _Bench(NamedTuple):
    """The panel on one prompt set."""

    prompt_set: str
    judges: tuple[str, ...]
    """Names of metrics."""
    prompt_B: npt.NDArray[np.int64]
    """The prompt of each picture, ascending."""
    asked_JB: npt.NDArray[np.bool_]
    """Pictures that a judge was asked about."""
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


def of_model(
    model: str, rows: pd.DataFrame, against: str, voices: Voices | None, resampler: Resampler
) -> Panel:
    """What the judges of one model's rows say, on every prompt set that two or more of them have scored.

    Args:
        model: its name.
        rows: its score rows.
        against: the experiment that is first in every order.
        voices: its human votes rater by rater (`evals.rows.by_rater`).
        resampler: that of the tables, so that a rate here is the one there.
    """
    kept = np.ones(len(rows), dtype=np.bool_)
    of_against = (rows["experiment"] == against).to_numpy()
    kept[of_against] = ~is_copy(rows[of_against]).to_numpy()
    rows = rows[kept]
    agreements: list[Agreement] = []
    flips: list[Flip] = []
    pairs = 0
    votes = _with_voices(rows, voices)
    benches = list(_benches(rows, against))
    for bench, voted in zip(benches, benches if votes is None else _benches(votes, against), strict=True):
        base, *runs = bench.judged
        for run in runs if base.experiment == against else ():
            agreements += _agreements(model, bench, run, base, resampler)
        for second, first in combinations(voted.judged, 2):
            pairs += 1
            flips += _flips(model, voted, first, second, resampler)
    return Panel(tuple(agreements), tuple(flips), pairs)


def _with_voices(rows: pd.DataFrame, voices: Voices | None) -> pd.DataFrame | None:
    """The rows with those of human votes rater by rater; None where it is not known whose they are."""
    if voices is None:
        return None
    others = rows[rows["scorer"] != HUMAN].assign(**{_VOTER: 0})
    return pd.concat([others, voices.rows.assign(**{_VOTER: voices.raters})], ignore_index=True)


def _benches(rows: pd.DataFrame, against: str) -> Iterator[_Bench]:
    scorer_of = {name: metrics.load(name).scorer for name in judges()}
    rows = rows[rows["scorer"].isin(scorer_of.values())]
    seeds = {(str(e), str(s)): seeds_of(part) for (e, s), part in rows.groupby(["experiment", "scorer"])}
    for prompt_set, part in rows.groupby("prompt_set", sort=False):
        scored = set(part["scorer"])
        asked = {name: scorer for name, scorer in scorer_of.items() if scorer in scored}
        if len(asked) < 2 or part["experiment"].nunique() < 2:
            continue
        pictures = pd.MultiIndex.from_frame(part[["prompt_id", "image"]])
        number, known = pd.factorize(pictures, sort=True)
        prompt_B, ids = pd.factorize(pd.MultiIndex.from_tuples(known).get_level_values(0))
        part = part.assign(picture_number=number)
        asked_JB = np.zeros((len(asked), len(prompt_B)), dtype=np.bool_)
        for place, scorer in enumerate(asked.values()):
            asked_JB[place, part.loc[part["scorer"] == scorer, "picture_number"]] = True
        names = sorted(part["experiment"].unique(), key=lambda name: name != against)
        yield _Bench(
            prompt_set=str(prompt_set),
            judges=tuple(asked),
            prompt_B=np.asarray(prompt_B, np.int64),
            asked_JB=asked_JB,
            prompts=tuple(map(str, ids)),
            judged=tuple(
                _judged(name, part[part["experiment"] == name], tuple(asked.values()), seeds, len(prompt_B))
                for name in names
            ),
        )


def _judged(
    experiment: str,
    rows: pd.DataFrame,
    scorers: Sequence[str],
    seeds: Mapping[tuple[str, str], tuple[int, ...]],
    pictures: int,
) -> _Judged:
    scores: list[dict[int, Array]] = []
    trained, raters = [], []
    for scorer in scorers:
        mine = rows[rows["scorer"] == scorer]
        of_seeds: dict[int, Array] = {}
        for seed, part in mine.groupby("seed"):
            scores_B = of_seeds[int(str(seed))] = np.full(pictures, np.nan)
            scores_B[part["picture_number"]] = part["value"]
        scores.append(of_seeds)
        trained.append(bool(mine["trained_on"].any()))
        raters.append(int(mine[_VOTER].max()) if _VOTER in mine.columns and len(mine) else 0)
    of_judges = tuple(seeds.get((experiment, scorer), ()) for scorer in scorers)
    return _Judged(experiment, tuple(scores), of_judges, tuple(trained), tuple(raters))


def _paired_seeds(place: int, first: _Judged, second: _Judged) -> _Seeds:
    """The training seeds of two checkpoints that one judge sees beside each other on the set, as the tables have them.

    The tables refuse several on both sides that are not the same: of these every seed of one is beside every seed of the other.
    """
    of_first, of_second = first.scores[place], second.scores[place]
    paired = seed_pairs(first.experiment, first.seeds[place], second.experiment, second.seeds[place])
    if paired is None:
        sides = ((first.experiment, len(of_first)), (second.experiment, len(of_second)))
        return _Seeds(
            tuple(product(of_first, of_second)), tuple((f"seeds of {name}", units) for name, units in sides)
        )
    pairs = tuple((r, s) for r, s in paired.pairs if r in of_first and s in of_second)
    return _Seeds(pairs, ((paired.stream, len(pairs)),))


# ------------------------------------------------------------------------------------------------- agreement


def _agreements(
    model: str, bench: _Bench, run: _Judged, base: _Judged, resampler: Resampler
) -> list[Agreement]:
    """Tau-b of every two judges over one run's differences to the base, of the pairs of pictures that both judges of a pair and all others have scored."""
    beside = {place: _paired_seeds(place, run, base).pairs for place in range(len(bench.judges))}
    able = {
        place: pairs
        for place, pairs in beside.items()
        if pairs and np.isfinite(_differences(place, run, base, pairs)).any()
    }
    pairs = sorted(set.intersection(*map(set, able.values()))) if able else []
    if len(able) < 2 or not pairs:
        return []
    difference_JKB = np.stack([_differences(place, run, base, pairs) for place in able])
    scored_KB = np.isfinite(difference_JKB).all(axis=0)
    if scored_KB.sum() < 2:
        return []
    there_B = scored_KB.any(axis=0)
    present, prompt_B = np.unique(bench.prompt_B[there_B], return_inverse=True)
    sample = resampler.prompts(bench.prompt_set, [bench.prompts[prompt] for prompt in present])
    difference_JKB[:, ~scored_KB] = np.nan
    seeds = _seeds_of(run.experiment, base.experiment, pairs)
    taus = kendall(difference_JKB[:, :, there_B], prompt_B, _weights(seeds, resampler), sample)
    scorers = [metrics.load(bench.judges[place]).scorer for place in able]
    return [
        Agreement(
            model=model,
            prompt_set=bench.prompt_set,
            experiment=run.experiment,
            judges=(scorers[j], scorers[k]),
            tau=tau,
            pictures=int(scored_KB.sum()),
            prompts=len(present),
            seeds=len(pairs),
        )
        for (j, k), tau in taus.items()
    ]


def _seeds_of(first: str, second: str, pairs: Sequence[tuple[int, int]]) -> _Seeds:
    """What resamples pairs of seeds that several judges have in common, ascending: as `_paired_seeds`, each side by itself where they are all pairs of some, and else the pairs."""
    sides = tuple((name, len({pair[side] for pair in pairs})) for side, name in enumerate((first, second)))
    if len(pairs) == sides[0][1] * sides[1][1]:
        return _Seeds(tuple(pairs), tuple((f"seeds of {name}", units) for name, units in sides))
    return _Seeds(tuple(pairs), ((f"seeds of {' and '.join(sorted((first, second)))}", len(pairs)),))


def _differences(place: int, first: _Judged, second: _Judged, pairs: Sequence[tuple[int, int]]) -> Array:
    """What one judge gives the first's pictures above the second's, [pairs, B]."""
    of_first, of_second = first.scores[place], second.scores[place]
    return np.stack([of_first[r] - of_second[s] for r, s in pairs])


def kendall(
    difference_JKB: Array, prompt_B: npt.NDArray[np.int64], weight_NK: Array, sample: stats.Sample
) -> dict[tuple[int, int], Interval]:
    """Kendall's tau-b of every two judges, with the interval that every value of the tables has: prompts resampled, and training seeds above them.

    With c_ab the product of the signs of both judges' x_a - x_b, tau-b is sum c_ab over the root of the products of each judge's own sum (its untied pairs), over all
    pairs of pictures. To first order such a sum, a U-statistic, is twice the mean of what each picture has in it, sum_b c_ab (its Hajek projection: van der Vaart,
    "Asymptotic Statistics", 1998, theorem 12.3), which is a sum over prompts and seeds and is resampled as one. What is left out is smaller by the
    number of prompts. One prompt alone cannot be resampled: the interval has no ends.

    Args:
        difference_JKB: of each judge, pair of seeds and picture; NaN where a picture is not scored, for all judges.
        prompt_B: prompt of each picture, ascending from 0.
        weight_NK: resampling weights of the pairs of seeds.
        sample: of the prompts.
    """
    judges = range(len(difference_JKB))
    scored_KB = ~np.isnan(difference_JKB[0])
    starts = np.flatnonzero(np.diff(prompt_B, prepend=-1))
    shares_KBJJ = np.zeros((*scored_KB.shape, len(judges), len(judges)))
    shares_KBJJ[scored_KB] = _concordances(difference_JKB[:, scored_KB])
    of_prompts_KPJJ = np.add.reduceat(shares_KBJJ, starts, axis=1)
    of_prompts_KPJJ[~np.logical_or.reduceat(scored_KB, starts, axis=1)] = np.nan
    found = {}
    for j, k in combinations(judges, 2):
        values_KPS = np.stack([of_prompts_KPJJ[:, :, a, b] for a, b in ((j, k), (j, j), (k, k))], axis=2)
        tau = stats.point(values_KPS, _tau)
        run = stats.resampled(values_KPS, partial(_projected, tau), weight_NK, sample)
        value, low, high = stats.interval(run)
        found[j, k] = Interval(value, max(low, -1.0), min(high, 1.0))
    return found


def _tau(sums_S: Array) -> Array:
    """Tau-b of a pair's sum and each judge's own; NaN where a judge ties all."""
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Array = sums_S[..., 0] / np.sqrt(sums_S[..., 1] * sums_S[..., 2])
    return tau


def _projected(tau: float, mean_S: Array) -> Array:
    """Tau-b of a resample, of the means of what its pictures have in the sums; the sums themselves change by twice as much, as every pair has two pictures."""
    return 2 * _tau(mean_S) - tau


def _concordances(difference_JB: Array) -> Array:
    """Sum over all pictures b of sign(x_a - x_b) sign(y_a - y_b) for every picture a and every two judges, [B, J, J]."""
    pictures = difference_JB.shape[1]
    found = np.empty((pictures, len(difference_JB), len(difference_JB)))
    for low in range(0, pictures, _CHUNK):
        rows = slice(low, low + _CHUNK)
        # whole numbers up to the number of pictures, which float32 holds
        sign_BJB = np.sign(difference_JB.T[rows, :, None] - difference_JB[None]).astype(np.float32)
        found[rows] = sign_BJB @ sign_BJB.transpose(0, 2, 1)
    return found


# --------------------------------------------------------------------------------------------------- flips


def _flips(model: str, bench: _Bench, first: _Judged, second: _Judged, resampler: Resampler) -> list[Flip]:
    """The two checkpoints, where a judge puts the first above the second and another below it, both with an interval that leaves out one half."""
    asked = [_verdict(bench, place, first, second, resampler) for place in range(len(bench.judges))]
    above = tuple(v for v in asked if v is not None and v.rate.low > _EVEN)
    below = tuple(v for v in asked if v is not None and v.rate.high < _EVEN)
    if not (above and below):
        return []
    return [Flip(model, bench.prompt_set, first.experiment, second.experiment, above, below)]


def _verdict(
    bench: _Bench, place: int, first: _Judged, second: _Judged, resampler: Resampler
) -> Verdict | None:
    """One judge's half-tie win rate of the first over the second, as a cell of the tables has it; None where it has not seen both."""
    name, metric = bench.judges[place], metrics.load(bench.judges[place])
    seeds, raters = _paired_seeds(place, first, second), first.raters[place]
    if not seeds.pairs:
        return None
    trained_seeds = len(seeds.pairs) // max(raters, 1)
    if raters:
        (stream, _), *_ = seeds.streams
        seeds = seeds._replace(streams=((stream, trained_seeds), (stats.RATERS, raters)))
    asked_B = bench.asked_JB[place]
    difference_KB = _differences(place, first, second, seeds.pairs)[:, asked_B]
    margin: float = getattr(metric, "tie_margin")  # noqa: B009  no part of the protocol
    prompt_B = bench.prompt_B[asked_B]
    sample = resampler.prompts(bench.prompt_set, [bench.prompts[prompt] for prompt in np.unique(prompt_B)])
    run = stats.resampled(
        _wins(difference_KB, margin, prompt_B), metric.finish, _weights(seeds, resampler), sample
    )
    rate, _ = stats.relative(replace(run, raters=raters), _EVEN, share=True)
    trained_on = first.trained_on[place] or second.trained_on[place]
    return Verdict(name, rate, trained_on, trained_seeds)


def _wins(difference_KB: Array, margin: float, prompt_B: npt.NDArray[np.int64]) -> Array:
    """Shares of won, tied and lost pairs of pictures of each pair of seeds and prompt, [K, P, 3]; NaN where a prompt has no pair."""
    starts = np.flatnonzero(np.diff(prompt_B, prepend=-1))
    outcomes = (difference_KB > margin, np.abs(difference_KB) <= margin, difference_KB < -margin)
    counted_KPS = np.stack(
        [np.add.reduceat(of_KB.astype(np.float64), starts, axis=1) for of_KB in outcomes], axis=2
    )
    with np.errstate(invalid="ignore"):
        shares_KPS: Array = counted_KPS / counted_KPS.sum(axis=2, keepdims=True)
    return shares_KPS


def _weights(seeds: _Seeds, resampler: Resampler) -> Array:
    """Resampling weights of the pairs of seeds, [N, K]."""
    weight_NK, *others = (resampler.seeds(stream, units) for stream, units in seeds.streams)
    for weight_NU in others:
        weight_NK = stats.crossed(weight_NK, weight_NU)
    return weight_NK
