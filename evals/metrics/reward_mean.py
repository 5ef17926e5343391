"""Mean score of the reward model: the paper's ImageReward column (Tables 1, 2 and 5)."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "reward model score"
unit = "score"
higher_is_better: bool | None = True
scorer = "imagereward"
needs_base = False
reference: float | None = None
home = "preference-unseen"
specialist: str | None = "imagereward"
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt."""
    return per_prompt(rows, mean=rows["value"])


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
