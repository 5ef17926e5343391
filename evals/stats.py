"""Intervals, tests, agreement and planning: a paired bootstrap whose unit is the prompt, and the closed forms beside it.

Images of one prompt are not independent observations, so prompts are resampled, inside their prompt set, with all their
images. Several training seeds are the level above: seeds and prompts are crossed (every seed draws every prompt), and both
are resampled, independently, with product weights: the pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of
Applied Statistics 1, 2007). Everything that is compared (a run and the base, one metric and the next) shares the prompts'
weights, so every difference is paired.

A resample of n units draws n - 1 of them (Rao and Wu, JASA 83, 1988), which makes the variance of a resampled mean equal the
unbiased estimate s^2 / n. With three seeds the usual n draws would make it a third too small. One training seed cannot be
resampled: the interval then speaks of that one run only, and the tables say so.

From per-prompt statistics to an interval, a p and a mark
    weights, merged_strata              resampling weights; prompts stay inside their stratum (a task, a category) where strata are given
    Resampler                           the weights of a table, made once, so that all that is compared shares them
    resampled, interval                 a value with its resamples, and what every table makes of these: the parts are
    mean_statistics, point              weighted means over seeds and prompts
    influence, precision                jackknife, inside the strata: the standard error, and how well that itself is known
    with_tails                          the resamples with Student's tails: few seeds, or few prompts that decide, give a wider interval
    percentile_interval, p_value        of the resamples, with or without those tails
    resampled_p                         the p that goes with the interval, also beyond the last resample
    share_interval, wilson              of a share: a share near 0 or 1 is not symmetric, and at 0 or 1 no resample varies
    is_unvaried                         whether it is such a share
    within                              the ends of any other inside what the value can be
    beside_constant, relative           the difference to what is known exactly, such as a win rate's to one half; with the value itself
Tests with the prompt as the unit
    prompt_differences                  one paired difference a prompt: over images first (a metric's statistics), then over seeds
    mcnemar_exact                       pass or fail; on prompts won and lost, the sign test
    wilcoxon                            scores
    holm                                over a table
Win rates
    half_tie_rate                       exactly 1/2 for A against A, exactly 1 - rate when A and B change places
Agreement
    fleiss_kappa, cohen_kappa           of several raters, of two
Before the run
    variance_components, intraclass_correlation
    design_effect, standard_error, half_width, smallest_detectable, win_rate_deviation, affordable, best_split

Shape suffixes: N resamples, R training seeds, P prompts, S sufficient statistics of a metric.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy import stats as scipy_stats

Array = npt.NDArray[np.float64]
Labels = Sequence[str] | npt.NDArray[Any]
"""A label for each unit, in the order of the units."""
RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
FEW = 5
"""Fewer prompts than these have too few different resamples for their shape to be one: two of two prompts, twenty of four."""
ENUMERATED = 20
"""Up to so many prompts with a difference all 2^n patterns of signs are gone through."""


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


class Precision(NamedTuple):
    """How well a value is known."""

    standard_error: float
    of_seeds: float
    """Which part of the variance comes from the training seeds, 0 with a single one."""
    seed_degrees: float
    prompt_degrees: float
    of_bootstrap: float = 1.0
    """The variance over that of the pigeonhole bootstrap, which counts what seeds and prompts do together twice."""
    prompts: float = math.inf
    """How many prompts have anything that the value is made of; 0 where no prompt differs from another."""
    of_raters: float = 0.0
    """Which part of the variance comes from raters, where they stand below training seeds."""
    rater_degrees: float = 1.0

    def deviations(self, probability: npt.ArrayLike) -> Array:
        """How many standard errors a tail of that probability is away: the mean of Student's quantiles, weighted by variance.

        (Cochran, Biometrics 20, 1964.) Two or three seeds say little about their own variance, and less than Satterthwaite's
        rule makes of it: in simulation that covers 88 to 92 % where the seeds make up most of the variance.
        """
        tail = np.asarray(probability, dtype=np.float64)
        parts = (
            (1 - self.of_seeds - self.of_raters, self.prompt_degrees),
            (self.of_seeds, self.seed_degrees),
            (self.of_raters, self.rater_degrees),
        )
        quantiles = [share * special.stdtrit(degrees, tail) for share, degrees in parts if share > 0]
        return -np.asarray(sum(quantiles))


def weights(units: int, resamples: int, seed: int, stream: str, strata: Labels | None = None) -> Array:
    """Resampling weights [N, units], each row summing to 1; one stream of random numbers per name.

    The name, not the order of the calls, chooses the numbers, so a table does not change when a column is added to it.

    Args:
        units: how many prompts, or seeds.
        resamples: N.
        seed: of the table.
        stream: what is resampled, for instance the prompt set.
        strata: the stratum of each unit. Every stratum is resampled by itself, from a stream of its own name, and keeps its share of the
            units: alone or beside others, its units have the same weights among themselves.

    Raises:
        ValueError: a stratum of one unit, which by itself cannot be resampled (see `merged_strata`).
    """
    if units == 1:
        return np.ones((resamples, 1))
    if strata is None:
        return _drawn(units, resamples, _generator(seed, stream))
    weight_NP = np.empty((resamples, units))
    for name, members in _members(strata, units):
        if len(members) == 1:
            raise ValueError(
                f"the stratum {name!r} of {stream} has one unit, which cannot be resampled: put it with another"
            )
        drawn_NP = _drawn(len(members), resamples, _generator(seed, f"{stream}, {name}"))
        weight_NP[:, members] = drawn_NP * (len(members) / units)
    return weight_NP


def _drawn(units: int, resamples: int, generator: np.random.Generator) -> Array:
    drawn = generator.multinomial(units - 1, np.full(units, 1 / units), size=resamples)
    return drawn / (units - 1)


def _generator(seed: int, stream: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _members(strata: Labels, units: int) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """The strata by name, each with the places of its units."""
    labels = np.asarray(strata)
    assert labels.shape == (units,), "one stratum for each unit"
    return [(str(name), np.flatnonzero(labels == name)) for name in np.unique(labels)]


def merged_strata(strata: Sequence[str]) -> list[str]:
    """The strata with those of one unit put together, and the last one alone put into the smallest other.

    What survey statistics calls collapsed strata: the variance of a stratum of one cannot be estimated, and two in one
    overstate it rather than leave it out.
    """
    sizes = {name: strata.count(name) for name in sorted(set(strata))}
    single = [name for name, size in sizes.items() if size == 1]
    several = [name for name, size in sizes.items() if size > 1]
    if len(single) == 1 and several:
        single.append(min(several, key=lambda name: sizes[name]))
    together = "+".join(sorted(single))
    return [together if name in single else name for name in strata]


RATERS = "raters"
"""The name of what resamples them."""


def crossed(weight_NU: Array, weight_NV: Array) -> Array:
    """Product weights [N, U V] of two levels of which each unit of one meets each of the other, all V of the first U first."""
    return (weight_NU[:, :, None] * weight_NV[:, None, :]).reshape(len(weight_NU), -1)


class Sample(NamedTuple):
    """How the prompts of a set are resampled."""

    weight_NP: Array
    strata: Labels | None
    """Of the prompts; None where the set is one."""


@dataclass
class Resampler:
    """The weights of a table, made once for each prompt set and experiment, so that everything compared shares them."""

    resamples: int
    seed: int
    strata: Mapping[str, Mapping[str, str]]
    """Prompt set to prompt id to stratum, of the sets that have any."""
    made: dict[tuple[str, int, tuple[str, ...] | None], Array] = field(default_factory=dict)

    def seeds(self, stream: str, units: int) -> Array:
        """Weights [N, R] of training seeds."""
        return self._weights(stream, units, None)

    def raters(self, stream: str, seeds: int, raters: int) -> Array:
        """Weights [N, R K] of the votes of K raters on each of R training seeds, those of a seed together: products of the seeds' and the raters'."""
        return crossed(self.seeds(stream, seeds), self.seeds(RATERS, raters))

    def prompts(self, prompt_set: str, ids: Sequence[str]) -> Sample:
        """Weights of prompts of a set, inside its strata if it has any; one prompt alone in its stratum goes to another (`merged_strata`)."""
        of_set = self.strata.get(prompt_set)
        strata = None if of_set is None else tuple(merged_strata([of_set[prompt] for prompt in ids]))
        return Sample(self._weights(f"prompts of {prompt_set}", len(ids), strata), strata)

    def _weights(self, stream: str, units: int, strata: tuple[str, ...] | None) -> Array:
        key = (stream, units, strata)
        if key not in self.made:
            self.made[key] = weights(units, self.resamples, self.seed, stream, strata)
        return self.made[key]


@dataclass(frozen=True)
class Resampled:
    """A value, what it is in every resample, and what each seed's prompt adds to it: all that its interval is made of."""

    value: float
    draws_N: Array
    influence_RP: Array
    strata: Labels | None
    apart_QP: Array | None = None
    """Influences of other training seeds that are resampled by themselves, on the same prompts."""
    raters: int = 0
    """How many raters stand in the place of each training seed, all of a seed together (`precision_of_raters`); 0 where none do."""

    def less(self, other: Resampled) -> Resampled:
        """The difference to another value of the same prompts that was resampled with the same weights."""
        return Resampled(
            self.value - other.value,
            self.draws_N - other.draws_N,
            self.influence_RP - other.influence_RP,
            self.strata,
            raters=self.raters,
        )

    def less_constant(self, constant: float) -> Resampled:
        """The difference to what is known exactly."""
        return replace(self, value=self.value - constant, draws_N=self.draws_N - constant)

    def over(self, other: Resampled, same_seeds: bool) -> Resampled:
        """The ratio to another value of the same prompts, with the influences on it to first order.

        Args:
            other: not 0; what it is resampled with is the same of the prompts.
            same_seeds: whether of the training seeds too. Otherwise each value has seeds of its own.
        """
        ratio = self.value / other.value
        mine_RP, theirs_QP = self.influence_RP / other.value, -ratio * other.influence_RP / other.value
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a resample in which the other is 0 has no ratio
            draws_N = np.asarray(self.draws_N / other.draws_N)
        if same_seeds:
            return Resampled(ratio, draws_N, mine_RP + theirs_QP, self.strata)
        return Resampled(ratio, draws_N, mine_RP, self.strata, theirs_QP)

    @cached_property
    def known(self) -> Precision:
        """How well the value is known."""
        if self.raters:
            return precision_of_raters(self.influence_RP, self.strata, self.raters)
        return precision(self.influence_RP, self.strata, self.apart_QP)

    @cached_property
    def tailed_N(self) -> Array:
        """The resamples with Student's tails (`with_tails`)."""
        return with_tails(self.value, self.draws_N, self.known)

    @cached_property
    def p(self) -> float:
        """Of no difference, from these (`p_value`): 1 where they would have it on the other side of 0 than the value, as the interval then holds both; NaN where they tell nothing (`are_beside`)."""
        if are_beside(self.value, self.draws_N):
            return math.nan
        p = p_value(self.tailed_N)
        return 1.0 if p <= 1 - LEVEL and self.value * float(np.nanmedian(self.tailed_N)) <= 0 else p


def resampled(
    values_RPS: Array, finish: Callable[[Array], Array], weight_NR: Array, sample: Sample
) -> Resampled:
    """A metric with its resamples; these are NaN, and no interval has ends, where fewer than two prompts have anything applicable.

    Args:
        values_RPS: statistics of each seed and prompt.
        finish: the metric as a function of their mean.
        weight_NR: weights of the seeds.
        sample: of the prompts.
    """
    value, influence_RP = point(values_RPS, finish), influence(values_RPS, finish, sample.strata)
    if not several_prompts(np.asarray(~np.isnan(values_RPS).any(axis=2))):
        return Resampled(
            value, np.full(len(weight_NR), np.nan), np.full_like(influence_RP, np.nan), sample.strata
        )
    draws_N = finish(mean_statistics(values_RPS, weight_NR, sample.weight_NP))
    return Resampled(value, draws_N, influence_RP, sample.strata)


def several_prompts(there_RP: npt.NDArray[np.bool_]) -> bool:
    """Whether two prompts or more have anything: of a single one no resample varies, and that is not certainty."""
    return int(there_RP.any(axis=0).sum()) > 1


def interval(found: Resampled, share: bool = False) -> Interval:
    """What every table prints: the percentile interval with Student's tails; a share's is Wilson's, which stays within 0 and 1."""
    if share:
        return share_interval(found.value, found.known, found.influence_RP.shape[1])
    return tailed_interval(found.value, found.draws_N, found.known)


def beside_constant(run: Resampled, constant: float, share: bool) -> Interval:
    """The difference to what is known exactly; of a share, within what it can be.

    A share that is 0 or 1 everywhere cannot be resampled: Wilson's interval, shifted.
    """
    if share and is_unvaried(run.value, run.draws_N):
        prompts = run.influence_RP.shape[1]
        # of a share of 0 the negative of that of 1, so that swapping both negates it to the last bit
        value, low, high = (
            end - (constant if run.value else 1 - constant) for end in wilson(prompts, prompts)
        )
        return Interval(value, low, high) if run.value else Interval(-value, -high, -low)
    less = run.less_constant(constant)
    net = interval(less)
    if not share:
        return net
    # as a distance from the constant, so that swapping both negates it to the last bit where that is one half
    return Interval(*(min(max(end, -constant), 1 - constant) for end in net))


def relative(run: Resampled, constant: float, share: bool) -> tuple[Interval, Interval]:
    """A value that is relative to what is known exactly, as a win rate is to the base's one half, and its difference to that: both from one interval."""
    net = beside_constant(run, constant, share)
    return Interval(run.value, constant + net.low, constant + net.high), net


def is_unvaried(share: float, draws_N: Array) -> bool:
    """Whether a share is 0 or 1 in every prompt: no resample varies there, and that is not certainty."""
    return share in (0.0, 1.0) and bool(np.all(draws_N == share))


def mean_statistics(values_RPS: Array, weight_NR: Array, weight_NP: Array) -> Array:
    """Weighted mean over seeds and prompts, [N, S]. A NaN prompt (nothing applicable) has no weight in that seed.

    A resample in which nothing is applicable is NaN.

    Args:
        values_RPS: statistics of each seed and prompt.
        weight_NR: weights of the seeds.
        weight_NP: weights of the prompts.
    """
    valid_RP = np.asarray(~np.isnan(values_RPS).any(axis=2))
    filled_RPS = np.where(valid_RP[:, :, None], values_RPS, 0.0)
    counted_RPS = np.concatenate([filled_RPS, valid_RP[:, :, None]], axis=2)
    # one product for each statistic and for the weight, all of the same shape: in a joint one the last bits depend on the place of the
    # column, so that wins would not become losses exactly when two checkpoints change places, nor a share of 1 stay 1
    columns_SPR = np.ascontiguousarray(counted_RPS.transpose(2, 1, 0))
    total_NRS = np.stack([weight_NP @ column_PR for column_PR in columns_SPR], axis=2)
    total_NS = np.einsum("nr,nrs->ns", weight_NR, total_NRS)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total_NS[:, :-1] / total_NS[:, -1:], dtype=np.float64)


def point(values_RPS: Array, finish: Callable[[Array], Array]) -> float:
    """The estimate itself: every seed and prompt once.

    Weights of 1, so that sums of wins and halves are exact and 77.75 % is printed alike on every machine.
    """
    runs, prompts, _ = values_RPS.shape
    return float(finish(mean_statistics(values_RPS, np.ones((1, runs)), np.ones((1, prompts))))[0])


def influence(values_RPS: Array, finish: Callable[[Array], Array], strata: Labels | None = None) -> Array:
    """What each seed's prompt adds to the estimate, [R, P], by leaving it out and letting the others of its stratum stand for it.

    Of a mean, `(x - mean) / P` with the mean of the stratum; without strata the sum over prompts is the seed's own mean less the
    estimate. A NaN prompt adds nothing. The influence on a difference is the difference of the influences. NaN where nothing
    applicable is left. (The stratified jackknife, Wolter, Introduction to Variance Estimation, 2007, chapter 4.)
    """
    valid_RP = np.asarray(~np.isnan(values_RPS).any(axis=2))
    filled_RPS = np.where(valid_RP[:, :, None], values_RPS, 0.0)
    runs, prompts, columns = values_RPS.shape
    parts = [("", np.arange(prompts))] if strata is None else _members(strata, prompts)
    without_RPS, whole_S, factor_P = np.zeros_like(values_RPS), np.zeros(columns), np.zeros(prompts)
    total = int(valid_RP.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        for _, members in parts:
            part_RPS, count = filled_RPS[:, members], int(valid_RP[:, members].sum())
            if count == 0 and total > 0:
                continue  # nothing of this stratum is in the estimate
            share = count / total if total else np.nan
            mean_S = part_RPS.sum(axis=(0, 1)) / count
            whole_S += share * mean_S
            if count == 1 and total > 1:
                continue  # nothing can stand for it
            left_RP = count - valid_RP[:, members]
            left_out_RPS = (part_RPS.sum(axis=(0, 1)) - part_RPS) / left_RP[:, :, None] - mean_S
            without_RPS[:, members] = share * left_out_RPS
            factor_P[members] = runs * (count - 1) / count if count else np.nan
        return factor_P * (finish(whole_S) - finish(whole_S + without_RPS))


def precision(influence_RP: Array, strata: Labels | None = None, apart_QP: Array | None = None) -> Precision:
    """Jackknife standard error over prompts (inside their strata) and seeds, and the degrees of freedom of either part.

    The variance is `V_P + V_R - V_RP`, what prompts, seeds and both together show: either of the first two holds the third, so
    neither counts for less than that. NaN where no prompt can be left out.

    Args:
        influence_RP: what each seed's prompt adds.
        strata: of the prompts.
        apart_QP: of other seeds on the same prompts, independent of the first: `V_R` and `V_RP` are the sums of both, the degrees of freedom
            Satterthwaite's (Biometrics Bulletin 2, 1946).
    """
    prompts, several = influence_RP.shape[1], [influence_RP] if apart_QP is None else [influence_RP, apart_QP]
    of_prompts_P = _contributions(np.sum([one_RP.mean(axis=0) for one_RP in several], axis=0), strata)
    variance_P = float(np.sum(of_prompts_P**2))
    each_R, each_both = zip(*map(_of_seeds, several), strict=True)
    variance_R, of_both = sum(each_R), sum(each_both)
    alone_P, alone_R = max(variance_P - of_both, 0.0), max(variance_R - of_both, 0.0)
    variance, pigeonhole = alone_P + alone_R + of_both, variance_P + variance_R
    return Precision(
        standard_error=math.sqrt(variance),
        of_seeds=alone_R / variance if variance > 0 else 0.0,
        seed_degrees=_satterthwaite(each_R, [max(len(one_RP) - 1, 1) for one_RP in several]),
        prompt_degrees=_degrees(of_prompts_P, most=prompts - (1 if strata is None else len(set(strata)))),
        of_bootstrap=variance / pigeonhole if variance > 0 and pigeonhole > 0 else 1.0,
        prompts=_decisive(of_prompts_P),
    )


def precision_of_raters(
    influence_RP: Array, strata: Labels | None = None, raters: int | None = None
) -> Precision:
    """`precision` with raters in the place of training seeds, and all that differs between raters at their degrees of freedom.

    What raters and prompts do together counts as the raters' here. Of two or three raters it cannot be told from what they do alone: left to the prompts,
    whose degrees are many, intervals of two raters cover 87 to 91 % in simulation, and so 97 %.

    Args:
        influence_RP: what each rater's prompt adds.
        strata: of the prompts.
        raters: where the votes are on several training seeds, how many raters each has lines for (`_precision_of_seeds_and_raters`); all lines are of one seed unless given.
    """
    if raters is not None and 1 < raters < len(influence_RP):
        return _precision_of_seeds_and_raters(influence_RP.reshape(-1, raters, influence_RP.shape[1]), strata)
    if raters == 1:  # of whom alone the interval speaks
        return precision(influence_RP, strata)
    known, raters = precision(influence_RP, strata), len(influence_RP)
    if raters == 1 or not known.standard_error > 0:
        return known
    between = float(influence_RP.sum(axis=1).var(ddof=1)) / raters
    return known._replace(of_seeds=min(between / known.standard_error**2, 1.0))


def _precision_of_seeds_and_raters(influence_RKP: Array, strata: Labels | None) -> Precision:
    """Jackknife standard error over training seeds, raters and prompts, three crossed levels, and the degrees of freedom of each.

    The variance is taken apart as an analysis of variance does: what a level shows holds all that it does together with others, and no part is below 0. All that
    differs between raters is at their degrees, what else differs between seeds at theirs, and what is left at the prompts'. Raters may have voted on all seeds, on
    one, or on some: one who did not vote on a seed adds nothing there. In simulations (40 prompts, two and three seeds, three and five raters, the same, others or
    some of them on each seed, with and without tastes of any; 400 each) intervals cover 92 to 99 %, of two raters, who say little of others, 94 to 100; of each
    pair's majority, with seeds and prompts alone, 67 to 97.

    Args:
        influence_RKP: what each rater's prompt adds on each seed.
        strata: of the prompts.
    """
    seeds, raters, prompts = influence_RKP.shape
    share_RKP = influence_RKP / (seeds * raters)
    of_prompts_P = _contributions(share_RKP.sum(axis=(0, 1)), strata)
    shown: dict[tuple[int, ...], float] = {(2,): float(np.sum(of_prompts_P**2))}
    shown |= {axes: _together(share_RKP, axes) for axes in ((0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2))}
    of_all = shown[0, 1, 2]
    of_two = {pair: max(shown[pair] - of_all, 0.0) for pair in ((0, 1), (0, 2), (1, 2))}
    of_one = [
        max(shown[level,] - of_all - sum(part for pair, part in of_two.items() if level in pair), 0.0)
        for level in range(3)
    ]
    variance = sum(of_one) + sum(of_two.values()) + of_all
    from_seeds, from_raters = of_one[0] + of_two[0, 2], of_one[1] + of_two[0, 1] + of_two[1, 2] + of_all
    return Precision(
        standard_error=math.sqrt(variance),
        of_seeds=from_seeds / variance if variance > 0 else 0.0,
        seed_degrees=seeds - 1,
        prompt_degrees=_degrees(of_prompts_P, most=prompts - (1 if strata is None else len(set(strata)))),
        # product weights of three levels add all that each shows
        of_bootstrap=variance / sum(shown.values()) if variance > 0 else 1.0,
        prompts=_decisive(of_prompts_P),
        of_raters=from_raters / variance if variance > 0 else 0.0,
        rater_degrees=raters - 1,
    )


def _together(share_RKP: Array, axes: tuple[int, ...]) -> float:
    """Variance that the levels of these axes show together beyond what fewer of them show, and whatever others do with them."""
    total = share_RKP.sum(axis=tuple({0, 1, 2} - {*axes}), keepdims=True)
    for axis in axes:
        units = share_RKP.shape[axis]
        total = (total - total.mean(axis=axis, keepdims=True)) * math.sqrt(units / max(units - 1, 1))
    return float(np.sum(total**2))


def _decisive(of_prompts_P: Array) -> float:
    """How many prompts add anything; what one without anything adds is rounding."""
    return float(np.count_nonzero(np.abs(of_prompts_P) > 1e-9 * np.abs(of_prompts_P).max()))


def _satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of the sum of independent estimates of variance; of nothing, the fewest."""
    spread = sum(variance**2 / of for variance, of in zip(variances, degrees, strict=True))
    return sum(variances) ** 2 / spread if spread > 0 else float(min(degrees))


def _of_seeds(influence_RP: Array) -> tuple[float, float]:
    """Variance that seeds show, and that which seeds and prompts show together; 0 of a single seed."""
    runs, prompts = influence_RP.shape
    seeds_R, pairs = influence_RP.sum(axis=1), max(runs * (runs - 1), 1)
    both_RP = influence_RP - influence_RP.mean(axis=0) - (seeds_R / prompts)[:, None] + influence_RP.mean()
    of_both = float(np.sum(both_RP**2)) / pairs * prompts / max(prompts - 1, 1)
    return float(np.sum((seeds_R - seeds_R.mean()) ** 2)) / pairs, of_both


def _contributions(influence_P: Array, strata: Labels | None) -> Array:
    """What each prompt adds to the error, [P]: the sum of the squares is the variance."""
    contribution_P = np.empty_like(influence_P)
    prompts = len(influence_P)
    parts = [("", np.arange(prompts))] if strata is None else _members(strata, prompts)
    for _, members in parts:
        scale = math.sqrt(len(members) / max(len(members) - 1, 1))
        contribution_P[members] = scale * (influence_P[members] - influence_P[members].mean())
    return contribution_P


def _degrees(contribution_P: Array, most: int) -> float:
    """Degrees of freedom of a variance over prompts: `2 P / (k - (P - 3) / (P - 1))` with the kurtosis k of the contributions.

    A chi-squared variable with so many varies as much as the variance is expected to: P - 1 where contributions are normal, and few
    where a handful of prompts make up the variance, as with a share near 0 or 1. Never more than `most`, never less than 1.
    """
    prompts = len(contribution_P)
    squares = contribution_P**2
    if prompts < 4 or not squares.sum() > 0:
        return max(float(most), 1.0)
    kurtosis = (
        prompts * float(np.sum(squares**2)) / float(squares.sum()) ** 2 * ((prompts - 1) / prompts) ** 2
    )
    excess = kurtosis - (prompts - 3) / (prompts - 1)
    return max(min(2 * prompts / excess if excess > 0 else math.inf, float(most)), 1.0)


def with_tails(value: float, draws_N: Array, known: Precision) -> Array:
    """The resamples with Student's tails: their distances from the value stretched by `Precision.deviations` against the normal's.

    A resampled mean of few seeds, or of many prompts of which few decide, is too sure of itself: its spread is an estimate. The map
    is monotone and odd, so nothing changes its side of the value, and intervals and p agree at every level. Where there are fewer than `FEW` prompts, the
    resamples' own shape is left out: what comes back are then as many values of the normal's, stretched, in rising order, so that interval and p are those of
    Student's t.
    """
    return _tailed(value, draws_N, known, _spread(draws_N))


def _tailed(value: float, draws_N: Array, known: Precision, spread: float) -> Array:
    """`with_tails`, of resamples whose spread is known."""
    if not spread > 0 or math.isnan(known.standard_error):
        return draws_N
    finite_N = np.where(np.isfinite(draws_N), draws_N, np.nan)
    if 0 < known.prompts < FEW:
        upper_M = -special.ndtri((np.arange(len(draws_N) // 2) + 0.5) / len(draws_N))
        finite_N = value + spread * np.concatenate([-upper_M, [0.0] * (len(draws_N) % 2), upper_M[::-1]])
    return _stretched(value, finite_N, spread, known)


def _spread(draws_N: Array) -> float:
    """Standard deviation of the finite resamples, 0 where there is none."""
    finite_N = draws_N[np.isfinite(draws_N)]
    return float(finite_N.std()) if len(finite_N) else 0.0


def _stretched(value: float, draws_N: Array, spread: float, known: Precision) -> Array:
    """The map of `with_tails`, of any resamples."""
    # beyond 8 deviations a probability says nothing any more, and must not become 0
    z_N = np.minimum(np.abs(draws_N - value) / spread, 8.0)
    stretched_N = known.deviations(special.ndtr(-z_N)) * spread * math.sqrt(known.of_bootstrap)
    return np.asarray(value + np.sign(draws_N - value) * stretched_N, dtype=np.float64)


def tailed_interval(value: float, draws_N: Array, known: Precision, level: float = LEVEL) -> Interval:
    """`percentile_interval` of `with_tails`, with its value inside. That keeps the order of the resamples, so that those next to the ends alone are stretched, as a table has thousands of intervals."""
    if are_beside(value, draws_N):
        return Interval(value, math.nan, math.nan)
    spread = _spread(draws_N)
    if not spread > 0 or math.isnan(value) or math.isnan(known.standard_error) or 0 < known.prompts < FEW:
        return _with_value(percentile_interval(value, _tailed(value, draws_N, known, spread), level))
    finite_N, tail = draws_N[np.isfinite(draws_N)], (1 - level) / 2

    def end(value: float, draws_N: Array) -> float:
        beside = [float(np.quantile(draws_N, tail, method=method)) for method in ("lower", "higher")]
        low, high = _stretched(value, np.array(beside), spread, known)
        return float(low + (high - low) * (tail * (len(draws_N) - 1) % 1))

    return _with_value(Interval(value, end(value, finite_N), -end(-value, -finite_N)))


def _with_value(found: Interval) -> Interval:
    """The interval with its value inside.

    A gap of all prompts together is 0 where prompts that are each of one tone balance out, and that of a resample, in which some are missing, is not.
    """
    return found._replace(low=min(found.low, found.value), high=max(found.high, found.value))


def within(found: Interval, lowest: float, highest: float) -> Interval:
    """The interval without what cannot be: Student's tails reach beyond it where prompts are few. Its value stays inside, and ends that are not there stay so."""
    low, high = np.clip((found.low, found.high), lowest, highest)
    return Interval(found.value, min(float(low), found.value), max(float(high), found.value))


def are_beside(value: float, draws_N: Array) -> bool:
    """Whether all resamples say one thing and the value another, so that they tell nothing of it: of two prompts a resample is one of them, and the gap of each may be larger than that of both."""
    finite_N = draws_N[np.isfinite(draws_N)]
    rounding = 1e-9 * (1 + abs(value))
    return len(finite_N) > 0 and bool(np.ptp(finite_N) <= rounding < abs(finite_N[0] - value))


def percentile_interval(value: float, draws_N: Array, level: float = LEVEL) -> Interval:
    """Percentile interval of the resampled values; NaN resamples are left out, no resample left gives NaN ends.

    The upper end is the lower one of the negated resamples, so that when two checkpoints change places the interval of their
    difference is the negative, to the last bit.
    """
    draws_N = draws_N[np.isfinite(draws_N)]
    if not len(draws_N) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    tail = (1 - level) / 2
    return Interval(value, float(np.quantile(draws_N, tail)), -float(np.quantile(-draws_N, tail)))


def resampled_p(found: Resampled) -> float:
    """The p that goes with the interval: of no difference, from the resamples with Student's tails.

    It is at most 5 % where the 95 % interval leaves out 0, but for resamples that are 0. Where no resample is on the other side of 0, the tail is that of the
    stretched normal itself: N resamples cannot give less than 1 / (N + 1), which over a large table would count as nothing.
    """
    p, known = found.p, found.known
    finite_N = found.draws_N[np.isfinite(found.draws_N)]
    if not len(finite_N) or p > 1 / (len(finite_N) + 1) or not finite_N.std() > 0:
        return p
    distance = abs(found.value) / float(finite_N.std() * math.sqrt(known.of_bootstrap))
    tail_Z = special.ndtr(-np.linspace(0, 8, 8001))
    return min(p, 2 * float(tail_Z[max(np.searchsorted(known.deviations(tail_Z), distance) - 1, 0)]))


def p_value(draws_N: Array) -> float:
    """Two-sided bootstrap p of "no difference": twice the smaller tail at 0, ties counted half, never below 1 / (N + 1)."""
    draws_N = draws_N[np.isfinite(draws_N)]
    if not len(draws_N):
        return math.nan
    below, above, at = (int(np.sum(part)) for part in (draws_N < 0, draws_N > 0, draws_N == 0))
    return min(1.0, max((2 * min(below, above) + at) / len(draws_N), 1 / (len(draws_N) + 1)))


def wilson(successes: float, n: float, level: float = LEVEL, deviations: float | None = None) -> Interval:
    """Wilson's interval of a share. The tables use it where a share is 0 or 1 in every prompt: no resample can vary there.

    `deviations` stands in place of the normal's quantile at that level.
    """
    z = float(special.ndtri((1 + level) / 2)) if deviations is None else deviations
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def share_interval(share: float, known: Precision, prompts: int, level: float = LEVEL) -> Interval:
    """Wilson's interval at the effective number of independent observations, `share (1 - share) / SE^2`.

    So a share keeps inside 0 and 1 and its interval is lopsided where it should be, whatever the images of a prompt have in
    common (after Korn and Graubard, Survey Methodology 24, 1998). Where every prompt says the same nothing is known of what
    they have in common: the prompts are the n.
    """
    if math.isnan(share) or math.isnan(known.standard_error):
        return Interval(share, math.nan, math.nan)
    if known.standard_error == 0 or share in (0.0, 1.0):
        return wilson(share * prompts, prompts, level)
    n = share * (1 - share) / known.standard_error**2
    return Interval(share, *wilson(share * n, n, level, float(known.deviations((1 - level) / 2)))[1:])


def prompt_differences(first_RP: Array, second_RP: Array) -> Array:
    """One paired difference for each prompt, the mean over training seeds; a prompt without any pair is left out, [<= P].

    The values are means over the images of a prompt already, so the prompt is the unit of whatever test is made of them. They
    speak of these runs: seeds are no unit here.
    """
    difference_RP = first_RP - second_RP
    pair_RP = ~np.isnan(difference_RP)
    count_P = pair_RP.sum(axis=0)
    total_P = np.where(pair_RP, difference_RP, 0.0).sum(axis=0)
    return np.asarray(total_P[count_P > 0] / count_P[count_P > 0], dtype=np.float64)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar p from the discordant counts; on won and lost prompts it is the sign test."""
    total = first_only + second_only
    if total == 0:
        return 1.0
    return float(scipy_stats.binomtest(first_only, total, 0.5).pvalue)


def _settled(differences: Array) -> Array:
    """Differences over their largest, those within rounding of 0 left out and those within rounding of each other equal.

    Means of scores with six printed digits differ by 1e-16 where they are equal: such a tie must be one, and such a zero too.
    """
    largest = float(np.abs(differences).max(initial=0.0))
    if largest == 0:
        return np.empty(0)
    rounded = np.round(differences / largest, 12)
    return np.asarray(rounded[rounded != 0], dtype=np.float64)


def _enumerated(settled: Array) -> float:
    """Share of all 2^n patterns of signs whose sum is at least as far from 0: the exact sign-flip test."""
    if len(settled) == 0:
        return 1.0
    # patterns with the same sum are as extreme, whatever the order of addition
    enough = abs(float(settled.sum())) - 1e-9
    sums = settled[:1]  # the first sign is fixed: the negated patterns have the negated sums
    for difference in settled[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(np.abs(sums) >= enough))


def wilcoxon(differences: Array) -> float:
    """Two-sided Wilcoxon signed-rank p. Zeros are left out (Wilcoxon's way), ties get the mean of their ranks.

    Exact up to `ENUMERATED` prompts with a difference, ties or not (it is the sign-flip test on the ranks), and up to 50 without ties; beyond, the normal
    approximation with the variance corrected for ties.

    Args:
        differences: one for each prompt, [P], without NaN (`prompt_differences`).
    """
    settled = _settled(differences)
    if len(settled) <= ENUMERATED:
        ranks = scipy_stats.rankdata(np.abs(settled)) * np.sign(settled)
        return _enumerated(ranks)
    tied = len(np.unique(np.abs(settled))) < len(settled)
    method = "asymptotic" if tied or len(settled) > 50 else "exact"
    return float(scipy_stats.wilcoxon(settled, method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def half_tie_rate(win: Array, tie: Array, loss: Array) -> Array:
    """`(W + T/2) / (W + T + L)`, written `1/2 + (W - L) / (2 (W + T + L))` and rounded to multiples of 2^-53.

    All of these and their distances from 1/2 and 1 are exact, so A against A is 1/2 and swapping A and B gives 1 - rate, to
    the last bit.
    """
    lead = (win - loss) / (2 * ((win + loss) + tie))
    return np.asarray(0.5 + np.ldexp(np.rint(np.ldexp(lead, 53)), -53), dtype=np.float64)


def fleiss_kappa(counts: npt.ArrayLike) -> float:
    """Agreement of several raters over chance (Fleiss, Psychological Bulletin 76, 1971).

    Items may have different numbers of ratings: an item's agreement is the share of its pairs of ratings that agree, and all ratings
    together give what chance would agree on. An item with fewer than two ratings has no pair and is left out. NaN where every rating is
    of one category (nothing to agree on), or no item is left.

    Args:
        counts: ratings of each item in each category, [items, categories].
    """
    table = np.asarray(counts, dtype=np.float64)
    table = table[table.sum(axis=1) >= 2]
    if not len(table):
        return math.nan
    ratings = table.sum(axis=1)
    agreement = float(np.mean((table * (table - 1)).sum(axis=1) / (ratings * (ratings - 1))))
    return float(_over_chance(agreement, np.sum((table.sum(axis=0) / ratings.sum()) ** 2)))


def cohen_kappa(counts: npt.ArrayLike) -> Array:
    """Agreement of two raters over chance (Cohen, Educational and Psychological Measurement 20, 1960), each with shares of their own.

    NaN where both give all items one and the same label.

    Args:
        counts: items, or their shares, by the label of the one and of the other, [..., labels, labels].
    """
    table = np.asarray(counts, dtype=np.float64)
    share = table / table.sum(axis=(-2, -1), keepdims=True)
    by_chance = share.sum(axis=-1) * share.sum(axis=-2)
    return _over_chance(np.trace(share, axis1=-2, axis2=-1), by_chance.sum(axis=-1))


def _over_chance(agreement: npt.ArrayLike, chance: npt.ArrayLike) -> Array:
    agreement, chance = np.asarray(agreement, dtype=np.float64), np.asarray(chance, dtype=np.float64)
    sure = chance >= 1 - 1e-12
    return np.where(sure, np.nan, (agreement - chance) / np.where(sure, 1.0, 1 - chance))


def variance_components(values: Array, clusters: Labels) -> tuple[float, float]:
    """Variance between prompts and between images of a prompt, by one-way analysis of variance.

    `within = SS_within / (n - c)`, `between = (MS_between - within) / n_0` with `n_0 = (n - sum n_c^2 / n) / (c - 1)`; the latter is unbiased and
    may come out below 0. Values [n] without NaN.

    Raises:
        ValueError: fewer than two prompts, or no prompt with two images.
    """
    _, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    n, c = len(values), len(sizes)
    if c < 2 or n == c:
        raise ValueError(
            f"the correlation within a prompt cannot be told from {n} images of {c} prompts: at least two prompts are needed, and a prompt with two images"
        )
    means = np.bincount(index, weights=values) / sizes
    within = float(np.sum((values - means[index]) ** 2)) / (n - c)
    mean_square = float(np.sum(sizes * (means - values.mean()) ** 2)) / (c - 1)
    typical = (n - float(np.sum(sizes**2)) / n) / (c - 1)
    return (mean_square - within) / typical, within


def intraclass_correlation(values: Array, clusters: Labels) -> float:
    """Correlation of two images of a prompt, `between / (between + within)`; may be a little below 0, NaN for constants.

    Raises:
        ValueError: as `variance_components`.
    """
    between, within = variance_components(values, clusters)
    total = between + within
    return between / total if total > 0 else math.nan


def design_effect(images: int, icc: float) -> float:
    """How many times the variance of independent images the images of a prompt have: `1 + (m - 1) ICC` (Kish, Survey Sampling, 1965)."""
    return 1 + (images - 1) * icc


def standard_error(deviation: float, prompts: int, images: int, icc: float) -> float:
    """Of a mean over `prompts` with `images` each, where one image has standard deviation `deviation`."""
    return deviation * math.sqrt(design_effect(images, icc) / (prompts * images))


def half_width(error: float, level: float = LEVEL) -> float:
    """Of the interval of a value with standard error `error`: 1.96 of them at 95 %."""
    return float(special.ndtri((1 + level) / 2)) * error


def smallest_detectable(error: float, power: float = POWER, level: float = LEVEL) -> float:
    """The true effect that a two-sided test finds with probability `power`: `(z_{1 - alpha/2} + z_power) SE`, 2.80 SE at 80 % and 5 %."""
    return float(special.ndtri((1 + level) / 2) + special.ndtri(power)) * error


def win_rate_deviation(ties: float = 0.0) -> float:
    """Standard deviation of one judgement (1, 1/2 for a tie, 0) between equals: `sqrt(1 - ties) / 2`. The most that a win rate can vary."""
    return math.sqrt(1 - ties) / 2


def affordable(budget: float, images: npt.ArrayLike, prompt_cost: float) -> Array:
    """How many prompts a budget reaches for with so many images of each; one that is short by rounding is reached for."""
    cost = np.asarray(images, dtype=np.float64) + prompt_cost
    return np.asarray(np.floor(budget / cost * (1 + 1e-12)), dtype=np.float64)


def best_split(
    budget: float, icc: float, prompt_cost: float = 0.0, most_prompts: int | None = None
) -> tuple[int, int]:
    """Prompts and images of each that give the smallest standard error for a budget.

    Every split is tried: without bounds and whole numbers the answer would be `m = sqrt(prompt_cost (1 - ICC) / ICC)` images of each (Cochran, Sampling
    Techniques, 1977, section 10.6), and one where a prompt costs nothing. Of equal ones, that with the most prompts.

    Args:
        budget: what may be spent, in images.
        icc: correlation of two images of a prompt.
        prompt_cost: what a prompt costs beside its images, in images.
        most_prompts: how many prompts there are; without a limit unless given.

    Raises:
        ValueError: the budget does not reach for two prompts, without which there is no interval.
    """
    images_M = np.arange(1, max(int(budget / 2 - prompt_cost), 0) + 1)
    if not len(images_M) or (most_prompts is not None and most_prompts < 2):
        raise ValueError(
            f"a budget of {budget:g} images does not reach for two prompts, without which there is no interval"
        )
    prompts_M = affordable(budget, images_M, prompt_cost)
    if most_prompts is not None:
        prompts_M = np.minimum(prompts_M, most_prompts)
    variance_M = (1 + (images_M - 1) * icc) / (prompts_M * images_M)
    best = int(np.argmax(variance_M <= variance_M.min() * (1 + 1e-12)))
    return int(prompts_M[best]), int(images_M[best])
