"""Distance of the pictures from the base's at the same prompts (KID, times 1000 as the scorer gives it). The base's distance from itself is 0 by definition."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "drift from the base (1000 × KID)"
unit = "score"
higher_is_better: bool | None = None
scorer = "kid"
needs_base = False
reference: float | None = 0.0
specialist: str | None = None
ratio_to_base = False
