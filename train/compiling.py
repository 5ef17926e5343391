"""The denoiser through torch.compile: another time, and the same function in rollout and update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evals.checkpoints import first_line

BACKEND = "inductor"
"""Of torch.compile: its own, which generates code."""


def compiled(unet: Any, device: torch.device) -> SameGraph:
    """Compile a denoiser in place, so that names and class stay, once per size of batch.

    Args:
        unet: to be compiled; update it by calling it.
        device: that it is on.

    Returns:
        what draws with it.

    Raises:
        ValueError: where there is nothing to compile with.
    """
    check_compiler(device)
    torch._dynamo.config.optimize_ddp = False  # its splits know nothing of checkpointing
    unet.compile(backend=BACKEND, dynamic=False)
    return SameGraph(unet)


class SameGraph(nn.Module):
    """A compiled denoiser for drawing, in the graph of the update. Compiled for no gradient it is another function, by rounding."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.config = unet.config

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """The denoiser's answer."""
        with torch.enable_grad():
            return tuple(output.detach() for output in self.unet(*arguments, **options))


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where there is nothing to compile with.

    Raises:
        ValueError: in one sentence.
    """
    try:
        torch.compile(lambda x: x + 1, backend=BACKEND)(torch.zeros(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        cause = getattr(error, "inner_exception", error)
        raise ValueError(
            f"update.compile is true, but torch cannot compile on this machine ({first_line(cause)}): install a C++ compiler "
            "such as g++, or leave it out"
        ) from error
