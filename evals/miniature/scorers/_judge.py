"""The held-out judge of the miniature: a CLIP in open_clip's format, and what else is read from its features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from evals.miniature import weights_folder
from evals.scorers import version_of

FOLDER = "judge"
_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


def judge_version(file: str) -> str:
    """Version of a scorer that uses the judge."""
    return version_of(Path(file), Path(__file__), *(weights_folder(FOLDER) / name for name in _FILES))


@cache
def load_judge(device: torch.device | str) -> tuple[Any, Any]:
    """The network, in float32 and evaluation mode, and its tokenizer."""
    where = f"local-dir:{weights_folder(FOLDER)}"
    model = open_clip.create_model(where, precision="fp32", device=device)
    return model.eval(), open_clip.get_tokenizer(where)


def normalise(images_BCHW: Tensor) -> Tensor:
    """[0, 1] to what open_clip's networks take."""
    mean = images_BCHW.new_tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = images_BCHW.new_tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    return (images_BCHW - mean) / std


@torch.no_grad()
def image_features(images_BCHW: Tensor, device: torch.device | str) -> Tensor:
    """Unit-length image embeddings [B, D]."""
    model, _ = load_judge(device)
    chunks = images_BCHW.float().split(128)
    return torch.cat([model.encode_image(normalise(x.to(device)), normalize=True) for x in chunks])


@torch.no_grad()
def text_features(texts: Sequence[str], device: torch.device | str) -> Tensor:
    """Unit-length text embeddings [B, D]; equal texts are encoded once."""
    model, tokenizer = load_judge(device)
    unique = list(dict.fromkeys(texts))
    encoded = model.encode_text(tokenizer(unique).to(device), normalize=True)
    features: Tensor = encoded[[unique.index(t) for t in texts]]
    return features


@torch.no_grad()
def stage_features(images_BCHW: Tensor, device: torch.device | str) -> list[Tensor]:
    """Activations [B, C, h, w] after the stem and each stage of the judge's convolutional image tower."""
    model, _ = load_judge(device)
    tower, collected = model.visual, []
    for images in images_BCHW.float().split(128):
        x = tower.stem(normalise(images.to(device)))
        stages = [x]
        for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            x = layer(x)
            stages.append(x)
        collected.append([F.normalize(s, dim=1) for s in stages])
    return [torch.cat(parts) for parts in zip(*collected, strict=True)]


def groups_of(ids: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the images of each prompt."""
    groups: dict[str, list[int]] = {}
    for position, prompt_id in enumerate(ids):
        groups.setdefault(prompt_id, []).append(position)
    return groups
