"""Whether a scene shows everything that its prompt says, and nothing else."""

from __future__ import annotations

from evals.miniature import measure
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import NAN, SceneScorer, refuse_no_pair
from prompts import Prompt


class Scorer(SceneScorer):
    """1 where every object is there, no other is, and the relation holds; NaN for prompts without objects."""

    needs = 'names two objects in a relation, as `"expect": {"objects": [{"colour": "red", "shape": "star"}, {"colour": "blue", "shape": "circle"}], "relation": "above"}` does'

    def check(self, prompt: Prompt) -> None:
        """See `PixelScorer`."""
        if self.applies(prompt):
            refuse_no_pair(prompt)

    def value(self, prompt: Prompt, picture: Picture) -> float:
        if not self.applies(prompt):
            return NAN
        return float(measure.fully_right(prompt.expect, measure.find_objects(picture)))
