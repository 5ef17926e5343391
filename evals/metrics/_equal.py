"""The mean of a score of all images of a prompt: refused where prompts, or run and base, have different numbers (shared by the metrics of variety).

A Vendi score grows with the number of images. A mean distance does not, but that of few says less: beside others it would be as one of many.
"""

from __future__ import annotations

import pandas as pd

from evals.metrics import Metric, _means
from evals.metrics._means import finish as finish
from evals.rows import PROMPT


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt.

    Raises:
        ValueError: see `refuse_unequal`; or a prompt has another number of images with a value in the base's rows.
    """
    refuse_unequal(rows)
    if why := why_unlike(rows, base_rows):
        raise ValueError(why)
    return _means.statistics(rows, base_rows)


def refuse_unequal(rows: pd.DataFrame) -> None:
    """Refuse prompts of a set that have different numbers of images with a value; a prompt without any is left out by the mean.

    Raises:
        ValueError: see `why_unequal`.
    """
    if why := why_unequal(rows):
        raise ValueError(why)


def why_unequal(rows: pd.DataFrame) -> str:
    """Two prompts of a set that have different numbers of images with a value, and both numbers; "" where there are none."""
    for prompt_set, sizes in _images(rows).groupby("prompt_set"):
        ids = sizes.index.get_level_values("prompt_id")
        few, many = ids[int(sizes.argmin())], ids[int(sizes.argmax())]
        if sizes.min() != sizes.max():
            return f"{_told(rows)}, and of {prompt_set} prompt {few} has {sizes.min()}, but prompt {many} has {sizes.max()}: score as many of each"
    return ""


def why_unlike(rows: pd.DataFrame, base_rows: pd.DataFrame) -> str:
    """A prompt that has another number of images with a value in the base's rows, and both numbers; "" where there is none."""
    of_both = pd.DataFrame({"run": _images(rows), "base": _images(base_rows)}).dropna().astype(int)
    unlike = of_both[of_both["run"] != of_both["base"]]
    if unlike.empty:
        return ""
    (_, prompt_set, prompt_id), (mine, theirs) = unlike.index[0], unlike.iloc[0]
    return f"{_told(rows)}, and of {prompt_set} prompt {prompt_id} has {mine} with a value, but {theirs} on the other side: score as many of each"


def needs_equal(metric: Metric) -> bool:
    """Whether a metric is one of these."""
    return metric.statistics is statistics


def _images(rows: pd.DataFrame) -> pd.Series:
    """How many images with a value every prompt has, of those that have any."""
    return rows.dropna(subset="value").groupby(list(PROMPT), sort=True).size()


def _told(rows: pd.DataFrame) -> str:
    return f"{rows['scorer'].iloc[0]} is compared at equal numbers of images"
