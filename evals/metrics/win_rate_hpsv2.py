"""Share of images that HPS v2.1 prefers to the base's at the same prompt and noise, ties counted half."""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (HPS v2.1)"
unit = "share"
higher_is_better: bool | None = True
scorer = "hpsv2"
needs_base = True
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
tie_margin = 0.1
"""100 cos is what CLIP's softmax takes, in which HPS was trained; its difference is so the log odds of a choice, and a tie is where neither has more than 52.5 %, as with PickScore."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
