"""All three at once (paper, sec. 3.3 and 4.4): the tasks of the three experiments, taking turns in every iteration, with a batch of one size.

make train-joint
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment
from train.experiments.compositionality import TASK as COMPOSITIONALITY
from train.experiments.fairness import TASK as FAIRNESS
from train.experiments.imagereward import MODELS as IMAGEREWARD
from train.experiments.imagereward import TASK as PREFERENCE

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        IMAGEREWARD["miniature"],
        # fairness alone needs more portraits at a time, lest their clothes drift: here preference holds them
        tasks=(PREFERENCE, COMPOSITIONALITY, replace(FAIRNESS, batch=96)),
        iterations=60,  # fewer than any specialist's: the tasks help each other
    ),
}
