"""fp16 ends at 65,504 and begins at 6e-8: gradients are kept between by a factor on the loss. float32 and bf16 need none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from evals.diffusion import Reduction
from train.gates import Diverged


class LossScale:
    """Factor on the loss, so that fp16 holds its gradients: halved where they overflow, doubled after `PATIENCE` steps in which they did not.

    A power of two, so that taking it off again rounds nothing. No step is lost to an overflow: its gradient is taken again.
    """

    PATIENCE = 2000
    """Steps, as in torch's GradScaler."""
    LEAST = 2.0**-14
    """Below it no gradient is too large for fp16 that is not too large for anything."""

    def __init__(self, start: float) -> None:
        self.value = start
        self.steps = 0
        """Steps since it was changed."""

    def kept(self) -> None:
        """The gradients of a step are numbers."""
        self.steps += 1
        if self.steps == self.PATIENCE:
            self.value, self.steps = 2 * self.value, 0

    def overflowed(self) -> None:
        """They are not.

        Raises:
            Diverged: where they are not for any factor.
        """
        self.value, self.steps = self.value / 2, 0
        if self.value < self.LEAST:
            raise Diverged("the gradients are no numbers, and it is not that fp16 is too small for them")

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {
            "value": torch.tensor(self.value, dtype=torch.float64),
            "steps": torch.tensor(self.steps, dtype=torch.int64),
        }

    def load_state(self, stored: Mapping[str, Tensor]) -> None:
        """Restore `state`."""
        self.value, self.steps = float(stored["value"]), int(stored["steps"])


def first_loss_scale(dims: int, images: int, reduction: Reduction) -> float:
    """The power of two nearest to what makes a unit of advantage a gradient of kappa_t in each dimension of the denoiser's output.

    The loss is a mean over images, and where the log-probability is averaged over latent dimensions as well: for 2,048 images of 16,384
    dimensions a gradient is 3e-8 kappa_t without it, less than the smallest number of fp16.

    Args:
        dims: of a latent.
        images: of a process's share of the largest batch.
        reduction: of the log-probability.
    """
    return float(2.0 ** round(math.log2(images * (dims if reduction == "mean" else 1))))
