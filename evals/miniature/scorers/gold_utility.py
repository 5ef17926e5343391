"""The hidden utility that the simulated annotators follow: the miniature's gold measure. Never trained on."""

from __future__ import annotations

from evals.miniature import annotators
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import PixelScorer
from prompts import Prompt


class Scorer(PixelScorer):
    """0 to 4.6: faithful, right, crisp and smooth, weighted."""

    range = (0.0, 4.6)

    def value(self, prompt: Prompt, picture: Picture) -> float:
        return annotators.gold_utility(prompt, picture)
