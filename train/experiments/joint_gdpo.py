"""All three rewards in one batch, each relative to the images of its prompt and then added (`mixing=gdpo`, arXiv 2601.05242).

    make train-joint_gdpo

Beside `joint`: the same images and a third of its optimiser steps; every prompt has several images, and an image of a fairness group a credit of its own.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment, Task
from train.experiments.joint import MODELS as JOINT

GROUP = 4
"""Images of a prompt where `joint` has one (ours: what `imagereward` has on the miniature)."""


def in_groups(task: Task) -> Task:
    """With images to be compared with, and a credit for each."""
    if task.shaping == "parity":
        return replace(task, credit="leave_one_out")
    return replace(task, images_per_prompt=max(GROUP, task.images_per_prompt))


MODELS: dict[str, Experiment] = {
    model: replace(experiment, mixing="gdpo", tasks=tuple(map(in_groups, experiment.tasks)))
    for model, experiment in JOINT.items()
}
