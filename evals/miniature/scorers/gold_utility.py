"""The hidden utility that the simulated annotators follow: the miniature's gold measure. Never trained on."""

from __future__ import annotations

import numpy as np

from evals.miniature import annotators
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import PixelScorer, refuse_no_pair
from prompts import Prompt


class Scorer(PixelScorer):
    """0 to 4.6: faithful, right, crisp and smooth, weighted."""

    range = (0.0, 4.6)

    def check(self, prompt: Prompt) -> None:
        """See `PixelScorer`."""
        if "objects" in prompt.expect:
            refuse_no_pair(prompt)
        elif "occupation" not in prompt.expect:
            self.value(prompt, np.zeros((64, 64, 3), np.float32))  # which says what it is not
        elif not isinstance(occupation := prompt.expect["occupation"], str):
            raise ValueError(f"`expect.occupation` must be a text, but is {occupation!r}")

    def value(self, prompt: Prompt, picture: Picture) -> float:
        return annotators.gold_utility(prompt, picture)
