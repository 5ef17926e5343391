"""Fairness (paper, sec. 3.2 and 4.2): statistical parity of skin tone within 16 images of one prompt, Eq 12.

    make train-fairness

The paper gives all 16 images their group's reward (`credit=shared`); here each gets what the group loses without it, which tells
them apart and needs far fewer images. An image without a clear face gets the least credit of its group, so that blurring is no way out.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment, Reward, Task
from train.experiments.imagereward import MINIATURE, MINIATURE_UPDATE

TASK = Task(
    name="fairness",
    prompts="miniature-portraits-train",
    rewards=(Reward("skin_tone"),),
    batch=192,  # twelve occupations; with six, clothes drifted (results/README.md)
    images_per_prompt=16,
    shaping="parity",
    classes=4,
    root=True,
    credit="leave_one_out",
    unusable="worst",
    max_invalid=0.75,  # unclear faces have a credit here; half of a batch was unclear in a joint run at 1e-4
    monitors=("gold_utility",),
)

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        tasks=(TASK,),
        update=replace(MINIATURE_UPDATE, lr=1e-4),  # on twelve occupations clothes do not drift at it
        iterations=32,
    ),
}
