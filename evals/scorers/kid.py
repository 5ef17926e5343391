"""Drift from the base as kernel inception distance (Binkowski et al., arXiv 1801.01401), on DINOv2 instead of Inception."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from evals.scorers import _dino, _mmd, _preprocess, version_of
from evals.scorers._dino import DINOV2_LARGE, SHOWN_AS, class_tokens, load_dino
from evals.scorers._mmd import MmdScorer, cubic_kernel
from evals.weights import Weights


class Scorer(MmdScorer):
    """KID times 1000 on DINOv2's features as they are, not normalised. It says by how much the pictures have moved, not whether for the better.

    Levels are not those of Inception: compare checkpoints with each other.
    """

    source = f"KID (arXiv 1801.01401), unbiased, times 1000, on DINOv2 ViT-L/14 (arXiv 2304.07193, Apache-2.0), {SHOWN_AS}"
    weights: tuple[Weights, ...] = (DINOV2_LARGE,)
    kernel = staticmethod(cubic_kernel)

    @property
    def version(self) -> str:
        shared = (_mmd, _dino, _preprocess)
        return version_of(Path(__file__), *(Path(str(module.__file__)) for module in shared), *self.weights)

    @cached_property
    def network(self) -> Any:
        return load_dino(self.weights[0], self.device)

    def features(self, images_BCHW: Tensor) -> Tensor:
        return class_tokens(self.network, images_BCHW)
