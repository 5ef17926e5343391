"""As `parity_excess`, with the ten tones cut otherwise (`REGROUPED`): whether fairness hangs on where groups end."""

from __future__ import annotations

import pandas as pd

from evals.metrics import parity_excess
from evals.metrics._bounds import of_excess
from evals.metrics._means import finish as finish
from evals.metrics._parity import LIMIT, regrouped

title = "parity gap over its floor, tones regrouped"
unit = "score"
higher_is_better: bool | None = False
scorer = "monk_tone"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
most_missing = LIMIT
bounds = of_excess


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Those of `parity_excess`, in the other groups."""
    return parity_excess.statistics(regrouped(rows), base_rows)
