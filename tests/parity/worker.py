"""The image-reward package in the environment that it runs in: one JSON request a line on standard input, one answer a line on standard output.

Run by `bench.package` with the Python of `.venv-parity`, in a folder in which the tokenizer's vocabulary lies under the name that the package
asks the hub for. It imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is no answer

import torch  # noqa: E402
from ImageReward.ImageReward import ImageReward  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter values under which each part of the network matters to the score.

    Matrices keep the scale of what they are given, so that the score depends on picture and prompt; embeddings are as small as trained ones, so that the
    epsilon of a layer norm tells; norms and biases differ from 1 and 0, and from one another.
    """
    for number, (name, value) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(seed + number)
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim < 2:
            drawn *= 0.1
            drawn += "norm" in name.lower() and name.endswith("weight")
        elif "embed" in name or "cls_token" in name:
            drawn *= 0.004 if value.ndim == 4 else 0.02
        else:
            drawn *= value[0].numel() ** -0.5
        if "crossattention.output.dense" in name:
            drawn *= 0.4  # else the pictures drown the prompt
        value.data.copy_(drawn)


class Package:
    """What a request can ask for."""

    model: ImageReward

    def make(self, med_config: str, weights: str, seed: int) -> None:
        """Make the model with random weights, in float32 and evaluation mode, and write them to a file, under its own names for them."""
        self.model = ImageReward(med_config)
        random_weights(self.model, seed)
        self.model.eval()
        save_file({name: value.contiguous() for name, value in self.model.state_dict().items()}, weights)

    def tokens(self, prompts: list[str]) -> list[list[int]]:
        """Numbers of the tokens of each prompt, not cut."""
        return [self.model.blip.tokenizer(prompt).input_ids for prompt in prompts]

    def gradient(self, picture: str, prompt: str, to: str) -> None:
        """Write the gradient of a score to the normalised pixels, as the package's ReFL takes it."""
        pixels = self.model.preprocess(Image.open(picture).convert("RGB"))[None].requires_grad_()
        tokens = self.model.blip.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )
        reward = self.model.score_gard(tokens.input_ids, tokens.attention_mask, pixels)
        save_file({"gradient": torch.autograd.grad(reward.sum(), pixels)[0]}, to)

    def move(self, device: str) -> None:
        """Work on another device."""
        self.model.to(device)
        self.model.device = device

    def score(self, pictures: list[str], prompts: list[str]) -> dict[str, Any]:
        """Scores of pictures of one prompt each, and the seconds that they took, files opened and decoded beforehand."""
        opened = [Image.open(path).convert("RGB") for path in pictures]
        start = time.perf_counter()
        with torch.no_grad():
            scores = [
                self.model.score(prompt, picture) for prompt, picture in zip(prompts, opened, strict=True)
            ]
        return {"scores": scores, "seconds": time.perf_counter() - start}

    def rank(self, pictures: list[str], prompt: str) -> dict[str, Any]:
        """The same for the pictures of one prompt, by the call that the package has for them."""
        opened = [Image.open(path).convert("RGB") for path in pictures]
        start = time.perf_counter()
        with torch.no_grad():
            scores = self.model.score(prompt, opened)
        return {"scores": scores, "seconds": time.perf_counter() - start}


def main() -> None:
    """Answer requests until there are no more."""
    package = Package()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(package, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
