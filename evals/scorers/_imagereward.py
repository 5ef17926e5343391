"""ImageReward: a BLIP encoder of image and text with a scalar head (Xu et al., NeurIPS 2023, arXiv 2304.05977), on transformers' BLIP classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from evals.scorers._preprocess import centre_crop, normalise, resize_short_side


class ImageReward(nn.Module):
    """Vision transformer, text transformer that attends to it, and an MLP on the first token.

    `config` has `vision` and `text` (BLIP configurations), `max_length` (text tokens, 35 in the released model), `mean` and `std` (the reward is
    standardised by them; .16717 and 1.03334 in the released model) and maybe `padding`: to `max_length`, or to the `longest` text of a batch.
    What is padded is not attended to, so that it changes rounding errors only.
    """

    def __init__(self, config: dict[str, Any], tokenizer: BertTokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.vision = BlipVisionModel(BlipVisionConfig(**config["vision"]))
        self.text = BlipTextModel(BlipTextConfig(**config["text"]), add_pooling_layer=False)
        width = config["text"]["hidden_size"]
        self.head = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Bicubic resize of the short side, centre crop, CLIP normalisation. [0, 1] in; what has the right size already is not rounded to 8 bit."""
        size = int(self.config["vision"]["image_size"])
        if tuple(images_BCHW.shape[-2:]) != (size, size):
            images_BCHW = centre_crop(resize_short_side(images_BCHW, size), size)
        return normalise(images_BCHW)

    def see(self, images_BCHW: Tensor) -> Tensor:
        """Image tokens [B, 1 + patches, D] of images in [0, 1]."""
        seen: Tensor = self.vision(self.preprocess(images_BCHW.to(self.device))).last_hidden_state
        return seen

    def read(self, seen_BLD: Tensor, texts: Sequence[str]) -> Tensor:
        """Text tokens [B, L, D], L at most `max_length`, having attended to the image tokens of as many images."""
        tokens = self.tokenizer(
            list(texts),
            padding=self.config.get("padding", "max_length"),
            truncation=True,
            max_length=self.config["max_length"],
            return_tensors="pt",
        ).to(self.device)
        read: Tensor = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen_BLD,
            encoder_attention_mask=torch.ones(seen_BLD.shape[:2], dtype=torch.long, device=self.device),
            is_decoder=False,
        ).last_hidden_state
        return read

    def judge(self, read_BLD: Tensor) -> Tensor:
        """Standardised reward [B] from the first text token."""
        raw = self.head(read_BLD[:, 0])[:, 0]
        reward: Tensor = (raw - self.config["mean"]) / self.config["std"]
        return reward

    def forward(self, images_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
        """Standardised reward, [B]."""
        return self.judge(self.read(self.see(images_BCHW), texts))


def cut_tokens(tokenizer: BertTokenizer, texts: Sequence[str], max_length: int) -> list[int]:
    """How many tokens of each text are not read, because it has more than `max_length`."""
    return [max(0, len(ids) - max_length) for ids in tokenizer(list(texts), verbose=False).input_ids]


def load_imagereward(folder: Path) -> ImageReward:
    """Open a folder of weights, in float32 and evaluation mode."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = ImageReward(config, BertTokenizer.from_pretrained(folder))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval()
