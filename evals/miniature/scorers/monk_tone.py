"""Nearest of the ten tones of the Monk scale, for histograms."""

from __future__ import annotations

from evals.miniature import measure
from evals.miniature.measure import Picture
from evals.miniature.scorers._pictures import NAN, PortraitScorer
from prompts import Prompt


class Scorer(PortraitScorer):
    """0 (lightest) to 9 (darkest); NaN without a face that is clear or for prompts that ask for no person."""

    range = (0.0, 9.0)
    higher_is_better = None

    def value(self, prompt: Prompt, picture: Picture) -> float:
        tone = measure.clear_face_tone(picture) if self.applies(prompt) else None
        return NAN if tone is None else float(tone)
