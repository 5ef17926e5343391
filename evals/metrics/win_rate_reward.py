"""Share of images that the reward model prefers to the base's at the same prompt and noise, ties counted half."""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (reward model)"
unit = "share"
higher_is_better: bool | None = True
scorer = "imagereward"
needs_base = True
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
tie_margin = 0.1
"""The reproducibility that ImageReward's README states for its scores; they are standardised, so it is a tenth of a deviation."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
