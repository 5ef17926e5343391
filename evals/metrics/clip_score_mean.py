"""Mean CLIPScore, 100 times the cosine: how well pictures fit their prompts."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "CLIPScore"
unit = "score"
higher_is_better: bool | None = True
scorer = "clip_score"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
