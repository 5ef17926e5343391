"""Mean gold utility: is the picture still good, whatever it was trained for?"""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "gold quality"
unit = "score"
higher_is_better: bool | None = True
scorer = "gold_utility"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
