"""Mean score of the reward model: the paper's ImageReward column (Tables 1, 2 and 5)."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "reward model score"
unit = "score"
higher_is_better: bool | None = True
scorer = "imagereward"
needs_base = False
reference: float | None = None
specialist: str | None = "imagereward"
ratio_to_base = False
