"""Win, tie and loss against the base at the same prompt and noise (shared by the win rates)."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
    """`(W + T/2) / (W + T + L)`: A against A is 1/2, swapping A and B gives 1 - rate.

    Written as `1/2 + (W - L) / (2 (W + T + L))` and rounded to 2^-40, so that the latter holds to the last bit.
    """
    win, tie, loss = (mean_S[..., i] for i in range(3))
    lead = (win - loss) / (2 * (tie + (win + loss)))
    rate: Array = 0.5 + np.round(lead * 2**40) / 2**40
    return rate


def ties_dropped_rate(mean_S: Array) -> Array:
    """`W / (W + L)`; NaN where everything is a tie."""
    with np.errstate(invalid="ignore"):
        rate: Array = mean_S[..., 0] / (mean_S[..., 0] + mean_S[..., 2])
    return rate
