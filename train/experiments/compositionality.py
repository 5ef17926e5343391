"""Compositionality (paper, sec. 3.2 and 4.3): the mean detection score of the objects that the prompt names, Eq 13.

make train-compositionality
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment, Reward, Task
from train.experiments._stable_diffusion import variants
from train.experiments.imagereward import MINIATURE

TASK = Task(
    name="compositionality",
    prompts="composition-train",  # paper, sec. 4.3: over 1 M, which is 450 x 449 ordered pairs x 5 relations
    rewards=(Reward("objects"),),  # paper: UniDet; here a zero-shot detector, whose absolute numbers differ
    batch=2048,  # paper, App. A
    images_per_prompt=1,  # not stated
    monitors=("hpsv2",),  # ours
)

MINIATURE_TASK = replace(TASK, prompts="miniature-scenes-train", batch=96, monitors=("fully_right",))

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        tasks=(MINIATURE_TASK,),
        iterations=120,  # most pictures score alike, so a batch says less
    ),
    **variants(TASK),
}
