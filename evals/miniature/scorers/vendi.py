"""Vendi score: the effective number of different images of a prompt (Friedman & Dieng, TMLR 2023, arXiv 2210.02410)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.miniature.scorers._judge import groups_of, image_features, judge_version
from evals.scorers import Scope
from prompts import Prompt


def vendi_score(kernel_NN: Tensor, order: float = 1.0) -> float:
    """Exp of the Renyi entropy of order `order` of the eigenvalues of K/n; K has a unit diagonal.

    1 for identical items, n for orthogonal ones. `order` may be 1 (Shannon) and `inf`.
    """
    n = len(kernel_NN)
    eigenvalues = torch.linalg.eigvalsh(kernel_NN.double() / n)
    p = eigenvalues[eigenvalues > 1e-12]
    if order == 1:
        return float(torch.exp(-(p * p.log()).sum()))
    if order == float("inf"):
        return float(1 / p.max())
    return float(torch.exp(p.pow(order).sum().log() / (1 - order)))


class Scorer:
    """Vendi score of order 1 of the images of a prompt, repeated for each of them.

    The kernel is the cosine of the judge's embeddings. It grows with n, so only sets of equal size are comparable; NaN for a prompt of one image.
    """

    range: tuple[float, float] = (1.0, float("inf"))
    higher_is_better: bool | None = True
    source = "arXiv 2210.02410 on the image embeddings of the miniature's judge, Apache-2.0"
    scope: Scope = "prompt"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return judge_version(__file__)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        features = image_features(images_BCHW, self.device).cpu()
        values = torch.full((len(prompts),), float("nan"))
        for members in groups_of([p.id for p in prompts]).values():
            if len(members) > 1:
                group = features[members]
                values[members] = vendi_score(group @ group.T)
        return values
