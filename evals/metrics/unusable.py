"""Share of portraits without a face that is clear. They are in no tone group, and never count as fair."""

from __future__ import annotations

import pandas as pd

from evals.metrics import per_prompt
from evals.metrics._means import finish as finish

title = "unusable portraits"
unit = "share"
higher_is_better: bool | None = False
scorer = "skin_tone"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Share of NaN tones of a prompt."""
    return per_prompt(rows, unusable=rows["value"].isna())
