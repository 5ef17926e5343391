"""The hidden utility that the simulated annotators follow: the miniature's gold measure. Never trained on."""

from __future__ import annotations

import numpy as np

from evals.miniature import annotators, measure
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import PixelScorer
from prompts import Prompt


class Scorer(PixelScorer):
    """0 to 4.6: faithful, right, crisp and smooth, weighted."""

    range = (0.0, 4.6)

    def check(self, prompt: Prompt) -> None:
        """See `PixelScorer`. Raises ValueError where it names no objects of this world and no occupation."""
        if "objects" in prompt.expect:
            measure.expected_objects(prompt.expect)
        elif "occupation" not in prompt.expect:
            self.value(prompt, np.zeros((64, 64, 3), np.float32))

    def value(self, prompt: Prompt, picture: Picture) -> float:
        return annotators.gold_utility(prompt, picture)
