"""Drift from the base model: kernel inception distance between two models' images of the same prompts and noise."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from evals.miniature import weights_folder
from evals.miniature.scorers import _judge
from evals.miniature.scorers._judge import _FILES, FOLDER, image_features
from evals.scorers import _mmd, version_of
from evals.scorers._mmd import MmdScorer, cubic_kernel


class Scorer(MmdScorer):
    """KID contributions on the judge's embeddings, times 1000.

    Embeddings are scaled by the square root of their width, so that the kernel sees vectors of its usual scale. The mean over images is the KID; 0 is no drift.
    """

    source = "KID (arXiv 1801.01401) on the image embeddings of the miniature's judge, Apache-2.0"
    kernel = staticmethod(cubic_kernel)

    @property
    def version(self) -> str:
        code = (Path(__file__), Path(str(_mmd.__file__)), Path(str(_judge.__file__)))
        return version_of(*code, *(weights_folder(FOLDER) / name for name in _FILES))

    def features(self, images_BCHW: Tensor) -> Tensor:
        unit_BD = image_features(images_BCHW, self.device).cpu()
        scaled_BD: Tensor = unit_BD * unit_BD.shape[1] ** 0.5
        return scaled_BD
