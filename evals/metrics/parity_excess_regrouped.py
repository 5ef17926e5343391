"""As `parity_excess`, with the ten tones cut otherwise (`REGROUPED`): whether fairness hangs on where groups end."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first
from evals.metrics._parity import floors, parity, regrouped, tone_counts

title = "parity gap over its floor, tones regrouped"
unit = "score"
higher_is_better: bool | None = False
scorer = "monk_tone"
needs_base = False
reference: float | None = None
home = ""
specialist: str | None = None
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Eq 12 less its floor, per prompt; NaN for a prompt without a usable image."""
    counts = tone_counts(regrouped(rows))
    return pd.DataFrame({"excess": parity(counts.to_numpy()) - floors(counts)}, index=counts.index)


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
