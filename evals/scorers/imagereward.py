"""ImageReward, the released reward model (Xu et al., NeurIPS 2023, arXiv 2304.05977): how much people would prefer a picture for its prompt.

BLIP with a ViT-L/16 and a BERT-base that attends to it, as the authors' package has it: exact GELU, layer norms with epsilon 1e-6 in the vision
transformer, the settings of `med_config.json` in the text transformer, dropout off, texts cut at 35 tokens. `make parity` proves that this file and the
package give the same scores from the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer
from transformers.models.blip.modeling_blip import BlipAttention

from evals.scorers import Scope, _imagereward, _preprocess, version_of
from evals.scorers._imagereward import ImageReward, cut_tokens
from evals.scorers._preprocess import to_8bit
from evals.weights import Weights, read_tensors
from prompts import Prompt

CHECKPOINT = Weights(
    "zai-org/ImageReward",  # THUDM/ImageReward until its owner was renamed
    ("ImageReward.pt", "med_config.json"),
    licence="Apache-2.0",
    free=True,
    revision="9fabc279a94f082f9eb130070cac021569dd16dc",
    sha256=(
        "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
        "d8b5029cc3c0124313d17009d043f0701bbe497f3721fa4ceb818720fe665326",
    ),
)
VOCABULARY = Weights(
    "google-bert/bert-base-uncased",
    ("vocab.txt",),
    licence="Apache-2.0",
    free=True,
    revision="86b5e0934494bd15c9632b12f734a8a67f723594",
    sha256=("07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",),
)

VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
"""The package's "large" vision transformer."""

MAX_LENGTH = 35
"""Tokens of a prompt that are read, [CLS] and [SEP] among them."""

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""By which the authors standardise the reward."""

OF_MED_CONFIG = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "vocab_size",
    "pad_token_id",
)
"""What BLIP's and transformers' configurations of the text transformer both have, under the same name."""

THEIR_NAMES = {
    "vision.embeddings.class_embedding": "blip.visual_encoder.cls_token",
    "vision.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
    "vision.embeddings.patch_embedding.": "blip.visual_encoder.patch_embed.proj.",
    "vision.encoder.layers.": "blip.visual_encoder.blocks.",
    "vision.post_layernorm.": "blip.visual_encoder.norm.",
    ".layer_norm": ".norm",
    ".self_attn.qkv.": ".attn.qkv.",
    ".self_attn.projection.": ".attn.proj.",
    "text.": "blip.text_encoder.",
    "head.": "mlp.layers.",
}
"""Parts of a parameter's name here, and in the package."""

NOT_IN_THE_SCORE = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""Beginnings of names of tensors that the package holds and its score does not depend on."""

PART = 32
"""Pictures that are looked at at once: 0.1 GiB for the widest activation in float32."""


class Scorer:
    """Standardised reward; 0 is the mean of the authors' data, most pictures lie between -2.5 and 2.5."""

    range: tuple[float, float] = (-20.0, 20.0)
    higher_is_better: bool | None = True
    source = "ImageReward v1.0 (arXiv 2304.05977), BLIP ViT-L/16, Apache-2.0"
    scope: Scope = "image"
    weights: tuple[Weights, ...] = (CHECKPOINT, VOCABULARY)

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Choose where to work, and how.

        Args:
            device: for the network.
            dtype: of the matrix products, float32, or bfloat16, several times as fast where there is hardware for it; its scores are some hundredths off,
                and so of another version.

        Raises:
            ValueError: another dtype.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"imagereward computes in torch.float32 or torch.bfloat16, not in {dtype}")
        self.device = torch.device(device)
        self.dtype = dtype

    @property
    def version(self) -> str:
        code = (__file__, _imagereward.__file__, _preprocess.__file__)
        version = version_of(*(Path(str(file)) for file in code), *self.weights)
        if self.dtype == torch.float32:
            return version
        return hashlib.sha256(f"{version} {self.dtype}".encode()).hexdigest()[:8]

    @cached_property
    def model(self) -> ImageReward:
        """The network, fetched and opened at first use."""
        (checkpoint, med_config), (vocabulary,) = CHECKPOINT.paths(), VOCABULARY.paths()
        return self.take(load_package(checkpoint, med_config, vocabulary))

    def take(self, model: ImageReward) -> ImageReward:
        """Put a network on the device, its matrices in the dtype of the products, everything else in float32."""
        for layer in (*model.vision.encoder.modules(), *model.text.modules()):
            if isinstance(layer, nn.Linear):
                layer.to(self.dtype)
        return model.to(self.device)

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        texts = [prompt.text for prompt in prompts]
        parts = [
            self.reward(images_BCHW[i : i + PART], texts[i : i + PART]) for i in range(0, len(texts), PART)
        ]
        return torch.cat(parts).cpu()

    differentiable = __call__
    """A call keeps the graph to the images, where one is asked for; rounding to 8 bit lets the gradient through (`_preprocess`)."""

    def reward(self, images_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
        """The same, all pictures at once. A gradient, where one is asked for, is that of the pictures, and does not see that they are rounded to 8 bit.

        Args:
            images_BCHW: in [0, 1].
            texts: of the pictures.

        Returns:
            float32 [B], on the scorer's device.
        """
        model = self.model
        pixels_BCHW = model.preprocess(to_8bit(images_BCHW.to(self.device, torch.float32)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            read_BLD = model.read(model.vision(pixels_BCHW).last_hidden_state, texts)
        with torch.autocast(self.device.type, enabled=False):  # the head in float32, wherever it is called
            return model.judge(read_BLD.float())

    def cut_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many tokens of each prompt are not read."""
        texts = [prompt.text for prompt in prompts]
        return cut_tokens(package_tokenizer(*VOCABULARY.paths()), texts, MAX_LENGTH)


class FusedAttention(BlipAttention):
    """BLIP's self-attention by torch's fused kernel, which never holds all its weights at once; the equation is the same."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Tokens [B, L, D] in and out; the attention weights, second in transformers' version, are not at hand."""
        B, L, D = hidden_states.shape
        qkv = self.qkv(hidden_states).view(B, L, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.projection(attended.transpose(1, 2).reshape(B, L, D)), None


def package_tokenizer(vocabulary: Path) -> BertTokenizer:
    """BERT's uncased one, with the two tokens that BLIP adds to it."""
    tokenizer = BertTokenizer(vocab=str(vocabulary), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "extra_special_tokens": ["[ENC]"]})
    return tokenizer


def package_name(name: str) -> str:
    """What the package calls a parameter."""
    for ours, theirs in THEIR_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def load_package(
    checkpoint: Path, med_config: Path, vocabulary: Path, vision: dict[str, Any] = VISION
) -> ImageReward:
    """Open weights under the package's names for them, in float32, frozen and in evaluation mode.

    Args:
        checkpoint: a file of tensors, such as `ImageReward.pt`.
        med_config: BLIP's configuration of the text transformer.
        vocabulary: BERT's, a token a line.
        vision: configuration of the vision transformer.

    Raises:
        ValueError: the checkpoint is damaged, or not of this architecture.
    """
    bert = json.loads(med_config.read_text(encoding="utf-8"))
    text = {name: bert[name] for name in OF_MED_CONFIG} | {"encoder_hidden_size": vision["hidden_size"]}
    config = {"vision": vision, "text": text, "max_length": MAX_LENGTH, "padding": "longest"}
    with init_empty_weights():
        model = ImageReward(config | {"mean": MEAN, "std": STD}, package_tokenizer(vocabulary))
        for layer in model.vision.encoder.layers:
            layer.self_attn = FusedAttention(model.vision.config)
    wanted = {package_name(name): (name, value.shape) for name, value in model.state_dict().items()}
    found = {
        name: value
        for name, value in read_tensors(checkpoint).items()
        if not name.startswith(NOT_IN_THE_SCORE)
    }
    misfits = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
        "of another shape": [name for name in wanted.keys() & found if found[name].shape != wanted[name][1]],
    }
    if any(misfits.values()):
        told = (f"{len(names)} {kind}, such as {min(names)}" for kind, names in misfits.items() if names)
        raise ValueError(f"{checkpoint} does not hold the tensors of ImageReward: {'; '.join(told)}")
    model.load_state_dict({wanted[name][0]: value.float() for name, value in found.items()}, assign=True)
    return model.requires_grad_(False).eval()
