"""DINOv2 (Oquab et al., arXiv 2304.07193), a network that was trained on pictures alone: what they look like, whatever words would say of them.

As Stein et al. (arXiv 2306.04675) use it to evaluate generators, who found its features to agree with people better than Inception's: ViT-L/14, the
whole picture at 224 pixels, the class token after the last layer norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from evals.scorers._detectors import open_part
from evals.scorers._preprocess import preprocess
from evals.weights import Weights

DINOV2_LARGE = Weights(
    "facebook/dinov2-large",
    ("config.json", "model.safetensors"),
    licence="Apache-2.0",
    free=True,
    revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    sha256=(
        "12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0",
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
)
SHOWN_AS = "pictures at 224 pixels, Pillow's bicubic with antialiasing, of 8-bit values; not square ones cut to the middle"
"""For a scorer's `source`."""

SIZE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PART = 32
"""Pictures that go through it at once."""

_in_use: WeakValueDictionary[tuple[Path, str], Any] = WeakValueDictionary()


def load_dino(weights: Weights, device: torch.device | str) -> Any:
    """Fetch and open the network, frozen; scorers that work on it at the same time share it.

    Raises:
        ValueError: see `Weights.folder` and `evals.scorers._detectors.open_part`.
    """
    from transformers import Dinov2Model

    key = (weights.folder(), str(device))
    network = _in_use.get(key)
    if network is None:
        network = _in_use[key] = open_part(Dinov2Model, weights).requires_grad_(False).to(device)
    return network


@torch.no_grad()
def class_tokens(network: Any, images_BCHW: Tensor) -> Tensor:
    """Features, float32 [B, D] on the CPU."""
    seen = []
    for part in images_BCHW.split(PART):
        shown = preprocess(part.to(network.device, torch.float32), SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        seen.append(network(pixel_values=shown).pooler_output.float().cpu())
    return torch.cat(seen)
