"""What the scorers of the miniature share: tensors to pictures, and a base class for exact measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evals.miniature import annotators, measure, render
from evals.miniature.measure import Picture
from evals.scorers import Scope, version_of
from evals.scorers._asked import refuse_none, said_of
from prompts import Prompt, world
from prompts.world import RELATIONS

NAN = float("nan")


def to_pictures(images_BCHW: Tensor) -> list[Picture]:
    """float32 [H, W, 3] in [0, 1] each. Raises ValueError unless the images are 64x64."""
    if tuple(images_BCHW.shape[1:]) != (3, 64, 64):
        raise ValueError(
            f"this scorer reads the miniature's 3x64x64 images, not {tuple(images_BCHW.shape[1:])}"
        )
    array = images_BCHW.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return list(np.ascontiguousarray(array))


class PixelScorer:
    """A scorer that reads pixels, one picture at a time, and needs no weights."""

    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool | None = True
    source = "exact pixel measure of the miniature world, this repository, Apache-2.0"
    scope: Scope = "image"
    version = version_of(*(Path(str(m.__file__)) for m in (measure, render, annotators, world)))
    needs: str | None = None
    """What a prompt has that it applies to, for a message; None where it applies to any."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """The device is accepted for the contract's sake; pixels are read on the CPU."""

    def applies(self, prompt: Prompt) -> bool:
        """Whether the measure could say something of a picture of the prompt."""
        return True

    def value(self, prompt: Prompt, picture: Picture) -> float:
        """The score of one picture; NaN where the measure does not apply."""
        raise NotImplementedError

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError where `value` raises of a prompt, for every picture or for some: unless a scorer says otherwise, of none."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that the measure raises for, and a set of which it applies to none.

        Raises:
            ValueError: naming the prompt, or the first of those of which none lets it apply.
        """
        if self.needs is not None:
            refuse_none(prompts, self.applies, self.needs)
        for prompt in prompts:
            try:
                self.check(prompt)
            except ValueError as error:
                raise ValueError(said_of(prompt, error)) from error

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        assert len(prompts) == len(images_BCHW)
        values = [self.value(p, x) for p, x in zip(prompts, to_pictures(images_BCHW), strict=True)]
        return torch.tensor(values, dtype=torch.float32)


class SceneScorer(PixelScorer):
    """One that looks for the objects that a prompt names."""

    needs = 'names objects, as `"expect": {"objects": [{"colour": "red", "shape": "star"}]}` does'

    def applies(self, prompt: Prompt) -> bool:
        """See `PixelScorer`."""
        return "objects" in prompt.expect

    def check(self, prompt: Prompt) -> None:
        """See `PixelScorer`. Raises ValueError where the objects are none of this world's."""
        if self.applies(prompt):
            measure.expected_objects(prompt.expect)


def refuse_no_pair(prompt: Prompt) -> None:
    """Refuse a scene that cannot be fully right.

    Raises:
        ValueError: unless it is of two objects of this world in one of its relations. `measure.fully_right` raises for a scene of another number, or without a
            relation, but only where a picture shows all that is named; a relation of another world it would take to mean near.
    """
    named, relation = measure.expected_objects(prompt.expect), prompt.expect.get("relation")
    if len(named) != 2 or relation not in RELATIONS:
        raise ValueError(
            f"`expect` must have two objects and a relation ({', '.join(RELATIONS)}), but has {len(named)} and {relation!r}"
        )


class PortraitScorer(PixelScorer):
    """One that looks at the skin of a face."""

    needs = 'is a portrait whose tone is read, which `"expect": {"group": "skin_tone"}` says'

    def applies(self, prompt: Prompt) -> bool:
        """See `PixelScorer`."""
        return prompt.expect.get("group") == "skin_tone"
