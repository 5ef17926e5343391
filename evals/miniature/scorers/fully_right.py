"""Whether a scene shows everything that its prompt says, and nothing else."""

from __future__ import annotations

from evals.miniature import measure
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import NAN, SceneScorer
from prompts import Prompt


class Scorer(SceneScorer):
    """1 where every object is there, no other is, and the relation holds; NaN for prompts without objects."""

    def value(self, prompt: Prompt, picture: Picture) -> float:
        if not self.applies(prompt):
            return NAN
        return float(measure.fully_right(prompt.expect, measure.find_objects(picture)))
