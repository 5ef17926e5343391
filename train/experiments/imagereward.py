"""Human preference (paper, sec. 3.2 and 4.1): the reward is the preference model's score, Eq 11.

    make train-imagereward

The paper compares an image with the whole batch, as the Stable Diffusion variants do; the experiment on the miniature compares it with three others of its prompt
first. On the miniature the annotators are simulated, so what they really prefer, the gold utility, is recorded beside the reward.
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Ema, Experiment, Reward, Task, Update
from train.experiments import _stable_diffusion as stable_diffusion
from train.experiments.base import MODELS as BASE

TASK = Task(
    name="imagereward",
    prompts="diffusiondb-train",  # paper, sec. 4.1: 1.5 M prompts of DiffusionDB
    rewards=(Reward("imagereward"),),
    batch=2048,  # paper, App. A
    images_per_prompt=1,  # not stated
    monitors=(
        "hpsv2",
    ),  # the paper watches the aesthetic score (Table 1), whose weights not everybody may use
)

MINIATURE_TASK = replace(
    TASK,
    prompts="miniature-preference-train",
    batch=288,  # two points of win rate more than 96 (results/README.md)
    monitors=("gold_utility",),
)

# The paper's clip belongs to 16,384 latent dimensions. At equal exact KL the noise of the
# averaged log-ratio goes as 1/D, so for 8 x 8 x 8 = 512 dimensions it is 1e-4 x 32 = 3.2e-3.
MINIATURE_UPDATE = Update(
    lr=6e-5,
    warmup=25,  # without it the first iteration moves the policy as far as twenty later ones
    decay="linear",
    clip=3.2e-3,
    trained_steps=5,
    skip_last=2,  # the last two steps only polish; their gradients are the steepest (results/README.md)
    step_weight="balanced",  # the base predicts v: kappa_t grows twelvefold towards the last steps
    micro_batch=48,
)

MINIATURE = replace(BASE["miniature"], update=MINIATURE_UPDATE, ema=Ema(decay=0.98))
"""What experiments on the miniature start from; each sets its tasks and iterations."""

# The preference model is taught from pairs of one prompt: what it gives to all pictures of a prompt means nothing, and is seven tenths of the
# variance of faultless pictures' rewards (results/README.md).
MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        tasks=(replace(MINIATURE_TASK, images_per_prompt=4, baseline="group"),),
        ema=Ema(decay=0.99),  # much of what single steps do is noise, which leaves stains (results/README.md)
        iterations=80,
    ),
    **stable_diffusion.variants(TASK),
}
