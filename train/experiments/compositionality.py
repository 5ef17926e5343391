"""Compositionality (paper, sec. 3.2 and 4.3): the mean detection score of the objects that the prompt names, Eq 13.

make train-compositionality
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment, Reward, Task
from train.experiments.imagereward import MINIATURE

TASK = Task(
    name="compositionality",
    prompts="miniature-scenes-train",
    rewards=(Reward("objects"),),
    batch=96,
    images_per_prompt=1,
    monitors=("fully_right",),
)

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        tasks=(TASK,),
        iterations=120,  # most pictures score alike, so a batch says less
    ),
}
