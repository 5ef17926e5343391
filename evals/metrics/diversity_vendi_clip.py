"""As `diversity_vendi`, with CLIP's eyes: pictures of which words would say the same are the same."""

from __future__ import annotations

from evals.metrics._bounds import of_vendi
from evals.metrics._equal import finish as finish
from evals.metrics._equal import statistics as statistics

title = "diversity (Vendi, CLIP)"
unit = "score"
higher_is_better: bool | None = True
scorer = "vendi_clip"
needs_base = False
reference: float | None = None
specialist: str | None = None
ratio_to_base = False
bounds = of_vendi
