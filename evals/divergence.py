"""How far a checkpoint has gone from its base: the exact KL divergence between the two samplers, along the checkpoint's own pictures.

Both samplers start from the same noise and add noise of the same scale at every denoising step, so their transitions are Gaussians
that differ in their means alone. By the chain rule the divergence of the checkpoint's trajectories from the base's is

    KL(p || p_base) = E_p [ sum_t |mean_t(x_t) - base mean_t(x_t)|^2 / (2 sigma_t^2) ]

in nats, summed over latent dimensions and denoising steps. Each image gives one number, unbiased for it and never below 0. It is what
DPOK (arXiv 2305.16381) keeps small in training, measured here, and an upper bound on the divergence of the latents that the last of these
steps leaves.

A step without noise (sigma 0: the last one of some schedules) has no density and is not in the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evals import arithmetic, conditioning, diffusion
from evals.arithmetic import micro_batches, padded
from evals.conditioning import Conditioning
from evals.diffusion import Painter, gaussian_kl, predict, transition
from evals.scorers import version_of


def version() -> str:
    """8 hex digits of the code that decides the numbers."""
    return version_of(*map(Path, (__file__, diffusion.__file__, arithmetic.__file__, conditioning.__file__)))


@torch.no_grad()
def kl_to_base(
    painter: Painter, base: Painter, texts: Sequence[str], image_indices: Sequence[int], seed: int
) -> Tensor:
    """KL divergence of a checkpoint's sampler from its base's, one estimate per (text, image index).

    The pictures are those that `painter.paint` draws; it costs the base one evaluation per denoising step beside them.

    Args:
        painter: of the checkpoint, which draws.
        base: of the base, with the same sampler.
        texts: prompts.
        image_indices: which image of its prompt each is.
        seed: of the noise.

    Returns:
        nats_B float32, summed over latent dimensions and denoising steps, on the CPU.

    Raises:
        ValueError: where the samplers differ in more than their denoiser, or no step has noise.
    """
    _refuse_other_samplers(painter, base)
    steps = painter.schedule.stochastic_steps(painter.sampling.eta)
    parts = []
    for rows in micro_batches(
        len(texts), painter.sampling.micro_batch
    ):  # what is kept of fifty steps is large
        drawn = painter.draw(texts[rows], image_indices[rows], seed, keep=steps)
        nats_BT = torch.stack(
            [
                gaussian_kl(
                    drawn.mean_BTCHW[:, kept],
                    transition_mean(base, texts[rows], drawn.x_BTCHW[:, kept], step),
                    base.schedule.sigma(step, base.sampling.eta),
                )
                for kept, step in enumerate(drawn.steps)
            ],
            1,
        )
        parts.append(nats_BT.double().sum(1).float())
    return torch.cat(parts) if parts else torch.empty(0)


@torch.no_grad()
def transition_mean(painter: Painter, texts: Sequence[str], x_BCHW: Tensor, step: int) -> Tensor:
    """Mean of the transition that a painter would make from these latents at a step, on the CPU.

    At most a micro-batch, padded to one: the same shapes as in `evals.diffusion.sample`, so that of equal weights the means are equal.
    """
    sampling, schedule = painter.sampling, painter.schedule
    uncond = painter.unconditional()
    cond = painter.encoder(texts)
    device = cond.text_BLD.device

    def mean_of(x: Tensor, *columns: Tensor) -> Tensor:
        given = Conditioning(*columns)
        output = predict(
            painter.unet, x, schedule.timesteps[step], given, uncond, sampling.guidance, sampling.precision
        )
        return transition(schedule, x, output, step, sampling.eta)[0]

    whole: Tensor = padded(mean_of, sampling.micro_batch, x_BCHW.to(device), *cond.columns())
    return whole[: len(x_BCHW)].cpu()


def _refuse_other_samplers(painter: Painter, base: Painter) -> None:
    """Refuse two samplers whose transitions have no divergence.

    Raises:
        ValueError: naming what differs, or that there is no noise.
    """
    alike = {
        "noise levels": painter.schedule == base.schedule,
        "size of latents": painter.latent_shape == base.latent_shape,
        "settings of the sampler": painter.sampling == base.sampling,
    }
    for what, same in alike.items():
        if not same:
            raise ValueError(
                f"the checkpoint and its base differ in their {what}, so one's distance from the other has no KL divergence"
            )
    if not painter.schedule.stochastic_steps(painter.sampling.eta):
        raise ValueError(
            f"pictures are drawn with sampling.eta {painter.sampling.eta:g}, without noise, where a KL divergence does not exist: use a suite with eta above 0"
        )
