"""Vendi score within a prompt at the fixed number of images: the effective number of different pictures. 1 is collapse."""

from __future__ import annotations

from evals.metrics._means import finish as finish
from evals.metrics._means import statistics as statistics

title = "diversity (Vendi)"
unit = "score"
higher_is_better: bool | None = True
scorer = "vendi"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
