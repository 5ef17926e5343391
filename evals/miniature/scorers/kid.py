"""Drift from the base model: kernel inception distance between two models' images of the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.miniature.scorers._judge import image_features, judge_version
from evals.scorers import Scope
from prompts import Prompt


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = ((x . y) / d + 1)^3 (Binkowski et al., arXiv 1801.01401)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid_pseudo_values(x: Tensor, y: Tensor) -> Tensor:
    """One value per pair of images, whose mean is the unbiased squared MMD of two equally large sets, [n].

    With z = (x, y) and h(z_i, z_j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i), the estimate is the mean of h
    over i != j (Gretton et al., JMLR 2012, Eq 4). Its jackknife pseudo-values have the estimate as their mean and the
    right variance over n, so that resampling them gives the interval of a U-statistic.

    Raises:
        ValueError: for fewer than three pairs, which have no such values.
    """
    n = len(x)
    if n < 3:
        raise ValueError(f"the kid scorer needs at least 3 images of a prompt set, and there are {n}")
    assert x.shape == y.shape
    x, y = x.double(), y.double()
    cross = cubic_kernel(x, y)
    h = cubic_kernel(x, x) + cubic_kernel(y, y) - cross - cross.T
    h.fill_diagonal_(0)
    means = h.sum(1) / (n - 1)
    return ((2 * (n - 1) * means - n * means.mean()) / (n - 2)).float()


class Scorer:
    """KID contributions on the judge's embeddings, times 1000.

    Embeddings are scaled by the square root of their width, so that the kernel sees vectors of its usual scale. The mean over images is the KID; 0 is no drift.
    """

    range: tuple[float, float] = (float("-inf"), float("inf"))
    higher_is_better: bool | None = False
    source = "KID (arXiv 1801.01401) on the image embeddings of the miniature's judge, Apache-2.0"
    scope: Scope = "paired"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return judge_version(__file__)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        if base_images_BCHW is None:
            raise ValueError("the kid scorer compares with the base model's images, and none were given")
        ours, base = (image_features(x, self.device).cpu() for x in (images_BCHW, base_images_BCHW))
        width = ours.shape[1] ** 0.5
        return 1000 * kid_pseudo_values(ours * width, base * width)
