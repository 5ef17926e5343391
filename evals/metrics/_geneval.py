"""GenEval's tasks, and which one a prompt is of (shared by its metrics and its calibration)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pandas as pd

import prompts
from evals.metrics import per_prompt

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The tags of its prompts; the benchmark's number is the plain mean over them."""
SIZES = (80, 99, 80, 94, 100, 100)
"""Prompts of each in `geneval`, one task after the other, numbered as its ids are."""


def task_of(prompt_set: str, prompt_id: str) -> str:
    """The task of a prompt.

    Raises:
        ValueError: a prompt that is not in the set or is of no task, or a set that cannot be had.
    """
    task = _tasks(prompt_set).get(prompt_id)
    if task not in TASKS:
        what = "is not in it" if task is None else f"has the tag {task}"
        raise ValueError(
            f"GenEval's tasks are {', '.join(TASKS)}, but prompt {prompt_id} of {prompt_set} {what}"
        )
    return task


def tasks(rows: pd.DataFrame) -> pd.Series[str]:
    """The task of each row's prompt.

    Raises:
        ValueError: as `task_of`.
    """
    of_row = [task_of(*prompt) for prompt in zip(rows["prompt_set"], rows["prompt_id"], strict=True)]
    return pd.Series(of_row, rows.index, dtype=str)


def right_of_task(task: str, rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Share of right images of each prompt of one task; prompts of the others are left out."""
    mine = rows[tasks(rows) == task]
    return per_prompt(mine, right=mine["value"])


@cache
def _tasks(prompt_set: str) -> Mapping[str, str]:
    """Prompt id to tag; in `geneval` its number says it, so that tables are made where the prompts are not."""
    if prompt_set == "geneval":
        order = [task for task, size in zip(TASKS, SIZES, strict=True) for _ in range(size)]
        return {f"{number:05d}": task for number, task in enumerate(order)}
    return {prompt.id: str(prompt.expect.get("tag")) for prompt in prompts.load(prompt_set)}
