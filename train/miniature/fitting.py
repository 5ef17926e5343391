"""The training loop that every part of the miniature goes through: AdamW, warm-up and cosine, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A stretch of training."""

    steps: int
    batch: int
    """Examples that a step draws."""
    lr: float
    """Peak of AdamW's learning rate."""
    warmup: int = 50
    """Steps in which it rises; then it falls to a fiftieth, as a cosine."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    average: float | None = None
    """Decay of the exponential moving average that replaces the weights at the end, if any."""

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of parameters, with a warm-up so that early weights are forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.live = list(parameters)
        self.decay = decay
        self.updates = 0
        self.shadow = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the live weights after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Replace the live weights by their average."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            live.copy_(shadow)


def fit(
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[torch.Generator], Tensor],
    schedule: Schedule,
    seed: int,
    title: str,
) -> float:
    """Minimise, in place, a loss that draws its batch from the generator it is given. Returns the last 100 losses' mean."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        parameters, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
    )
    average = Average(parameters, schedule.average) if schedule.average is not None else None
    losses: list[float] = []
    bar = tqdm(range(schedule.steps), desc=title)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr_at(step)
        loss = loss_of(generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if average is not None:
            average.update()
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
    if average is not None:
        average.copy_to_live()
    return float(np.mean(losses[-100:]))
