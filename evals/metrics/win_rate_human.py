"""Share of pairs in which most people prefer the picture to the base's at the same prompt and noise, an even split counted half.

This is a majority for each pair, as a judge's verdict is one for each pair; the share of votes, with an interval over raters too, is
`python -m evals tally`'s (`evals.tally`).
"""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss

title = "win rate (human votes)"
unit = "share"
higher_is_better: bool | None = True
scorer = "human_votes"
needs_base = True
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
tie_margin = 1e-4
"""What six printed digits may differ by at an even split; a majority of one vote decides."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
