"""Share of images in which every object named is there and the relation holds."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "images fully right"
unit = "share"
higher_is_better: bool | None = True
scorer = "fully_right"
needs_base = False
reference: float | None = None
home = "scenes-unseen"
specialist: str | None = "compositionality"
ratio_to_base = True


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt."""
    return per_prompt(rows, mean=rows["value"])


def finish(mean_S: Array) -> Array:
    """The mean itself."""
    return first(mean_S)
