"""CLIPScore: how well a picture fits its prompt, by an encoder that was trained on neither preferences nor a generator's pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evals.scorers import _clip
from evals.scorers._clip import OPENAI_VIT_L_14, ClipScorer, cosine
from evals.weights import Weights
from prompts import Prompt


class Scorer(ClipScorer):
    """100 max(cosine, 0), about 15 to 35.

    Form and encoder are those of text-to-image work and of torchmetrics' default: Hessel et al. multiply by 2.5, put "A photo depicts" before a
    caption, and took OpenAI's ViT-B/32. LAION's ViT-H/14, the other common one, would be a judge in its own cause: PickScore and HPSv2 are
    tuned from it, and its text tower is the one that SD2 is conditioned on.
    """

    range: tuple[float, float] = (0.0, 100.0)
    source = "CLIPScore (Hessel et al., arXiv 2104.08718) as 100 max(cos, 0), on OpenAI's CLIP ViT-L/14 (arXiv 2103.00020)"
    weights: tuple[Weights, ...] = (OPENAI_VIT_L_14,)
    architecture = "ViT-L-14-quickgelu"

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        return 100 * cosine(self.clip, images_BCHW, [p.text for p in prompts]).clamp(min=0)

    differentiable = __call__
    """A call keeps the graph to the images, where one is asked for; rounding to 8 bit lets the gradient through (`_preprocess`)."""

    def cut_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many tokens of each prompt are not read."""
        return _clip.cut_tokens([p.text for p in prompts])
