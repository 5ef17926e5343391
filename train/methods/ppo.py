"""The paper's method: clipped policy gradient (Eq 7) on an advantage over the whole batch (Eq 10), one optimiser step per drawn denoising step.

There is no value function, no KL penalty and no second copy of the denoiser. Its settings are those of `update`.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.config import Experiment
from train.methods._policy_gradient import PolicyGradient

TUNING = (
    ("tasks.batch=96", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=1e-4"),
    ("tasks.batch=48", "update.lr=2e-4"),
    ("tasks.batch=32", "update.lr=1e-4", "sampling.micro_batch=32", "update.micro_batch=32"),
)
BEST = {"imagereward": TUNING[0], "compositionality": TUNING[1], "fairness": TUNING[1]}


@dataclass(frozen=True)
class Method(PolicyGradient):
    """See the file."""


def variant(experiment: Experiment, model: str) -> Experiment:
    """As it is: experiments are written for this method."""
    return experiment
