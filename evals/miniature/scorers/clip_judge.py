"""The held-out judge: a CLIP of another architecture, trained on other people's votes about other pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.miniature.scorers._judge import image_features, judge_version, text_features
from evals.scorers import Scope
from prompts import Prompt


class Scorer:
    """Cosine of image and prompt, times 100, as PickScore and HPSv2 report it."""

    range: tuple[float, float] = (-100.0, 100.0)
    higher_is_better: bool | None = True
    source = "PickScore's objective (arXiv 2305.01569) on an open_clip ResNet CLIP, weights of the miniature, Apache-2.0"
    scope: Scope = "image"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return judge_version(__file__)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        images = image_features(images_BCHW, self.device)
        texts = text_features([p.text for p in prompts], self.device)
        return (100 * (images * texts).sum(-1)).float().cpu()
