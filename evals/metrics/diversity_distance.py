"""Mean perceptual distance between the images of a prompt. Noise raises it too: read it beside a quality metric."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "diversity (pairwise distance)"
unit = "score"
higher_is_better: bool | None = True
scorer = "pairwise_distance"
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
