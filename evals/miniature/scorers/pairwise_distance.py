"""Perceptual pairwise distance: how different the images of a prompt look from each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.miniature.scorers._judge import groups_of, judge_version, stage_features
from evals.scorers import Scope
from prompts import Prompt


def distances_to_siblings(stages: Sequence[Tensor]) -> Tensor:
    """Mean perceptual distance of each of n images to the others, [n].

    LPIPS's form (Zhang et al., arXiv 1801.03924, Eq 1) without learned weights: squared difference of channel-normalised
    activations, summed over channels, averaged over positions, summed over stages.
    """
    n = len(stages[0])
    total = torch.zeros(n, n, dtype=torch.float64)
    for stage in stages:
        flat = stage.flatten(2).double().cpu()
        positions = flat.shape[-1]
        x = flat.reshape(n, -1)
        gram = x @ x.T
        squares = gram.diagonal()
        total += (squares[:, None] + squares[None] - 2 * gram).clamp(min=0) / positions
    return (total.sum(1) / (n - 1)).float()


class Scorer:
    """Mean distance of an image to its siblings, the other images of its prompt; NaN for an only child."""

    range: tuple[float, float] = (0.0, 20.0)
    higher_is_better: bool | None = True
    source = "unweighted LPIPS (arXiv 1801.03924) on the image tower of the miniature's judge, Apache-2.0"
    scope: Scope = "prompt"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return judge_version(__file__)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        stages = stage_features(images_BCHW, self.device)
        values = torch.full((len(prompts),), float("nan"))
        for members in groups_of([p.id for p in prompts]).values():
            if len(members) > 1:
                values[members] = distances_to_siblings([s[members] for s in stages])
        return values
