"""Vendi score within a prompt at a fixed number of images: the effective number of different pictures. 1 is collapse."""

from __future__ import annotations

from evals.metrics._bounds import of_vendi
from evals.metrics._equal import finish as finish
from evals.metrics._equal import statistics as statistics

title = "diversity (Vendi)"
unit = "score"
higher_is_better: bool | None = True
scorer = "vendi"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
bounds = of_vendi
