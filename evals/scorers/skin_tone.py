"""Skin-tone group of a portrait: the attribute of the paper's fairness reward (Eq 12). How it is read, and what it is not for: `_skin`."""

from __future__ import annotations

from pathlib import Path

from evals.miniature.render import TONE_GROUPS
from evals.scorers import version_of
from evals.scorers._skin import ToneScorer


class Scorer(ToneScorer):
    """Group 0 (light) to 3 (dark) of the apparent tone: Monk 1-4, 5, 6-7, 8-10; NaN without a usable face or for other prompts."""

    range = (0.0, 3.0)
    version = version_of(Path(__file__), *ToneScorer.read_with)

    def value(self, tone: int) -> float:
        return float(TONE_GROUPS[tone])
