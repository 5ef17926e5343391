"""All three rewards in one batch, normalised and added (`mixing=zscores`), where the paper's `joint` lets tasks take turns.

    make train-joint_zscores

Beside `joint`: the same tasks and images, and a third of its optimiser steps, each on the images of all tasks.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment
from train.experiments.joint import MODELS as JOINT

MODELS: dict[str, Experiment] = {
    model: replace(experiment, mixing="zscores") for model, experiment in JOINT.items()
}
