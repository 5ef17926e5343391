"""Mean rating of the aesthetic predictor, of about ten: the paper's Aesthetic column (Table 1)."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "aesthetic score"
unit = "score"
higher_is_better: bool | None = True
scorer = "aesthetic"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
