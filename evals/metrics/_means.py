"""The mean of a score over the images of each prompt, and over prompts (shared by the metrics that are no more than that)."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt."""
    return per_prompt(rows, mean=rows["value"])


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
