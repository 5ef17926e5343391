"""Share of images that the aesthetic predictor, which is not told the prompt, rates higher than the base's at the same prompt and noise, ties counted half."""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (aesthetic)"
unit = "share"
higher_is_better: bool | None = True
scorer = "aesthetic"
needs_base = True
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
tie_margin = 0.1
"""A tenth of a point of its ten. It was trained on ratings, not choices, so no odds say what is close: a convention, fixed before any picture was scored."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
