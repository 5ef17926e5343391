"""All three at once (paper, sec. 3.3 and 4.4): the tasks of the three experiments, taking turns in every iteration, at imagereward's rate.

make train-joint
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment
from train.experiments.compositionality import MODELS as COMPOSITIONALITY
from train.experiments.fairness import MODELS as FAIRNESS
from train.experiments.imagereward import MODELS as IMAGEREWARD

MODELS: dict[str, Experiment] = {
    model: replace(
        IMAGEREWARD[model],
        tasks=IMAGEREWARD[model].tasks + COMPOSITIONALITY[model].tasks + FAIRNESS[model].tasks,
        iterations=30,  # fewer than any specialist's: the tasks help each other
    )
    for model in IMAGEREWARD
}
