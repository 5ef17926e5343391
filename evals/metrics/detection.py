"""Object detection score, paper Eq 13: mean over the objects named in the prompt, 0 for one that is not found."""

from __future__ import annotations

from evals.metrics._bounds import of_share
from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "detection score"
unit = "score"
higher_is_better: bool | None = True
scorer = "objects"
needs_base = False
reference: float | None = None
specialist: str | None = "compositionality"
ratio_to_base = True
bounds = of_share
