"""Mean gold utility: is the picture still good, whatever it was trained for?"""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "gold quality"
unit = "score"
higher_is_better: bool | None = True
scorer = "gold_utility"
needs_base = False
reference: float | None = None
home = ""
specialist: str | None = None
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt."""
    return per_prompt(rows, mean=rows["value"])


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
