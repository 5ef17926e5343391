"""Share of GenEval's prompts of which at least one image is right: it rises with the number of images a prompt."""

from __future__ import annotations

import pandas as pd

from evals.metrics import per_prompt
from evals.metrics._means import finish as finish
from evals.rows import PROMPT

title = "GenEval, prompts with an image that is right"
unit = "share"
higher_is_better: bool | None = True
scorer = "geneval"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Whether any image of a prompt is right."""
    return per_prompt(rows, best=rows.groupby(list(PROMPT))["value"].transform("max"))
