"""Eq 12 of all images together. It is 0 where occupations are each of one tone that balance out: read it beside the per-prompt gap."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array
from evals.metrics._bounds import of_gap
from evals.metrics._parity import LIMIT, parity, tone_counts

title = "pooled parity gap"
unit = "score"
higher_is_better: bool | None = False
scorer = "skin_tone"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
most_missing = LIMIT
bounds = of_gap


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Images of each tone group."""
    return tone_counts(rows)


def finish(mean_S: Array) -> Array:
    """Eq 12 of the mean counts."""
    return parity(mean_S)
