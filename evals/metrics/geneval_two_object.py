"""GenEval's task `two_object`: the share of its images that are right."""

from __future__ import annotations

from functools import partial

from evals.metrics._geneval import right_of_task
from evals.metrics._means import finish as finish

title = "GenEval, two objects"
unit = "share"
higher_is_better: bool | None = True
scorer = "geneval"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = True

statistics = partial(right_of_task, "two_object")
