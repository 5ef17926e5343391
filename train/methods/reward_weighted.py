"""Reward-weighted regression (arXiv 2302.12192, Eq 3), as the paper's baseline: the base's own pictures, each as heavy as it is good.

    loss = E_{x_0 ~ base} [ r(x_0) |eps_theta(x_t) - eps|^2 ] + beta E_{x_0 ~ data} [ |eps_theta(x_t) - eps|^2 ],     r mapped to [0, 1]

As the paper has it (2401.12244, App. A), pictures are drawn on the fly from the ORIGINAL model, not the current one, and rewards are mapped to [0, 1] by their
least and largest value, here those of the iteration. So what it can reach is bounded: the base's distribution, tilted by a factor of at most 1.

beta = .5 (the paper's Table 6) is the weight of the second term, the experiment's pretraining step: `pretraining.beta`. It is an optimiser step of its own here, as the
paper's Algorithm 1 has it for every task; AdamW divides both by one running mean square, so beta keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from train.batches import Judged
from train.config import Experiment, Pretraining, Task
from train.denoising import Noised
from train.methods import only_heeded
from train.methods._forward_process import ForwardProcess
from train.objective import denoising_loss
from train.run import Run

BETA = 0.5
"""Paper, Table 6."""


TUNING = (
    ("tasks.batch=96", "update.lr=1e-4", "pretraining.batch=96"),
    ("tasks.batch=48", "update.lr=2e-4", "pretraining.batch=48"),
    ("tasks.batch=96", "update.lr=2e-4", "method.updates=10", "pretraining.batch=96"),
    ("tasks.batch=96", "update.lr=2e-4", "pretraining.batch=96", "pretraining.beta=0.05"),
)
BEST = {"imagereward": TUNING[3], "compositionality": TUNING[3], "fairness": TUNING[3]}


@dataclass(frozen=True)
class Method(ForwardProcess):
    """See the file."""

    needs_reference: ClassVar[bool] = True
    pretraining_beta: ClassVar[float] = BETA

    def sampler(self, run: Run) -> AbstractContextManager[None]:
        """The base draws, not the policy."""
        return run.policy.as_base()

    def signal(self, run: Run, task: Task, judged: Judged) -> Tensor:
        """The weight, in [0, 1]."""
        return unit_interval(judged.shaped.credit_B)

    def note(self, run: Run) -> str:
        """Where its pretraining term is missing."""
        if run.experiment.pretraining is not None:
            return ""
        return "reward_weighted has a pretraining term (paper, Table 6), and pretraining.source is not given: this trains without it"

    def losses(
        self, run: Run, given: Noised, output_RCHW: Tensor, signal_R: Tensor, beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pretraining loss, weighted."""
        error_R = denoising_loss(output_RCHW, given.target_BCHW.to(output_RCHW.device))
        return signal_R * error_R, {"error": error_R}


def unit_interval(reward_B: Tensor) -> Tensor:
    """(r - least) / (largest - least) over the rewards there are; NaN where there is none, 0 where all are equal, which says nothing. [B]."""
    valid = reward_B[reward_B.isfinite()]
    spread = valid.max() - valid.min()
    weight_B = (reward_B - valid.min()) / spread if spread > 0 else torch.zeros_like(reward_B)
    return weight_B.where(reward_B.isfinite(), torch.nan)


def variant(experiment: Experiment, model: str) -> Experiment:
    """Stable Diffusion: the paper's Table 6. The miniature: with its own pretraining data, as much as it draws (ours, not tuned)."""
    pretraining = experiment.pretraining
    if model == "miniature":
        pretraining = Pretraining("miniature", batch=max(task.batch for task in experiment.tasks))
        method, lr = Method(updates=5), experiment.update.lr
    else:
        method = Method()
        # Table 6 trains all weights; LoRA keeps the rate that it has
        lr = 1e-5 if experiment.lora is None else experiment.update.lr
    if pretraining is not None:
        pretraining = replace(pretraining, beta=BETA)
    update = replace(only_heeded(experiment.update, method), lr=lr)
    return replace(experiment, method=method, update=update, pretraining=pretraining)
