"""Human Preference Score v2.1 (Wu et al., arXiv 2306.09341): a CLIP ViT-H/14 tuned on people's choices between generated pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from evals.scorers import _clip
from evals.scorers._clip import ClipScorer, cosine
from evals.scorers._preprocess import CLIP_MEAN, CLIP_STD, to_8bit
from evals.weights import Weights
from prompts import Prompt


class Scorer(ClipScorer):
    """100 cosine, as the authors' tables have it: about 15 to 35 with v2.1.

    v2.1 is what their `evaluate` takes; their `score` takes v2.0 unless it is told, and the two cannot be compared.
    """

    range: tuple[float, float] = (-100.0, 100.0)
    source = "HPS v2.1 (arXiv 2306.09341), 100 cos, ViT-H/14 tuned from LAION-2B's, Apache-2.0"
    weights: tuple[Weights, ...] = (
        Weights(
            "xswu/HPSv2",
            ("HPS_v2.1_compressed.pt",),
            licence="Apache-2.0",
            free=True,
            revision="697403c78157020a1ae59d23f111aa58ced35b0a",
            sha256=("c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",),
        ),
    )
    architecture = "ViT-H-14"

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        return 100 * cosine(self.clip, images_BCHW, [p.text for p in prompts], letterbox)

    differentiable = __call__
    """A call keeps the graph to the images, where one is asked for; rounding to 8 bit lets the gradient through (`_preprocess`)."""

    def cut_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many tokens of each prompt are not read."""
        return _clip.cut_tokens([p.text for p in prompts])


def letterbox(images_BCHW: Tensor, size: int) -> Tensor:
    """The whole picture between black bars, normalised: what HPSv2 is shown, where CLIP is shown the square in the middle.

    As the authors' `ResizeMaxSize` after `ToTensor`: a bicubic resize of floats, neither rounded nor clipped, that makes the long side `size`.
    It has antialiasing, as torchvision's since 0.17; theirs had none with the versions before.

    Args:
        images_BCHW: RGB in [0, 1]; rounded to 8 bit, as a file would be.
        size: of the square that comes out, in pixels.
    """
    images_BCHW = to_8bit(images_BCHW)
    before = tuple(images_BCHW.shape[-2:])
    scale = size / max(before)
    height, width = (round(side * scale) for side in before)
    if (height, width) != before:
        images_BCHW = F.interpolate(images_BCHW, (height, width), mode="bicubic", antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    padded_BCHW = F.pad(images_BCHW, (left, size - width - left, top, size - height - top))
    mean_CHW, std_CHW = (padded_BCHW.new_tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (padded_BCHW - mean_CHW) / std_CHW
