"""Mean pairwise LPIPS (Zhang et al., arXiv 1801.03924): how different the pictures of a prompt look from each other, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.checkpoints import first_line
from evals.scorers import Scope, _dino, _preprocess, _vendi, version_of
from evals.scorers._dino import IMAGENET_MEAN, IMAGENET_STD
from evals.scorers._preprocess import preprocess
from evals.scorers._vendi import groups_of
from evals.weights import Carried, Weights, read_tensors
from prompts import Prompt

VGG16 = Weights(
    "timm/vgg16.tv_in1k",
    ("model.safetensors",),
    licence="BSD-3-Clause; torchvision's weights of VGG-16, trained on ImageNet",
    free=True,
    revision="b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
    sha256=("57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",),
)
HEADS = Carried(
    "torchmetrics",
    "functional/image/lpips_models/vgg.pth",
    licence="BSD-2-Clause; the authors' linear heads on VGG-16, LPIPS version 0.1 (richzhang/PerceptualSimilarity)",
)

SIZE = 256
PART = 8
"""Pictures that go through the network at once."""
STAGES = (3, 8, 15, 22, 29)
"""The layers of torchvision's VGG-16 that LPIPS looks at: the last ReLU before each pooling."""
EPSILON = 1e-8
"""What keeps the length of a position without any activation from being 0, as torchmetrics has it."""


class Perception:
    """VGG-16 up to its last convolution, and the weight that LPIPS gives to each channel of five of its layers."""

    def __init__(self, path: Path, device: torch.device | str) -> None:
        """Open the weights, in timm's form.

        Raises:
            ValueError: the file is damaged, no file of tensors, or of another model.
        """
        from torchvision.models import vgg16

        with torch.device("meta"):
            network = vgg16(weights=None, init_weights=False).features[: STAGES[-1] + 1]
        tensors = read_tensors(path)
        own = {
            name.removeprefix("features."): value for name, value in tensors.items() if "features." in name
        }
        try:
            network.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of VGG-16: {first_line(error)}") from error
        heads = read_tensors(HEADS.path())
        self.network: Any = network.requires_grad_(False).eval().to(device)
        self.roots = [heads[f"lin{i}.model.1.weight"][0].sqrt().to(device) for i in range(len(STAGES))]
        self.device = device

    def see(self, images_BCHW: Tensor) -> list[Tensor]:
        """Activations [B, c, h, w] of each stage, of unit length at each position, each channel times the root of its weight.

        So the squared distance of two pictures there is LPIPS's weighted sum.
        """
        x = preprocess(images_BCHW.to(self.device, torch.float32), SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        stages: list[Tensor] = []
        for number, layer in enumerate(self.network):
            x = layer(x)
            if number in STAGES:
                length = (EPSILON + (x**2).sum(1, keepdim=True)).sqrt()
                stages.append(x / length * self.roots[len(stages)])
        return stages


def lpips(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Eq 1 of the paper: squared differences [c, h, w], summed over channels, averaged over positions, summed over stages."""
    return torch.stack([((a - b) ** 2).sum(0).mean() for a, b in zip(one, other, strict=True)]).sum()


def distances_to_siblings(stages: Sequence[Tensor]) -> Tensor:
    """Mean LPIPS of each of n pictures to the others, [n] on the CPU; their mean is the mean over pairs."""
    n = len(stages[0])
    distance_NN = torch.zeros(n, n)
    for i, j in combinations(range(n), 2):
        distance_NN[i, j] = distance_NN[j, i] = lpips([s[i] for s in stages], [s[j] for s in stages])
    return distance_NN.sum(1) / (n - 1)


class Scorer:
    """Mean LPIPS of a picture to the other pictures of its prompt; NaN for an only one. It does not depend on how many there are, but for chance.

    It rewards whatever differs, noise too: read it beside a quality metric and a Vendi score.
    """

    range: tuple[float, float] = (0.0, float("inf"))
    higher_is_better: bool | None = True
    source = (
        "LPIPS 0.1 (arXiv 1801.03924, heads BSD-2-Clause as torchmetrics carries them) on VGG-16 (BSD-3-Clause); pictures at 256 pixels, Pillow's "
        "bicubic with antialiasing, of 8-bit values; not square ones cut to the middle"
    )
    scope: Scope = "prompt"
    weights: tuple[Weights, ...] = (VGG16,)
    carried = (HEADS,)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        shared = (_dino, _preprocess, _vendi)
        code = (Path(__file__), *(Path(str(module.__file__)) for module in shared), HEADS.path())
        return version_of(*code, *self.weights)

    @cached_property
    def perception(self) -> Perception:
        (path,) = self.weights[0].paths()
        return Perception(path, self.device)

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        value_B = torch.full((len(prompts),), torch.nan)
        for members in groups_of(prompts).values():
            if len(members) > 1:
                seen = [self.perception.see(part) for part in images_BCHW[members].split(PART)]
                value_B[members] = distances_to_siblings(
                    [torch.cat(parts) for parts in zip(*seen, strict=True)]
                )
        return value_B
