"""`python -m tests.toy_scoring TARGET OUT LOG`: scores a toy suite with toy scorers, in a process that a test can kill. Logs what it draws and what scorers are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import prompts
from evals import harness, pictures, scorers, suites
from evals.diffusion import Painter, Sampling
from evals.suites import Part, Suite
from prompts import Prompt
from tests import toy

PROMPTS = 9
SUITE = Suite(
    parts=(
        Part("toys", 4, ("redness", "spread", "distance", "all_at_once")),
        Part("others", 2, ("redness", "tone")),
    ),
    sampling=Sampling(steps=2, eta=1.0, guidance=None, micro_batch=4),
    seed=3,
    name="toy",
)


def log(line: str) -> None:
    """Append to the file that the environment names; one write, so that several processes can."""
    if path := os.environ.get("TOY_LOG"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Redness(toy.Redness):
    """Logs what it is shown."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        log(f"redness {len(prompts)} {prompts[0].id}")
        return super().__call__(images_BCHW, prompts)


class Spread(toy.Redness):
    """Of scope "prompt": how far the images of a prompt lie apart."""

    scope = "prompt"
    range = (0.0, 10.0)
    version = "00000002"

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        values = torch.empty(len(prompts))
        for one in {prompt.id for prompt in prompts}:
            mine = [i for i, prompt in enumerate(prompts) if prompt.id == one]
            assert len(mine) == 4, "a prompt is whole"
            values[mine] = images_BCHW[mine].flatten(1).std(0).mean()
        return values


class Distance:
    """Of scope "paired", in two stages."""

    scope = "paired"
    range = (0.0, 100.0)
    higher_is_better = False
    source = "toy"
    version = "00000003"

    def __init__(self, device: str = "cpu") -> None:
        """Nothing to load."""

    def features(self, images_BCHW: Tensor) -> Tensor:
        log(f"features {len(images_BCHW)}")
        return images_BCHW.mean((2, 3))

    def from_features(self, features_BD: Tensor, base_BD: Tensor) -> Tensor:
        return (features_BD - base_BD.mean(0)).norm(dim=1)

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt], base: Tensor) -> Tensor:
        return self.from_features(self.features(images_BCHW), self.features(base))


class AllAtOnce:
    """The same in one stage: it is shown all pictures."""

    scope = "paired"
    range = (0.0, 100.0)
    higher_is_better = False
    source = "toy"
    version = "00000004"

    def __init__(self, device: str = "cpu") -> None:
        """Nothing to load."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt], base: Tensor) -> Tensor:
        return Distance().from_features(images_BCHW.mean((2, 3)), base.mean((2, 3)))


SCORERS = {
    "redness": Redness,
    "spread": Spread,
    "distance": Distance,
    "all_at_once": AllAtOnce,
    "tone": toy.Tone,
}


def load_prompts(name: str) -> tuple[Prompt, ...]:
    """Nine, with other texts in each set."""
    return tuple(Prompt(f"p{i}", f"{name} {toy.TEXTS[i % 7]} {'abcdefghi'[i]}") for i in range(PROMPTS))


def install(set_attribute: object = setattr) -> None:
    """Put the toys in the places of what is real, small units, and a log of what is drawn."""
    put = set_attribute
    paint = Painter.paint

    def logged(self: Painter, texts: Sequence[str], indices: Sequence[int], seed: int) -> Tensor:
        for text, index in zip(texts, indices, strict=True):
            log(f"drawn {text} {index}")
        return paint(self, texts, indices, seed)

    put(scorers, "load", lambda name, device="cpu", domain="photo": SCORERS[name](device))
    put(suites, "load", lambda name: replace(SUITE, name="toy"))
    put(prompts, "load", load_prompts)
    put(harness, "SHOWN", 8)
    put(pictures, "CHUNK", 8)
    put(Painter, "paint", logged)


def main(target: str, out: str, log_file: str) -> None:
    """Score, in this process."""
    os.environ["TOY_LOG"] = log_file
    torch.set_num_threads(1)
    install()
    harness.score(target, Path(out), "toy")


if __name__ == "__main__":
    main(*sys.argv[1:])
