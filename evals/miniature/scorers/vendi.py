"""Vendi score: the effective number of different images of a prompt (Friedman & Dieng, TMLR 2023, arXiv 2210.02410)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evals.miniature import weights_folder
from evals.miniature.scorers import _judge
from evals.miniature.scorers._judge import _FILES, FOLDER, groups_of, image_features
from evals.scorers import Scope, _vendi, version_of
from evals.scorers._vendi import vendi_score
from prompts import Prompt


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
        code = (Path(__file__), Path(str(_vendi.__file__)), Path(str(_judge.__file__)))
        return version_of(*code, *(weights_folder(FOLDER) / name for name in _FILES))

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
