"""Mean perceptual distance between the images of a prompt. Noise raises it too, so that more is not better: read it beside a quality metric and a Vendi score."""

from __future__ import annotations

from evals.metrics._bounds import of_distance
from evals.metrics._equal import finish as finish
from evals.metrics._equal import statistics as statistics

title = "diversity (pairwise distance)"
unit = "score"
higher_is_better: bool | None = None
scorer = "pairwise_distance"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
bounds = of_distance
