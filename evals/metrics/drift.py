"""Distance of the pictures from the base's at the same prompts (KID). The base's distance from itself is 0 by definition."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "drift from the base (KID)"
unit = "small"
higher_is_better: bool | None = None
scorer = "kid"
needs_base = False
reference: float | None = 0.0
home = ""
specialist: str | None = None
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt."""
    return per_prompt(rows, mean=rows["value"])


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
