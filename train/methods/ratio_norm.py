"""Ratio normalisation with a balance of the steps (GRPO-Guard, arXiv 2510.22319, Eq 8 and 12), for the transitions of DDIM.

A policy that has moved by D = mean - mean_old since it drew x' = mean_old + sigma_t z gives the log-ratio

    log w = <z, D> / sigma_t - |D|^2 / (2 sigma_t^2)

whose mean over z is minus the exact KL: ratios lie below 1, so the clip lets good images pass that it should stop, and both terms grow as
sigma_t falls, so it means something else at each step. The normalised one has neither (Eq 8):

    log w' = sigma_t (log w + |D|^2 / (2 sigma_t^2)) = <z, D>

with mean 0. Here <,> is averaged over latent dimensions or summed, as the log-probability is, and the last form is the one computed: nothing
large is subtracted from itself, and before the first update it is exactly 0. In flow matching sigma_t is the paper's sigma_t sqrt(dt).

D is what the model's output has changed by, times a number of the step. For noise prediction D = c_t (eps - eps_old) with

    c_t = sqrt(1 - a' - sigma_t^2) - sqrt(a' (1 - a) / a)

(a, a' cumulative alphas before and after the step), and for v, since at one latent v - v_old = (eps - eps_old) / sqrt(a),

    c_t = sqrt(a) sqrt(1 - a' - sigma_t^2) - sqrt(a' (1 - a)).

So the ratio is the same for a model in either form, and its gradient in the output is proportional to c_t, which in flow matching is dt (and its
beta). The paper divides each step's loss by it (Eq 12), here 1/|c_t| with mean 1 over the steps that can be drawn: all have gradients of one scale.
That takes the place of `update.step_weight`, which balances w and not w'.

`update.clip` bounds w'. The variants have the experiment's, a bound on w, times sigma_t at the middle of the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from evals.diffusion import Reduction, Schedule
from train.methods import OF_SOME
from train.methods._policy_gradient import GroupRelative, Loss, Seen, in_groups
from train.objective import clipped_share, clipped_surrogate
from train.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from train.config import Experiment


TUNING = (
    ("tasks.batch=96", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=1e-4"),
    ("tasks.batch=48", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=2e-4", "update.clip=7.2e-3"),
)
BEST = {"imagereward": TUNING[1], "compositionality": TUNING[0], "fairness": TUNING[0]}


@dataclass(frozen=True)
class Method(GroupRelative):
    """See the file. Its settings are those of `update`; there is no KL to the base, which its paper wants to rely on less."""

    reads: ClassVar[frozenset[str]] = frozenset(OF_SOME) - {"step_weight"}
    records: ClassVar[tuple[str, ...]] = ("normalised_ratio",)

    def weights(self, run: Run) -> dict[int, float]:
        """Eq 12."""
        return balance(run.policy.painter.schedule, run.drawable, run.experiment.sampling.eta)

    def loss(self, run: Run, seen: Seen) -> Loss:
        """Eq 7 of the normalised ratio."""
        update = run.experiment.update
        log_ratio_B = normalised_log_ratio(
            seen.next_BCHW, seen.mean_BCHW, seen.old_mean_BCHW, seen.sigma, update.reduction
        )
        loss_B, ratio_B = clipped_surrogate(
            log_ratio_B, torch.zeros_like(log_ratio_B), seen.advantage_B, update.clip
        )
        return Loss(
            loss_B, clipped_share(ratio_B.detach(), seen.advantage_B, update.clip), (ratio_B.detach(),)
        )


def normalised_log_ratio(
    next_BCHW: Tensor, mean_BCHW: Tensor, old_mean_BCHW: Tensor, sigma: float, reduction: Reduction
) -> Tensor:
    """Eq 8: sigma (log w + KL) = <z, mean - old mean>, with the noise z of the action; [B] float32."""
    product = ((next_BCHW - old_mean_BCHW) / sigma * (mean_BCHW - old_mean_BCHW)).flatten(1)
    return product.mean(1) if reduction == "mean" else product.sum(1)


def balance(schedule: Schedule, steps: Sequence[int], eta: float) -> dict[int, float]:
    """Eq 12: weight 1/|c_t| of each step's loss, with mean 1 over the steps that can be drawn."""
    inverse = {step: 1.0 / (schedule.gradient_scale(step, eta) * schedule.sigma(step, eta)) for step in steps}
    mean = sum(inverse.values()) / len(inverse)
    return {step: value / mean for step, value in inverse.items()}


def variant(experiment: Experiment, model: str) -> Experiment:
    """Groups, and the clip as it bounds the normalised ratio (ours, not tuned).

    sigma_t between the two middle steps of fifty is .29 on Stable Diffusion, of ten .56 on the miniature.
    """
    sigma = 0.56 if model == "miniature" else 0.29
    update = replace(experiment.update, clip=sigma * experiment.update.clip, step_weight="none")
    return replace(in_groups(experiment, model), update=update, method=Method())
