"""Drift from the base as CMMD (Jayasumana et al., arXiv 2401.09603): the squared MMD of CLIP embeddings under a Gaussian kernel."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.scorers import _clip, _mmd, _preprocess, version_of
from evals.scorers._clip import OpenClip, image_features, load_clip
from evals.scorers._mmd import MmdScorer, gaussian_kernel
from evals.weights import Weights

OPENAI_VIT_L_14_336 = Weights(
    "timm/vit_large_patch14_clip_336.openai",
    ("open_clip_model.safetensors",),
    licence="unclear: OpenAI's code is MIT, while OpenAI's model card has any deployed use out of scope",
    free=False,
    revision="81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
    sha256=("fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",),
)
"""OpenAI's CLIP ViT-L/14 at 336 pixels, in open_clip's form."""

SIGMA = 10.0
"""Bandwidth, the paper's; embeddings have unit length."""


class Scorer(MmdScorer):
    """CMMD times 1000, as the paper scales it, by its unbiased estimator.

    The paper's equation leaves out a picture's similarity to itself; its released code, and ports of that, average over it too, so that their
    values are higher by about 2000 (1 - k) / n, where k is the mean kernel within a set.
    """

    source = (
        "CMMD (arXiv 2401.09603), unbiased, sigma 10, times 1000, on OpenAI's CLIP ViT-L/14 at 336 pixels (arXiv 2103.00020); pictures by Pillow's "
        "bicubic with antialiasing, of 8-bit values; not square ones cut to the middle"
    )
    weights: tuple[Weights, ...] = (OPENAI_VIT_L_14_336,)
    architecture = "ViT-L-14-336-quickgelu"
    kernel = partial(gaussian_kernel, sigma=SIGMA)

    @property
    def version(self) -> str:
        shared = (_mmd, _clip, _preprocess)
        return version_of(Path(__file__), *(Path(str(module.__file__)) for module in shared), *self.weights)

    @cached_property
    def clip(self) -> Any:
        return load_clip(OpenClip, self.architecture, self.weights[0], self.device)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        return image_features(self.clip, images_BCHW).float().cpu()
