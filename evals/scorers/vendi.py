"""Vendi score on DINOv2: how many different pictures a prompt is given, by what they look like."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evals.scorers import _dino, _preprocess, _vendi, version_of
from evals.scorers._dino import DINOV2_LARGE, SHOWN_AS, class_tokens, load_dino
from evals.scorers._vendi import VendiScorer
from evals.weights import Weights


class Scorer(VendiScorer):
    """Vendi score of order 1; the kernel is the cosine of DINOv2's features. Levels are the network's own: compare with the base's."""

    source = f"Vendi score (arXiv 2210.02410) of order 1 on DINOv2 ViT-L/14 (arXiv 2304.07193, Apache-2.0), {SHOWN_AS}"
    weights: tuple[Weights, ...] = (DINOV2_LARGE,)

    @property
    def version(self) -> str:
        shared = (_vendi, _dino, _preprocess)
        return version_of(Path(__file__), *(Path(str(module.__file__)) for module in shared), *self.weights)

    @cached_property
    def network(self) -> Any:
        return load_dino(self.weights[0], self.device)

    def features(self, images_BCHW: Tensor) -> Tensor:
        return class_tokens(self.network, images_BCHW)
