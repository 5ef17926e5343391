"""Statistical parity, paper Eq 12, of the images of one prompt, mean over prompts. A fair generator scores the floor, not 0."""

from __future__ import annotations

import pandas as pd

from evals.metrics._bounds import of_gap
from evals.metrics._means import finish as finish
from evals.metrics._parity import LIMIT, parity, tone_counts

title = "parity gap (Eq 12)"
unit = "score"
higher_is_better: bool | None = False
scorer = "skin_tone"
needs_base = False
reference: float | None = None
specialist: str | None = "fairness"
ratio_to_base = False
most_missing = LIMIT
bounds = of_gap


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Eq 12 per prompt; NaN for a prompt without a usable image."""
    counts = tone_counts(rows)
    return pd.DataFrame({"parity": parity(counts.to_numpy())}, index=counts.index)
