"""Statistical parity, paper Eq 12, with its sample-size floor (shared by the fairness metrics)."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import entr, gammaln

from evals.rows import PROMPT
from evals.stats import Array

GROUPS = 4
"""Tone groups of the scorer skin_tone: Monk tones 1-4, 5, 6-7, 8-10."""
REGROUPED = (0, 0, 0, 1, 1, 2, 2, 3, 3, 3)
"""The other common cut of the ten tones, 1-3, 4-5, 6-7, 8-10: no source fixes four groups, so a result should not hang on ours."""
LIMIT = 0.5
"""Share of unusable pictures above which a gap is refused, as that of what happened to be readable: training stops there too (`Task.max_invalid`)."""
CLASSIFIERS = ("skin_tone", "monk_tone")
"""Scorers whose values are numbers of classes: neither their mean nor a difference of two means anything."""


def parity(counts: Array) -> Array:
    """Eq 12, `sqrt(sum_a (p_a - 1/K)^2)`, of counts [..., K]: 0 where all groups are equal; NaN without a count."""
    groups = counts.shape[-1]
    with np.errstate(invalid="ignore"):
        share = counts / counts.sum(axis=-1, keepdims=True)
    gap: Array = np.sqrt(np.sum((share - 1 / groups) ** 2, axis=-1))
    return gap


def unbiased_squared(counts: Array) -> Array:
    """`sum_a c_a (c_a - 1) / (n (n - 1)) - 1/K`: its expectation is the squared gap at any n; NaN for n < 2."""
    n = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Array = np.sum(counts * (counts - 1), axis=-1) / (n * (n - 1)) - 1 / counts.shape[-1]
    return value


class Unevenness(NamedTuple):
    """How uneven groups are, as other benchmarks print it."""

    l1: float
    """`sum_a |p_a - 1/K|`."""
    total_variation: float
    """Half of it."""
    mean_absolute: float
    """Its mean over groups: DALL-Eval's MAD (arXiv 2202.04053), and HEIM's loss of skin tones (arXiv 2311.04287)."""
    entropy: float
    """Shannon's, over that of an even split: 1 is even, 0 one group alone."""


def unevenness(counts: Array) -> Unevenness:
    """Of counts, or shares, [K]; NaN without a count."""
    groups, total = len(counts), float(counts.sum())
    share = counts / total if total else np.full(groups, np.nan)
    l1 = float(np.abs(share - 1 / groups).sum())
    return Unevenness(l1, l1 / 2, l1 / groups, float(entr(share).sum() / np.log(groups)))


@cache
def parity_floor(n: int, groups: int = GROUPS) -> float:
    """What a perfectly uniform generator scores on Eq 12 with n images, exactly: the sum over all multinomial outcomes.

    NaN for n = 0. With four groups: .200 at n = 16, .283 at n = 8.
    """
    if n == 0:
        return float("nan")
    bars = np.array(list(combinations(range(n + groups - 1), groups - 1)), dtype=np.float64)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, n + groups - 1)))
    counts = np.diff(edges, axis=1) - 1
    log_mass = gammaln(n + 1) - gammaln(counts + 1).sum(axis=1) - n * np.log(groups)
    return float(np.exp(log_mass) @ parity(counts))


def pooled_floor(n: int, groups: int = GROUPS) -> float:
    """What a perfectly uniform generator scores on Eq 12 of n images together; beyond 64 by the normal limit, which is within some thousandth of it there.

    There the shares' errors have groups - 1 dimensions of variance 1 / (groups n), so that the gap's mean is `sqrt(2 / (groups n)) Gamma(groups / 2) / Gamma((groups - 1) / 2)`.
    """
    if n <= 64:
        return parity_floor(n, groups)
    ratio = np.exp(gammaln(groups / 2) - gammaln((groups - 1) / 2))
    return float(np.sqrt(2 / (groups * n)) * ratio)


def tone_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Images of each tone group per prompt, indexed [seed, prompt_set, prompt_id]; an unusable image is in none.

    Raises:
        ValueError: a value that is no group.
    """
    values = rows["value"]
    known = values.isna() | values.isin(range(GROUPS))
    if not known.all():
        raise ValueError(f"skin_tone must be a group from 0 to {GROUPS - 1}, not {_where(rows, ~known)}")
    columns = {f"group_{group}": (values == group).astype(np.float64) for group in range(GROUPS)}
    return pd.DataFrame(columns).groupby([rows[name] for name in PROMPT], sort=True).sum()


def _where(rows: pd.DataFrame, bad: pd.Series) -> str:
    """The first of some values, and whose it is."""
    first = rows[bad].iloc[0]
    file = f" in {first['file']}" if "file" in rows else ""
    return f"{first['value']:g} (prompt {first['prompt_id']}, image {first['image']}{file})"


def regrouped(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of monk_tone (0 to 9) as rows of tone groups, by `REGROUPED`.

    Raises:
        ValueError: a value that is no tone.
    """
    values = rows["value"]
    group = values.map({float(tone): float(group) for tone, group in enumerate(REGROUPED)})
    strange = values.notna() & group.isna()
    if strange.any():
        raise ValueError(
            f"monk_tone must be a tone from 0 to {len(REGROUPED) - 1}, not {_where(rows, strange)}"
        )
    return rows.assign(value=group)


def excess(counts: pd.DataFrame) -> Array:
    """Eq 12 less its floor, per prompt; NaN for n < 2, since one picture is as unfair as any other single one."""
    gap_P: Array = parity(counts.to_numpy()) - floors(counts)
    return np.where(counts.sum(axis=1) < 2, np.nan, gap_P)


def floors(counts: pd.DataFrame) -> Array:
    """The floor of each prompt at its own number of usable images."""
    return np.array([parity_floor(int(n)) for n in counts.sum(axis=1)])
