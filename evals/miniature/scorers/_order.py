"""Vendi scores of the miniature of another order than 1, by name as those of photographs."""

from __future__ import annotations

from functools import partial

import torch

from evals.miniature.scorers import vendi as _of_order_1
from evals.miniature.scorers._judge import image_features
from evals.scorers._order import OfOrder


def of_order(vendi: str, q: float, device: torch.device | str) -> OfOrder:
    """The scorer of the miniature, which has no second Vendi score."""
    assert vendi == "vendi"
    return OfOrder(_of_order_1.Scorer(device), partial(image_features, device=device), q)
