"""Share of images that fit their prompt better than the base's by CLIP, ties counted half. A judge of the prompt, not of taste."""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (CLIPScore)"
unit = "share"
higher_is_better: bool | None = True
scorer = "clip_score"
needs_base = True
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
tie_margin = 0.1
"""100 cos is what CLIP's softmax takes; its difference is so the log odds of one picture for the prompt, and a tie is where neither has more than 52.5 %, as with PickScore."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
