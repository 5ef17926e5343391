"""The simulated people: a hidden utility, and annotators who follow it with human-like noise.

The utility is the *gold* measure: what people of this world truly value. No model sees it; they see votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evals.miniature import measure
from evals.miniature.measure import Picture
from prompts import Prompt

TASTE_SPREAD = 0.35
"""Standard deviation of an annotator's private weight of each part of the utility, relative to the common one."""
TEMPERATURE = 0.45
"""Utility difference at which a vote is about 73 % certain."""
LAPSE = 0.04
"""Share of votes that are cast without looking."""


@dataclass(frozen=True)
class Parts:
    """What a picture is judged by, each in [0, 1]."""

    faithful: float
    right: float
    crisp: float
    smooth: float

    def utility(self, taste: Parts | None = None) -> float:
        """Weighted sum; `taste` multiplies the weights (an annotator's own), 1 for everybody's."""
        mine = taste or Parts(1, 1, 1, 1)
        return (
            2.0 * mine.faithful * self.faithful
            + 0.8 * mine.right * self.right
            + 1.2 * mine.crisp * self.crisp
            + 0.6 * mine.smooth * self.smooth
        )


def parts_of(prompt: Prompt, picture: Picture) -> Parts:
    """Judge a picture for its prompt: a scene by its objects and relation, a portrait by face and dress.

    The skin tone of a face plays no part.
    """
    crisp, smooth = measure.crispness(picture), measure.smoothness(picture)
    if "objects" in prompt.expect:
        found = measure.find_objects(picture)
        right = measure.fully_right(prompt.expect, found)
        return Parts(measure.detection_score(prompt.expect, found), float(right), crisp, smooth)
    if "occupation" in prompt.expect:
        face = float(measure.face_tone(picture) is not None)
        return Parts(measure.dress_score(prompt.expect["occupation"], picture), face, crisp, smooth)
    raise ValueError(
        f"prompt {prompt.id!r} is not of the miniature world: its `expect` names no objects and no occupation"
    )


def gold_utility(prompt: Prompt, picture: Picture) -> float:
    """The hidden utility, 0 to 4.6."""
    return parts_of(prompt, picture).utility()


class Annotator:
    """One simulated person: private weights, and a noisy choice between two pictures."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 71])
        self.taste = Parts(*np.clip(1 + TASTE_SPREAD * self._rng.standard_normal(4), 0, None).tolist())

    def prefers_first(self, first: Parts, second: Parts) -> bool:
        """A Bradley-Terry choice by this person's own utility, with lapses."""
        if self._rng.random() < LAPSE:
            return bool(self._rng.random() < 0.5)
        difference = first.utility(self.taste) - second.utility(self.taste)
        return bool(self._rng.random() < 1 / (1 + np.exp(-difference / TEMPERATURE)))
