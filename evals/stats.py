"""Intervals: a paired bootstrap whose unit is the prompt, and the few closed forms that the tables use.

Images of one prompt are not independent observations, so prompts are resampled, inside their prompt set, with all their
images. Several training seeds are the level above: seeds and prompts are crossed (every seed draws every prompt), and both
are resampled, independently, with product weights: the pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of
Applied Statistics 1, 2007). Everything that is compared (a run and the base, one metric and the next) shares the prompts'
weights, so every difference is paired.

A resample of n units draws n - 1 of them (Rao and Wu, JASA 83, 1988), which makes the variance of a resampled mean equal the
unbiased estimate s^2 / n. With three seeds the usual n draws would make it a third too small. One training seed cannot be
resampled: the interval then speaks of that one run only, and the tables say so.

Shape suffixes: N resamples, R training seeds, P prompts, S sufficient statistics of a metric.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

Array = npt.NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def weights(units: int, resamples: int, seed: int, stream: str) -> Array:
    """Resampling weights [N, units], each row summing to 1; one stream of random numbers per name.

    The name, not the order of the calls, chooses the numbers, so a table does not change when a column is added to it.
    """
    if units == 1:
        return np.ones((resamples, 1))
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = generator.multinomial(units - 1, np.full(units, 1 / units), size=resamples)
    return drawn / (units - 1)


def mean_statistics(values_RPS: Array, weight_NR: Array, weight_NP: Array) -> Array:
    """Weighted mean over seeds and prompts, [N, S]. A NaN prompt (nothing applicable) has no weight in that seed.

    A resample in which nothing is applicable is NaN.
    """
    valid_RP = np.asarray(~np.isnan(values_RPS).any(axis=2))
    filled_RPS = np.where(valid_RP[:, :, None], values_RPS, 0.0)
    runs, prompts, columns = values_RPS.shape
    total_NRS = (weight_NP @ filled_RPS.transpose(1, 0, 2).reshape(prompts, -1)).reshape(-1, runs, columns)
    weight_of_valid_NR = weight_NP @ valid_RP.T.astype(np.float64)
    total_NS = np.einsum("nr,nrs->ns", weight_NR, total_NRS)
    weight_N = np.einsum("nr,nr->n", weight_NR, weight_of_valid_NR)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total_NS / weight_N[:, None], dtype=np.float64)


def point(values_RPS: Array, finish: Callable[[Array], Array]) -> float:
    """The estimate itself: every seed and prompt once."""
    runs, prompts, _ = values_RPS.shape
    one_NR, one_NP = np.full((1, runs), 1 / runs), np.full((1, prompts), 1 / prompts)
    return float(finish(mean_statistics(values_RPS, one_NR, one_NP))[0])


def percentile_interval(value: float, draws_N: Array, level: float = LEVEL) -> Interval:
    """Percentile interval of the resampled values; NaN resamples are left out, no resample left gives NaN ends."""
    draws_N = draws_N[np.isfinite(draws_N)]
    if not len(draws_N) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(draws_N, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def p_value(draws_N: Array) -> float:
    """Two-sided bootstrap p of "no difference": twice the smaller tail at 0, ties counted half, never below 1 / (N + 1)."""
    draws_N = draws_N[np.isfinite(draws_N)]
    if not len(draws_N):
        return math.nan
    below = float(np.mean(draws_N < 0) + np.mean(draws_N == 0) / 2)
    return min(1.0, max(2 * min(below, 1 - below), 1 / (len(draws_N) + 1)))


def wilson(successes: float, n: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share. The tables use it where a share is 0 or 1 in every prompt: no resample can vary there."""
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar p from the discordant counts; on won and lost prompts it is the sign test."""
    total = first_only + second_only
    if total == 0:
        return 1.0
    return float(scipy_stats.binomtest(first_only, total, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
