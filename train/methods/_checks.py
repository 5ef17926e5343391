"""What any method holds a run to before it trains, whatever its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evals.arithmetic import micro_batches
from train.gates import NOISE_TOLERANCE, check_part, gradient_error
from train.policy import whole
from train.run import Run, accumulated, gather, synchronised


def check_noise(run: Run, texts: Sequence[str], seed: int) -> None:
    """The last image has the noise that it has alone.

    Raises:
        GateBroken: where it has not.
    """
    painter, last = replace(run.policy.painter, unet=Silent(run.policy.unet.config)), len(texts) - 1
    together = painter.draw(texts, range(len(texts)), seed).latents_BCHW[-1:]
    alone = painter.draw(texts[-1:], [last], seed).latents_BCHW
    difference = (alone - together).abs().max() / together.abs().max()
    worst = float(gather(run, difference[None]).max())
    check_part(run.progress.gates, "noise", worst, NOISE_TOLERANCE, run.experiment.sampling.precision)


class Silent(torch.nn.Module):
    """A denoiser that always answers zero: what is drawn with it shows the noise that it was given."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_BCHW: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """Zeros."""
        return (torch.zeros_like(x_BCHW),)


def check_halves(run: Run, size: int, loss_of: Callable[[slice], Tensor]) -> None:
    """The gradient of a batch is that of its two halves.

    Of one weight, the one whose gradient is largest: what comes after it in the network is in it too, and a copy of one weight
    is not a copy of the model.

    Args:
        run: with the policy; every process has the same images.
        size: of the batch, at most a micro-batch.
        loss_of: losses of some of its rows.

    Raises:
        GateBroken: where it is not.
    """
    weights, rounding = run.policy.weights, run.rounding

    def accumulate(rows_at_once: int) -> None:
        for rows in micro_batches(size, rows_at_once):
            with synchronised(run, last=rows.stop == size):
                run.policy.backward(loss_of(rows).sum() / size)

    accumulated(run, partial(accumulate, size))
    largest = max(weights.values(), key=lambda w: 0.0 if w.grad is None else float(whole(w.grad.norm())))
    assert largest.grad is not None
    at_once = whole(largest.grad).clone()
    run.policy.forget_gradients()
    accumulated(run, partial(accumulate, max(1, size // 2)))
    difference: Tensor = (whole(largest.grad) - at_once).norm() / at_once.norm()
    run.policy.forget_gradients()
    worst = float(gather(run, difference.cpu()[None]).max())
    allowed = gradient_error(rounding.sampling, rounding.longest_sum)
    check_part(run.progress.gates, "gradient", worst, allowed, rounding.sampling.precision)
