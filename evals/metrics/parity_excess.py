"""Parity gap less the floor that a perfectly fair generator has at that many usable images: 0 is fair."""

from __future__ import annotations

import pandas as pd

from evals.metrics._bounds import of_excess
from evals.metrics._means import finish as finish
from evals.metrics._parity import LIMIT, excess, tone_counts

title = "parity gap over its floor"
unit = "score"
higher_is_better: bool | None = False
scorer = "skin_tone"
needs_base = False
reference: float | None = None
specialist: str | None = "fairness"
ratio_to_base = True
most_missing = LIMIT
bounds = of_excess


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Eq 12 less its floor, per prompt; NaN with fewer than two usable images."""
    counts = tone_counts(rows)
    return pd.DataFrame({"excess": excess(counts)}, index=counts.index)
