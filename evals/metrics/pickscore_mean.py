"""Mean PickScore: logit scale times cosine, about 15 to 25."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "PickScore"
unit = "score"
higher_is_better: bool | None = True
scorer = "pickscore"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
