"""Scorers: one float per image. One file each; the file name is the registry.

A scorer file holds `class Scorer` with `range`, `higher_is_better`, `source`, `scope` and `version`, and is called as
`scorer(images_BCHW, prompts)` (a scorer of scope "paired" takes the base model's images as a third argument). It returns
float32 [B]; NaN means "not applicable". Weights load at the first call. Files with a leading underscore are not scorers.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from prompts import Prompt

Scope = Literal["image", "prompt", "paired"]


ROUNDING = 1e-5
"""By how much of a bound, or of 1, a float32 may miss it."""


class Scorer(Protocol):
    """What every scorer offers."""

    range: tuple[float, float]
    """Bounds that every value respects."""
    higher_is_better: bool | None
    """None for what is not a quality, such as a skin tone."""
    source: str
    """Model and revision, licence, paper."""
    scope: Scope
    """"image": each image by itself. "prompt": images of equal `prompt.id` are one group that shares a value.
    "paired": against the base model's image of the same prompt and noise."""
    version: str
    """8 hex digits of code and weights; rows of different versions are not compared."""

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor: ...


def names() -> tuple[str, ...]:
    """Every scorer: the files of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return tuple(sorted(f.stem for f in files if not f.stem.startswith("_")))


def load(name: str, device: torch.device | str = "cpu") -> Scorer:
    """The scorer of that name. Raises ValueError, with the choices, for a name that is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown scorer {name!r}: choose one of {', '.join(names())}{hint}")
    return cast(Scorer, import_module(f"evals.scorers.{name}").Scorer(device))


def first_outside(values_B: Tensor, bounds: tuple[float, float]) -> int | None:
    """Position of the first value that its scorer's `range` does not allow by more than rounding, or None; NaN, not applicable, is none."""
    low, high = (
        bound + sign * ROUNDING * max(1.0, abs(bound)) for bound, sign in zip(bounds, (-1, 1), strict=True)
    )
    outside = ((values_B < low) | (values_B > high)).nonzero().flatten()
    return int(outside[0]) if len(outside) else None


def range_fault(name: str, scorer: Scorer, values_B: Tensor, whose: Callable[[int], str]) -> str:
    """A sentence that names the first value outside the scorer's range, and by `whose(position)` what got it; "" where there is none."""
    outside = first_outside(values_B, scorer.range)
    if outside is None:
        return ""
    low, high = scorer.range
    return f"scorer {name} gave {values_B[outside]:g} to {whose(outside)}, but states a range of {low:g} to {high:g}"


def version_of(*files: Path) -> str:
    """8 hex digits over the bytes of code and weight files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
