"""Share of images in which every object named is there and the relation holds."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "images fully right"
unit = "share"
higher_is_better: bool | None = True
scorer = "fully_right"
needs_base = False
reference: float | None = None
specialist: str | None = "compositionality"
ratio_to_base = True
