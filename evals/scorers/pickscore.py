"""PickScore (Kirstain et al., arXiv 2305.01569): a CLIP ViT-H/14 tuned on the choices of the users of a web application, Pick-a-Pic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.scorers import _clip
from evals.scorers._clip import CONTEXT, ClipScorer, cosine, fill
from evals.scorers._preprocess import preprocess, resize_short_side
from evals.weights import Weights
from prompts import Prompt

VIT_H_14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
}
"""What differs from transformers' `CLIPConfig`, as in laion/CLIP-ViT-H-14-laion2B-s32B-b79K, from which PickScore was tuned."""


class TransformersClip:
    """A CLIP of transformers', by what differs in its configuration."""

    def __init__(self, architecture: dict[str, Any], path: Path, device: torch.device | str) -> None:
        from accelerate import init_empty_weights
        from transformers import CLIPConfig, CLIPModel

        with init_empty_weights():
            model = CLIPModel(CLIPConfig(**architecture))
        self.model = fill(model, path, "a CLIP ViT-H/14 in transformers' form").to(device)
        self.device = device
        self.size: int = model.config.vision_config.image_size

    def see(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings [B, D] of prepared pictures."""
        seen: Tensor = self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output
        return seen

    def read(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of texts, cut to the tokens that fit."""
        tokens = tokenizer()(
            list(texts), padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
        ).to(self.device)
        read: Tensor = self.model.get_text_features(**tokens).pooler_output
        return read


@cache
def tokenizer() -> Any:
    """The one of transformers, as the authors have it, on CLIP's vocabulary, of which open_clip carries a copy."""
    from transformers import CLIPTokenizer

    carried = _clip.tokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in carried.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(carried.bpe_ranks))


def cut_tokens(texts: Sequence[str]) -> list[int]:
    """How many tokens of each text do not fit and are not read; needs no weights."""
    return [max(0, len(ids) - CONTEXT) for ids in tokenizer()(list(texts), verbose=False).input_ids]


def square_in_the_middle(images_BCHW: Tensor, size: int) -> Tensor:
    """CLIP's preprocessing as transformers' processor does it on Pillow: half a pixel of the crop goes to the top and the left."""
    resized_BCHW = resize_short_side(images_BCHW, size)
    top, left = ((side - size) // 2 for side in resized_BCHW.shape[-2:])
    return preprocess(resized_BCHW[..., top : top + size, left : left + size], size)


class Scorer(ClipScorer):
    """logit_scale * cosine, as the authors report it: about 15 to 25. The difference of two is the log odds that the first is chosen."""

    # CLIP's logit_scale ends at 100, its limit, and the authors' 4,000 steps at 3e-6 or less move its logarithm by 0.012 at most.
    range: tuple[float, float] = (-102.0, 102.0)
    source = "PickScore v1 (arXiv 2305.01569), logit_scale * cos, ViT-H/14 tuned from LAION-2B's, MIT"
    weights: tuple[Weights, ...] = (
        Weights(
            "yuvalkirstain/PickScore_v1",
            ("model.safetensors",),
            licence="MIT, that of the authors' code yuvalkirstain/PickScore, with which the model is released; its own page names none",
            free=True,
            revision="a4e4367c6dfa7288a00c550414478f865b875800",
            sha256=("ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",),
        ),
    )
    kind = TransformersClip
    architecture = VIT_H_14

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        cosine_B = cosine(self.clip, images_BCHW, [p.text for p in prompts], square_in_the_middle)
        scale: Tensor = self.clip.model.logit_scale.exp().cpu()
        return scale * cosine_B

    differentiable = __call__
    """A call keeps the graph to the images, where one is asked for; rounding to 8 bit lets the gradient through (`_preprocess`)."""

    def cut_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many tokens of each prompt are not read."""
        return cut_tokens([p.text for p in prompts])
