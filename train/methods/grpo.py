"""Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300; for images Flow-GRPO, arXiv 2505.05470) with a KL to the base.

An image is compared with the others of its prompt, by their own mean and standard deviation (`advantages.group_relative`), and the loss of each
denoising step is Eq 7 plus `kl` times the KL of the step's transition to the base's, from the same latent. Both transitions are Gaussians of one
sigma, so that KL is exact, |mean - mean of the base|^2 / (2 sigma^2), where language models need an estimate. It is averaged over latent dimensions
where the log-probability is (`update.reduction`): a ratio that is averaged has a gradient that many times smaller, and `kl` means the same in both.

The base's means are taken once per update, without a gradient, by the base's weights in the place of the policy's: one more denoiser
evaluation for each image and trained step. `zero_std` in metrics.jsonl is the share of groups that say nothing as their rewards are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from evals.arithmetic import micro_batches
from evals.diffusion import Reduction, gaussian_kl
from evals.divergence import transition_mean
from train.methods import Evaluations
from train.methods._policy_gradient import (
    Batch,
    GroupRelative,
    Loss,
    Seen,
    in_groups,
)
from train.run import Run

if TYPE_CHECKING:
    from train.config import Experiment, Task


TUNING = (
    ("tasks.batch=96", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=1e-4"),
    ("tasks.batch=48", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=2e-4", "method.kl=0"),
)
BEST = {"imagereward": TUNING[3], "compositionality": TUNING[3], "fairness": TUNING[2]}


@dataclass(frozen=True)
class Method(GroupRelative):
    """See the file."""

    needs_reference: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("kl_base",)

    kl: float = 0.04
    """Factor on the KL to the base (Flow-GRPO's config for GenEval and OCR: 0.04; for PickScore 0.01), 0 for none."""

    def check(self, experiment: Experiment) -> None:
        """Also the weight of the divergence."""
        super().check(experiment)
        if self.kl < 0.0:
            raise ValueError(f"method.kl is {self.kl}, but it must be at least 0")

    def evaluations(self, experiment: Experiment, task: Task) -> Evaluations:
        """With the base's, one for each image and trained step."""
        drawn, trained = super().evaluations(experiment, task)
        return Evaluations(drawn + (trained if self.kl else 0), trained)

    def update(self, run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
        """As the family, the base's means taken first."""
        if self.kl:
            batch = replace(batch, base_mean_BTCHW=base_means(run, batch))
        return super().update(run, batch, on_policy)

    def columns(self, batch: Batch, kept: int, rows: slice) -> tuple[Tensor, ...]:
        """The base's means at the step, and which images have a reward."""
        if batch.base_mean_BTCHW is None:
            return ()
        return batch.base_mean_BTCHW[rows, kept], batch.valid_B[rows]

    def loss(self, run: Run, seen: Seen) -> Loss:
        """Eq 7, plus the KL to the base of every image with a reward."""
        loss_B, silenced_B, _ = super().loss(run, seen)
        if not seen.more:
            return Loss(loss_B, silenced_B, (torch.zeros_like(loss_B),))
        base_mean_BCHW, valid_B = seen.more
        kl_B = gaussian_kl(seen.mean_BCHW, base_mean_BCHW, seen.sigma)
        dims = math.prod(seen.mean_BCHW.shape[1:])
        penalty_B = self.kl * per_log_probability(kl_B, dims, run.experiment.update.reduction)
        return Loss(loss_B + penalty_B * valid_B, silenced_B, (kl_B,))


def per_log_probability(kl_B: Tensor, dims: int, reduction: Reduction) -> Tensor:
    """A KL in nats as the log-probability is counted: averaged over latent dimensions, or summed."""
    return kl_B / dims if reduction == "mean" else kl_B


def base_means(run: Run, batch: Batch) -> Tensor:
    """Means of the base's transitions from the latents that were drawn, [B, T, C, H, W] as the trajectory keeps them: local, on the CPU."""
    painter, drawn = run.policy.painter, batch.trajectory
    found = torch.empty_like(drawn.mean_BTCHW)
    with run.policy.as_base():
        for rows in micro_batches(len(batch.texts), painter.sampling.micro_batch):
            for kept, step in enumerate(drawn.steps):
                found[rows, kept] = transition_mean(
                    painter, batch.texts[rows], drawn.x_BTCHW[rows, kept], step
                )
    return found


def variant(experiment: Experiment, model: str) -> Experiment:
    """Groups of 16, or 8 on the miniature (ours, not tuned); all else is the experiment's."""
    return replace(in_groups(experiment, model), method=Method())
