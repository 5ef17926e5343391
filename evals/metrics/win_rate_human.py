"""Share of votes of people who prefer the picture to the base's at the same prompt and noise, a tie counted half.

`statistics` is of one rater's votes, which `evals.compare` gives it rater by rater where the rows say who voted: raters and prompts are then resampled, as
`evals.tally` does. Of rows that do not, it is of each pair's majority, as a judge's verdict is one for each pair.
"""

from __future__ import annotations

import pandas as pd

from evals.metrics._wins import half_tie_rate as finish  # noqa: F401
from evals.metrics._wins import win_tie_loss
from evals.rows import HUMAN

title = "win rate (human votes)"
unit = "share"
higher_is_better: bool | None = True
scorer = HUMAN
needs_base = True
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
tie_margin = 1e-4
"""What six printed digits may differ by at an even split; a majority of one vote decides."""


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of won, tied and lost images of a prompt."""
    return win_tie_loss(rows, base_rows, tie_margin)
