"""LAION's aesthetic predictor, version 2 ("improved"): how much people like a picture whatever it shows, from its CLIP embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from evals.scorers._clip import OPENAI_VIT_L_14, ClipScorer, fill, image_features
from evals.weights import Weights
from prompts import Prompt


class Head(nn.Module):
    """Five linear layers on an embedding of unit length, without a nonlinearity between them: the released weights were trained so."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Rating [B]."""
        rating: Tensor = self.layers(features_BD)[:, 0]
        return rating


def load_head(path: Path, width: int) -> Head:
    """The head in a file, frozen.

    Raises:
        ValueError: see `evals.scorers._clip.fill`.
    """
    head: Head = fill(Head(width), path, f"an aesthetic head for embeddings of {width} numbers")
    return head


class Scorer(ClipScorer):
    """Rating on the scale of the pictures that it was trained on, 1 to 10; generated pictures get about 4 to 7. The prompt does not matter."""

    # The head is affine, 5.2 + w x with |w| = 18.0, and x of unit length.
    range: tuple[float, float] = (-12.8, 23.3)
    source = (
        "LAION aesthetic predictor v2, sac+logos+ava1-l14-linearMSE (christophschuhmann/improved-aesthetic-predictor, Apache-2.0), "
        "on OpenAI's CLIP ViT-L/14 (arXiv 2103.00020)"
    )
    weights: tuple[Weights, ...] = (
        OPENAI_VIT_L_14,
        Weights(
            "trl-lib/ddpo-aesthetic-predictor",  # the authors' file under another name: theirs is not on the hub
            ("aesthetic-model.pth",),
            licence="Apache-2.0, that of christophschuhmann/improved-aesthetic-predictor, of which it is a copy",
            free=True,
            revision="7f639699bec8126062148a47ecb1a4312d8e6688",
            sha256=("21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",),
        ),
    )
    architecture = "ViT-L-14-quickgelu"

    @cached_property
    def head(self) -> Head:
        (path,) = self.weights[1].paths()
        return load_head(path, self.clip.model.visual.output_dim).to(self.device)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        rating_B: Tensor = self.head(image_features(self.clip, images_BCHW))
        return rating_B.float().cpu()

    differentiable = __call__
    """A call keeps the graph to the images, where one is asked for; rounding to 8 bit lets the gradient through (`_preprocess`)."""
