"""What every run checks about itself, and stops where it does not hold.

Before the first optimiser step of an iteration the policy is the one that sampled: every ratio is 1 and every KL is 0. If they are not,
rollout and update are different functions, and what follows optimises that difference. Transition and log-probability are
compared with diffusers' scheduler and torch's normal distribution at the run's own schedule, an image drawn alone with the same one drawn in a
batch, and the gradient of a batch with that of its two halves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler

from evals.diffusion import Precision, Schedule, log_prob, transition


class GateBroken(Exception):
    """An identity that training rests on does not hold; the message is one sentence."""


class Diverged(Exception):
    """The policy answers with what is no number; the message is one sentence."""


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do to an identity."""

    ratio: float
    """Largest |ratio - 1| of an averaged log-probability."""
    kl: float
    """Largest KL, in nats, of an image and step."""


TOLERANCE: dict[Precision, Tolerance] = {
    "fp32": Tolerance(ratio=1e-5, kl=1e-3),
    # With equal micro-batches bf16 is as exact as fp32 here, being the same function. With unequal ones its kernels round differently, and
    # a relative error of 0.4 % in the output is already most of the paper's clip of 1e-4.
    "bf16": Tolerance(ratio=1e-4, kl=1.0),
}
TRANSITION_TOLERANCE = 1e-4
IMAGE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "bf16": 5e-2}
"""Largest difference of a latent: nothing but rounding, and none at all on a CPU, where rows do not know of each other."""
GRADIENT_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference relative to the largest entry: sums of the same terms in another order."""


def check_identity(
    gates: dict[str, Any],
    timestep: int,
    ratio_max_dev: float,
    kl_max: float,
    precision: Precision,
    summed_dims: int | None,
) -> None:
    """Record the identity at one step before an update, and refuse to go on where it is broken.

    Args:
        gates: the run's record; changed in place.
        timestep: of the denoising step.
        ratio_max_dev: largest |ratio - 1| over the batch of all processes.
        kl_max: largest KL in nats.
        precision: of the denoiser.
        summed_dims: latent dimensions where the log-probability is their sum, which scales its error; None for a mean.

    Raises:
        GateBroken: beyond the tolerance.
        Diverged: where they are no numbers.
    """
    if not (math.isfinite(ratio_max_dev) and math.isfinite(kl_max)):
        raise Diverged(f"the denoiser's answers at timestep {timestep} are no numbers any more")
    tolerance = TOLERANCE[precision]
    allowed_ratio = tolerance.ratio * (summed_dims or 1)
    record = gates.setdefault(
        "identity",
        {
            "precision": precision,
            "tolerance": {"ratio": allowed_ratio, "kl": tolerance.kl},
            "updates": 0,
            "steps": {},
        },
    )
    record["holds"] = ratio_max_dev <= allowed_ratio and kl_max <= tolerance.kl
    if not record["holds"]:
        raise GateBroken(
            f"before the first update at timestep {timestep} the ratio is off 1 by {ratio_max_dev:.3g} (allowed "
            f"{allowed_ratio:.3g}) and the KL is {kl_max:.3g} nats (allowed {tolerance.kl:.3g}) in {precision}: rollout and "
            "update are not the same function (equal sampling.micro_batch and update.micro_batch rule out rounding)"
        )
    record["updates"] += 1
    worst = record["steps"].setdefault(str(timestep), {"ratio_max_dev": 0.0, "kl_max": 0.0})
    worst["ratio_max_dev"] = max(worst["ratio_max_dev"], ratio_max_dev)
    worst["kl_max"] = max(worst["kl_max"], kl_max)


def transition_gate(scheduler: Any, schedule: Schedule, eta: float) -> dict[str, float]:
    """Largest difference from `DDIMScheduler.step` and from `torch.distributions.Normal`, over all steps of this run's schedule.

    Raises:
        GateBroken: beyond the tolerance.
    """
    config = {"clip_sample": False, "set_alpha_to_one": False, **dict(scheduler.config)}
    reference = DDIMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"})
    # in double, where 1 - alpha - sigma^2 is not the root of a rounding error
    reference.alphas_cumprod = reference.alphas_cumprod.double()
    reference.set_timesteps(len(schedule))
    generator = torch.Generator().manual_seed(0)
    step_error = log_prob_error = 0.0
    for step, timestep in enumerate(schedule.timesteps):
        x, output, z = torch.randn(3, 2, 4, 4, 4, generator=generator)
        mean, sigma = transition(schedule, x, output, step, eta)
        after = mean + sigma * z
        theirs = reference.step(output, timestep, x, eta=eta, variance_noise=z).prev_sample
        if (
            not theirs.isnan().any()
        ):  # even in double that root may be of a negative number, at zero terminal signal
            step_error = max(step_error, (after - theirs).abs().max().item())
        if sigma > 0.0:
            density = (
                torch.distributions.Normal(mean.double(), sigma).log_prob(after.double()).mean((1, 2, 3))
            )
            log_prob_error = max(log_prob_error, (log_prob(after, mean, sigma) - density).abs().max().item())
    if not (step_error <= TRANSITION_TOLERANCE and log_prob_error <= TRANSITION_TOLERANCE):
        raise GateBroken(
            f"the transition differs from diffusers' DDIMScheduler by {step_error:.3g}, and its log-probability from "
            f"torch's normal distribution by {log_prob_error:.3g} (allowed {TRANSITION_TOLERANCE:g})"
        )
    return {
        "transition_max_error": step_error,
        "log_prob_max_error": log_prob_error,
        "tolerance": TRANSITION_TOLERANCE,
        "holds": True,
    }


def check_parts(
    gates: dict[str, Any], image_difference: float, gradient_difference: float, precision: Precision
) -> None:
    """Record that parts make the whole, and refuse to go on where they do not.

    Args:
        gates: the run's record; changed in place.
        image_difference: largest difference between the latents of an image drawn alone and in a batch.
        gradient_difference: largest difference between a weight's gradient from a batch and from its halves, relative to its largest entry.
        precision: of the denoiser.

    Raises:
        GateBroken: beyond the tolerance.
    """
    for name, difference, allowed, meaning in (
        (
            "image",
            image_difference,
            IMAGE_TOLERANCE[precision],
            "an image drawn alone differs from the same one drawn in a batch",
        ),
        (
            "gradient",
            gradient_difference,
            GRADIENT_TOLERANCE[precision],
            "the gradient of a batch differs from that of its halves",
        ),
    ):
        holds = difference <= allowed
        gates[name] = {"max_difference": difference, "tolerance": allowed, "holds": holds}
        if not holds:
            raise GateBroken(f"{meaning} by {difference:.3g} (allowed {allowed:.3g}) in {precision}")
