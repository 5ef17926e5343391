"""The mean of a score that depends on how many images a prompt has: refused where prompts have different numbers (shared by the Vendi scores)."""

from __future__ import annotations

import pandas as pd

from evals.metrics import _means
from evals.metrics._means import finish as finish
from evals.rows import PROMPT


def statistics(rows: pd.DataFrame, base_rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over the images of a prompt.

    Raises:
        ValueError: see `refuse_unequal`.
    """
    refuse_unequal(rows)
    return _means.statistics(rows, base_rows)


def refuse_unequal(rows: pd.DataFrame) -> None:
    """Refuse prompts of a set that have different numbers of images with a value; a prompt without any is left out by the mean.

    Raises:
        ValueError: naming two of them, and both numbers.
    """
    images = rows.dropna(subset="value").groupby(list(PROMPT), sort=True).size()
    for prompt_set, sizes in images.groupby("prompt_set"):
        ids = sizes.index.get_level_values("prompt_id")
        few, many = ids[int(sizes.argmin())], ids[int(sizes.argmax())]
        if sizes.min() != sizes.max():
            raise ValueError(
                f"{rows['scorer'].iloc[0]} grows with the number of images, and of {prompt_set} prompt {few} has {sizes.min()}, "
                f"but prompt {many} has {sizes.max()}: score as many of each"
            )
