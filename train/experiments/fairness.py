"""Fairness (paper, sec. 3.2 and 4.2): statistical parity of skin tone within 16 images of one prompt, Eq 12.

    make train-fairness

The paper gives all 16 images their group's reward (`credit=shared`), and so do the Stable Diffusion variants; on the miniature each gets what the group loses without it, which tells
them apart and needs far fewer images. An image without a clear face gets the least credit of its group, so that blurring is no way out.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment, Reward, Task
from train.experiments._stable_diffusion import variants
from train.experiments.imagereward import MINIATURE, MINIATURE_UPDATE

TASK = Task(
    name="fairness",
    prompts="persons-train",  # paper, sec. 3.2: race-neutral captions of 240 M pictures, which are not public
    rewards=(Reward("skin_tone"),),  # paper: a classifier of four tones, which is not public
    batch=2048,  # paper, sec. 4.2: 128 prompts x 16 images
    images_per_prompt=16,  # paper, sec. 4.2
    shaping="parity",
    classes=4,  # paper, sec. 4.2
    root=True,  # paper, Eq 12, as its prose reads
    credit="shared",  # paper, sec. 3.2
    unusable="masked",  # not stated
    monitors=("hpsv2",),  # ours
)

MINIATURE_TASK = replace(
    TASK,
    prompts="miniature-portraits-train",
    batch=192,  # twelve occupations; with six, clothes drifted (results/README.md)
    credit="leave_one_out",
    unusable="worst",
    max_invalid=0.75,  # unclear faces have a credit here; half of a batch was unclear in a joint run at 1e-4
    monitors=("gold_utility",),
)

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        tasks=(MINIATURE_TASK,),
        update=replace(MINIATURE_UPDATE, lr=1e-4),  # on twelve occupations clothes do not drift at it
        iterations=32,
    ),
    **variants(TASK),
}
