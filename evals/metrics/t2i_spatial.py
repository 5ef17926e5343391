"""T2I-CompBench's spatial relations in the plane: mean of the score by OWLv2."""

from __future__ import annotations

from evals.metrics._bounds import of_share
from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "spatial relations"
unit = "score"
higher_is_better: bool | None = True
scorer = "t2i_spatial"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = True
bounds = of_share
