"""T2I-CompBench's attribute binding: mean of B-VQA, on the prompt sets of colour, shape and texture each by itself."""

from __future__ import annotations

from evals.metrics._bounds import of_share
from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "attributes bound (B-VQA)"
unit = "score"
higher_is_better: bool | None = True
scorer = "t2i_attributes"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = True
bounds = of_share
