"""Share of images that PickScore prefers to the base's at the same prompt and noise, ties counted half."""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (PickScore)"
unit = "share"
higher_is_better: bool | None = True
scorer = "pickscore"
needs_base = True
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
tie_margin = 0.1
"""Its difference is the log odds that the first is chosen, so a tie is where it gives neither more than 52.5 %: as close as ImageReward's 0.1, which is 52.6 %."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
