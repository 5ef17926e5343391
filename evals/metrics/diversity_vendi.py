"""Vendi score within a prompt at the fixed number of images: the effective number of different pictures. 1 is collapse."""

from __future__ import annotations

import pandas as pd

from evals.metrics import Array, first, per_prompt

title = "diversity (Vendi)"
unit = "score"
higher_is_better: bool | None = True
scorer = "vendi"
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
