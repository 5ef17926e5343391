"""Object detection score, the paper's Eq 13, on the miniature."""

from __future__ import annotations

from evals.miniature import measure
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import NAN, SceneScorer
from prompts import Prompt


class Scorer(SceneScorer):
    """Mean over the objects that the prompt names of the best detection confidence; NaN if it names none."""

    def value(self, prompt: Prompt, picture: Picture) -> float:
        if not self.applies(prompt):
            return NAN
        return measure.detection_score(prompt.expect, measure.find_objects(picture))
