"""Drift from the base model: the squared maximum mean discrepancy (MMD) of two models' pictures of the same prompts and noise (Gretton et al., JMLR 2012).

A scorer of it works in two stages: `features` of some pictures at a time, and `from_features`, which needs those of all of them, but no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evals.scorers import Scope
from prompts import Prompt

ROWS = 1024
"""Pictures that are compared with all others at once: 10,000 take 0.1 GB for each of the four kernels."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Two sets of features, [A, D] and [B, D], to the kernel of each pair, [A, B]."""


def cubic_kernel(x_AD: Tensor, y_BD: Tensor) -> Tensor:
    """k(x, y) = ((x . y) / d + 1)^3 (Binkowski et al., arXiv 1801.01401)."""
    return (x_AD @ y_BD.T / x_AD.shape[1] + 1) ** 3


def gaussian_kernel(x_AD: Tensor, y_BD: Tensor, sigma: float) -> Tensor:
    """k(x, y) = exp(-|x - y|^2 / (2 sigma^2))."""
    squared_AB = (x_AD**2).sum(1)[:, None] + (y_BD**2).sum(1) - 2 * x_AD @ y_BD.T
    return torch.exp(-squared_AB / (2 * sigma**2))


def mmd_pseudo_values(x_ND: Tensor, y_ND: Tensor, kernel: Kernel) -> Tensor:
    """One value per pair of pictures, whose mean is the unbiased squared MMD of two equally large sets, float32 [N] on the CPU.

    With z = (x, y) and h(z_i, z_j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), the estimate is the mean of h
    over i != j (Gretton et al., Eq 4). Pairs i = j are left out of the cross terms as well, since a picture and its partner, of one prompt and one
    noise, are not independent. Its jackknife pseudo-values have the estimate as their mean and the right variance over n, so that resampling them
    gives the interval of a U-statistic.

    Args:
        x_ND: features; the work is done where they lie, in float64.
        y_ND: of the partners, in the same order.
        kernel: symmetric.
    """
    n = len(x_ND)
    assert n > 2, "fewer pairs have no such values"
    assert x_ND.shape == y_ND.shape
    x, y = x_ND.double(), y_ND.double()
    mean_N = torch.cat([_h(x, y, rows, kernel).sum(1) / (n - 1) for rows in torch.arange(n).split(ROWS)])
    pseudo_N: Tensor = (2 * (n - 1) * mean_N - n * mean_N.mean()) / (n - 2)
    return pseudo_N.float().cpu()


def _h(x_ND: Tensor, y_ND: Tensor, rows_R: Tensor, kernel: Kernel) -> Tensor:
    """Rows of h, [R, N], with 0 for i = j."""
    x_RD, y_RD = x_ND[rows_R], y_ND[rows_R]
    h_RN = kernel(x_RD, x_ND) + kernel(y_RD, y_ND) - kernel(x_RD, y_ND) - kernel(x_ND, y_RD).T
    h_RN[torch.arange(len(rows_R)), rows_R] = 0
    return h_RN


class MmdScorer:
    """1000 times the pseudo-values of the unbiased squared MMD: their mean over pictures is the estimate, 0 in expectation where nothing drifted.

    A value of one picture means nothing by itself, and is negative as often as not.
    """

    range: tuple[float, float] = (float("-inf"), float("inf"))
    higher_is_better: bool | None = False
    scope: Scope = "paired"
    kernel: Kernel

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def name(self) -> str:
        """That of its file."""
        return type(self).__module__.rpartition(".")[2]

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Features, float32 [B, D] on the CPU, of pictures, each by itself: any split into batches gives the same but for rounding."""
        raise NotImplementedError

    def from_features(self, features_BD: Tensor, base_features_BD: Tensor) -> Tensor:
        """The score of each picture, float32 [B] on the CPU, from the features of all pictures of a prompt set, and of the base's.

        Raises:
            ValueError: for fewer than three pictures.
        """
        if len(features_BD) < 3:
            raise ValueError(
                f"the {self.name} scorer needs at least 3 images of a prompt set, and there are {len(features_BD)}"
            )
        return 1000 * mmd_pseudo_values(features_BD, base_features_BD, self.kernel)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        if base_images_BCHW is None:
            raise ValueError(
                f"the {self.name} scorer compares with the base model's images, and none were given"
            )
        return self.from_features(self.features(images_BCHW), self.features(base_images_BCHW))
