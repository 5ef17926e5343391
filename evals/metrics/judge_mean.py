"""Mean score of the held-out judge, in no training loop: how far pictures have come, where its win rate counts every step in the right direction alike."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "held-out judge's score"
unit = "score"
higher_is_better: bool | None = True
scorer = "clip_judge"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
