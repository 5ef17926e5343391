"""Vendi scores of another order than 1, which `vendi` and `vendi_clip` have: `vendi_q2`, `vendi_clip_qinf` (`evals.order`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.scorers import Scope, _vendi, version_of, weights_of
from evals.scorers._vendi import within_prompts
from prompts import Prompt

Features = Callable[[Tensor], Tensor]
"""[B, C, H, W] to [B, D]."""


class OfOrder:
    """The Vendi score of order q of the pictures of a prompt, repeated for each of them, on the features of a Vendi scorer."""

    range: tuple[float, float] = (1.0, float("inf"))
    higher_is_better: bool | None = True
    scope: Scope = "prompt"

    def __init__(self, vendi: Any, features: Features, q: float) -> None:
        """Wrap a scorer of order 1.

        Args:
            vendi: the scorer; its weights and version are part of these.
            features: what it sees, of any length.
            q: order, see `evals.scorers._vendi.vendi_score`.
        """
        self.vendi, self.features, self.q = vendi, features, q
        self.weights = weights_of(vendi)
        self.source = f"with order {q:g} in place of 1 (arXiv 2310.12952): {vendi.source}"

    @property
    def version(self) -> str:
        code = version_of(Path(__file__), Path(str(_vendi.__file__)))
        return hashlib.sha256(f"{self.vendi.version} {code} {self.q!r}".encode()).hexdigest()[:8]

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        return within_prompts(self.features(images_BCHW), prompts, self.q)


def of_order(vendi: str, q: float, device: torch.device | str) -> OfOrder:
    """The scorer of photographs."""
    scorer = import_module(f"evals.scorers.{vendi}").Scorer(device)
    return OfOrder(scorer, scorer.features, q)
