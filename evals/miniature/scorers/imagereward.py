"""ImageReward of the miniature: small, trained on simulated votes by `train.miniature.preference`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evals.miniature import weights_folder
from evals.scorers import Scope, _imagereward, version_of
from evals.scorers._imagereward import ImageReward, load_imagereward
from prompts import Prompt


class Scorer:
    """Standardised ImageReward of an image for its prompt; larger is better, about -2.5 to 2.5."""

    range: tuple[float, float] = (-20.0, 20.0)
    higher_is_better: bool | None = True
    source = "ImageReward architecture (arXiv 2304.05977), weights of the miniature, Apache-2.0"
    scope: Scope = "image"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.folder = weights_folder("imagereward")
        self.device = device
        self._model: ImageReward | None = None

    @property
    def version(self) -> str:
        return version_of(
            Path(__file__),
            Path(str(_imagereward.__file__)),
            self.folder / "config.json",
            self.folder / "model.safetensors",
        )

    @property
    def model(self) -> ImageReward:
        """The network, loaded at first use."""
        if self._model is None:
            self._model = load_imagereward(self.folder).requires_grad_(False).to(self.device)
        return self._model

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        return self.differentiable(images_BCHW, prompts).cpu()

    def differentiable(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same with a graph to the images, on the scorer's device. The miniature's pictures have the size that it takes: nothing is resized or rounded."""
        texts = [p.text for p in prompts]
        parts = [
            self.model(images_BCHW[i : i + 64].float(), texts[i : i + 64]) for i in range(0, len(texts), 64)
        ]
        return torch.cat(parts).float()
