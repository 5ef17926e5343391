"""Win, tie and loss against the base at the same prompt and noise (shared by the win rates)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from evals import stats
from evals.metrics import Array, per_prompt


def win_tie_loss(rows: pd.DataFrame, base_rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Shares of won, tied and lost images per prompt; a difference within the margin is a tie, NaN on a side is no pair."""
    difference = rows["value"] - base_rows["value"]
    pair = difference.notna()
    return per_prompt(
        rows,
        win=(difference > margin).where(pair).astype(np.float64),
        tie=(difference.abs() <= margin).where(pair).astype(np.float64),
        loss=(difference < -margin).where(pair).astype(np.float64),
    )


def half_tie_rate(mean_S: Array) -> Array:
    """`evals.stats.half_tie_rate` of the statistics [..., 3]."""
    return stats.half_tie_rate(mean_S[..., 0], mean_S[..., 1], mean_S[..., 2])


def ties_dropped_rate(mean_S: Array) -> Array:
    """`W / (W + L)`; NaN where everything is a tie."""
    with np.errstate(invalid="ignore"):
        rate: Array = mean_S[..., 0] / (mean_S[..., 0] + mean_S[..., 2])
    return rate
