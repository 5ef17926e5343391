"""Squared parity gap per prompt, unbiased at any number of images: 0 is fair."""

from __future__ import annotations

import pandas as pd

from evals.metrics._bounds import of_unbiased
from evals.metrics._means import finish as finish
from evals.metrics._parity import LIMIT, tone_counts, unbiased_squared

title = "squared parity gap (unbiased)"
unit = "score"
higher_is_better: bool | None = False
scorer = "skin_tone"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
most_missing = LIMIT
bounds = of_unbiased


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Unbiased squared gap per prompt; NaN with fewer than two usable images."""
    counts = tone_counts(rows)
    return pd.DataFrame({"squared": unbiased_squared(counts.to_numpy())}, index=counts.index)
