"""Mean HPS v2.1, 100 times the cosine, as its authors' tables have it."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "HPS v2.1"
unit = "score"
higher_is_better: bool | None = True
scorer = "hpsv2"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
