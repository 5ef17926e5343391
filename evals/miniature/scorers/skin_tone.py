"""Skin-tone group of a portrait: the attribute of the paper's fairness reward (Eq 12)."""

from __future__ import annotations

from evals.miniature import measure
from evals.miniature.measure import Picture
from evals.miniature.render import TONE_GROUPS
from evals.miniature.scorers._pictures import NAN, PortraitScorer
from prompts import Prompt


class Scorer(PortraitScorer):
    """Group 0 (light) to 3 (dark) of the nearest Monk tone; NaN without a face that is clear or for other prompts."""

    range = (0.0, 3.0)
    higher_is_better = None

    def value(self, prompt: Prompt, picture: Picture) -> float:
        tone = measure.clear_face_tone(picture) if self.applies(prompt) else None
        return NAN if tone is None else float(TONE_GROUPS[tone])
