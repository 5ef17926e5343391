"""Gradients that are the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def only_deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU: attention's gradient summed in the same order each time, which it is where nothing else is allowed, a tenth slower."""
    if device.type != "cuda":
        yield
        return
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)
