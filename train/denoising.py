"""The denoiser's own task, at which it is asked without a sampler: pretraining (Eq 9) and forward-process methods.

Shapes: B images of this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evals.arithmetic import padded
from evals.conditioning import Conditioning
from evals.diffusion import Painter, add_noise, denoising_target, predict
from train.run import Run


@dataclass(frozen=True)
class Noised:
    """Latents with noise, and what the denoiser should have said. CPU float32."""

    texts: list[str]
    x0_BCHW: Tensor
    noise_BCHW: Tensor
    timestep_B: Tensor
    """Training timesteps."""
    noisy_BCHW: Tensor
    target_BCHW: Tensor
    """As the model predicts: noise, v or x_0."""


def noised(
    painter: Painter, x0_BCHW: Tensor, texts: Sequence[str], noise_BCHW: Tensor, timestep_B: Tensor
) -> Noised:
    """Latents at training timesteps [B]."""
    return Noised(
        list(texts),
        x0_BCHW,
        noise_BCHW,
        timestep_B,
        add_noise(painter.schedule, x0_BCHW, noise_BCHW, timestep_B),
        denoising_target(painter.schedule, x0_BCHW, noise_BCHW, timestep_B),
    )


def outputs(run: Run, given: Noised, rows: slice) -> Tensor:
    """The policy's answers for some rows, at most a micro-batch, without guidance: float32, on the device, with a graph where there is one.

    Without a gradient what draws is asked: compiled for no gradient, the denoiser would be another function, by rounding (`train.compiling`).
    """
    policy, device = run.policy, run.accelerator.device
    denoiser = policy.module if torch.is_grad_enabled() else policy.painter.unet
    columns = (
        given.noisy_BCHW[rows],
        given.timestep_B[rows],
        *policy.painter.encoder(given.texts[rows]).columns(),
    )
    answers: Tensor = padded(
        lambda x, timestep, *cond: predict(
            denoiser, x, timestep, Conditioning(*cond), None, None, run.experiment.sampling.precision
        ),
        run.experiment.update.micro_batch,
        *(column.to(device) for column in columns),
    )
    return answers[: rows.stop - rows.start]
