"""Vendi score on CLIP: how many different pictures a prompt is given, by what words would say of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evals.scorers import _clip, _preprocess, _vendi, version_of
from evals.scorers._clip import OPENAI_VIT_L_14, OpenClip, image_features, load_clip
from evals.scorers._vendi import VendiScorer
from evals.weights import Weights


class Scorer(VendiScorer):
    """Vendi score of order 1; the kernel is the cosine of the image embeddings of the CLIP that `clip_score` works on, with which it is shared."""

    source = "Vendi score (arXiv 2210.02410) of order 1 on OpenAI's CLIP ViT-L/14 (arXiv 2103.00020), its own preprocessing"
    weights: tuple[Weights, ...] = (OPENAI_VIT_L_14,)
    architecture = "ViT-L-14-quickgelu"

    @property
    def version(self) -> str:
        shared = (_vendi, _clip, _preprocess)
        return version_of(Path(__file__), *(Path(str(module.__file__)) for module in shared), *self.weights)

    @cached_property
    def clip(self) -> Any:
        return load_clip(OpenClip, self.architecture, self.weights[0], self.device)

    def features(self, images_BCHW: Tensor) -> Tensor:
        return image_features(self.clip, images_BCHW)
