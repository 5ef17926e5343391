"""As `drift`, on CLIP with a Gaussian kernel (CMMD, times 1000 as the scorer gives it). The base's distance from itself is 0 by definition."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "drift from the base (CMMD)"
unit = "score"
higher_is_better: bool | None = None
scorer = "cmmd"
needs_base = False
reference: float | None = 0.0
specialist: str | None = None
ratio_to_base = False
