"""The Vendi score (Friedman & Dieng, TMLR 2023, arXiv 2210.02410): the effective number of different items, and what the scorers on it share.

It says how many pictures of a prompt there are that are nothing like each other. It is taken within a prompt: over the pictures of many prompts it
would measure how different the prompts are, and what a reward takes away is variety within one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.scorers import Scope
from prompts import Prompt

EMPTY = 1e-12
"""Eigenvalues up to this are 0 but for rounding, which can make them negative."""


def vendi_score(similarity_NN: Tensor, q: float = 1.0) -> float:
    """Exp of the Renyi entropy of order q of the eigenvalues of K / n: 1 for identical items, n for orthogonal ones.

    The higher q, the less rare items count. It grows with n, so only sets of equal size are comparable.

    Args:
        similarity_NN: K, symmetric and positive semidefinite, with a unit diagonal.
        q: order, above 0; 1 is Shannon's entropy, `inf` looks at the largest eigenvalue alone.
    """
    p = torch.linalg.eigvalsh(similarity_NN.double() / len(similarity_NN))
    p = p[p > EMPTY]
    if q == 1:
        return float(torch.exp(-(p * p.log()).sum()))
    if q == float("inf"):
        return float(1 / p.max())
    return float(torch.exp(p.pow(q).sum().log() / (1 - q)))


def groups_of(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Positions of the pictures of each prompt, by its id."""
    groups: dict[str, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(prompt.id, []).append(position)
    return groups


def refuse_unequal(groups: dict[str, list[int]]) -> None:
    """Refuse prompts with different numbers of pictures.

    Raises:
        ValueError: naming two of them, and both numbers.
    """
    sizes = {prompt_id: len(members) for prompt_id, members in groups.items()}
    few, many = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[few] != sizes[many]:
        raise ValueError(
            f"a Vendi score grows with the number of pictures, and prompt {few} has {sizes[few]}, but prompt {many} has {sizes[many]}: "
            "give every prompt of the set as many"
        )


def within_prompts(features_BD: Tensor, prompts: Sequence[Prompt], q: float = 1.0) -> Tensor:
    """The Vendi score of each prompt's pictures, repeated for each of them, [B]; NaN where each prompt has one picture.

    Args:
        features_BD: of the pictures, of any length: K is their cosine.
        prompts: of the pictures, as many of each.
        q: order, see `vendi_score`.

    Raises:
        ValueError: see `refuse_unequal`.
    """
    groups = groups_of(prompts)
    refuse_unequal(groups)
    unit_BD = F.normalize(features_BD.double().cpu(), dim=-1)
    value_B = torch.full((len(prompts),), torch.nan)
    for members in groups.values():
        if len(members) > 1:
            value_B[members] = vendi_score(unit_BD[members] @ unit_BD[members].T, q)
    return value_B


class VendiScorer:
    """Vendi score of the pictures of a prompt, repeated for each of them.

    Every prompt needs as many pictures, and two tables are comparable at that number only. For another order see `evals.order`.
    """

    range: tuple[float, float] = (1.0, float("inf"))
    higher_is_better: bool | None = True
    scope: Scope = "prompt"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, D] of pictures."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        return within_prompts(self.features(images_BCHW), prompts)
