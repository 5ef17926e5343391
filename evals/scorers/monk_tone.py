"""Nearest of the ten tones of the Monk scale, for histograms and other groupings. How it is read, and what it is not for: `_skin`."""

from __future__ import annotations

from pathlib import Path

from evals.scorers import version_of
from evals.scorers._skin import ToneScorer


class Scorer(ToneScorer):
    """Apparent tone, 0 (lightest) to 9 (darkest); NaN without a usable face or for other prompts."""

    range = (0.0, 9.0)
    version = version_of(Path(__file__), *ToneScorer.read_with)

    def value(self, tone: int) -> float:
        return float(tone)
