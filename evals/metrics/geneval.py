"""GenEval's number: the share of right images of each task, and the plain mean over its six tasks.

NaN where a task has no image: a mean over fewer tasks is another number.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from evals.metrics import Array, per_prompt
from evals.metrics._geneval import TASKS, tasks

title = "GenEval, mean over tasks"
unit = "share"
higher_is_better: bool | None = True
scorer = "geneval"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = True


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """For each task whether the prompt is of it, and the share of its images that are right, 0 for a prompt of another."""
    task = tasks(rows)
    of_task = {name: (task == name).astype(np.float64) for name in TASKS}
    right = {f"{name} right": column * rows["value"] for name, column in of_task.items()}
    return per_prompt(rows, **of_task, **right)


def finish(mean_S: Array) -> Array:
    """Mean over tasks of right images by images."""
    prompts, right = mean_S[..., : len(TASKS)], mean_S[..., len(TASKS) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Array = (right / prompts).mean(axis=-1)
    return value
