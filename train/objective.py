"""What is minimised: the clipped policy gradient (Eq 7) and the denoising loss (Eq 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.diffusion import Schedule


def clipped_surrogate(
    logp_B: Tensor, old_logp_B: Tensor, advantage_B: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Eq 7 with its sign turned: -min(w A, g(eps, A)), g = (1 + eps) A if A >= 0 else (1 - eps) A.

    Args:
        logp_B: of the stored actions under the policy now.
        old_logp_B: of the same under the policy that drew them.
        advantage_B: 0 for masked images.
        clip: epsilon.

    Returns:
        loss_B, and the ratio w_B = exp(logp - old logp).
    """
    ratio_B = (logp_B - old_logp_B).exp()
    bound_B = torch.where(advantage_B >= 0, 1 + clip, 1 - clip) * advantage_B
    return -torch.minimum(ratio_B * advantage_B, bound_B), ratio_B


def clipped_share(ratio_B: Tensor, advantage_B: Tensor, clip: float) -> Tensor:
    """Which images the clip has silenced: those whose ratio is past the bound on the side of their advantage. Bool [B]."""
    return torch.where(advantage_B >= 0, ratio_B > 1 + clip, ratio_B < 1 - clip) & (advantage_B != 0)


def drawable_steps(schedule: Schedule, eta: float, skip_last: int) -> tuple[int, ...]:
    """Denoising steps that can be trained on: those with a density, but for the last `skip_last` of all."""
    return tuple(step for step in schedule.stochastic_steps(eta) if step < len(schedule) - skip_last)


def step_weights(schedule: Schedule, steps: Sequence[int], eta: float, balanced: bool) -> dict[int, float]:
    """Weight of each step's loss: 1 (paper), or 1/kappa_t normalised to mean 1 over the steps that can be drawn.

    kappa_t = |d mean / d output| / sigma_t is the scale of step t's gradient, known in closed form. AdamW divides by a running
    mean square that the steps share, so without balance the steepest step sets the scale and the others hardly move
    the policy, while its own few updates move it too far.
    """
    if not balanced:
        return dict.fromkeys(steps, 1.0)
    inverse = {step: 1.0 / schedule.gradient_scale(step, eta) for step in steps}
    mean = sum(inverse.values()) / len(inverse)
    return {step: value / mean for step, value in inverse.items()}


def denoising_loss(output_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Eq 9: squared error per image, averaged over dimensions as in the released code. [B]."""
    return ((output_BCHW - target_BCHW) ** 2).flatten(1).mean(1)
