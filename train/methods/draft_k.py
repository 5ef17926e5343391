"""DRaFT and DRaFT-K (Clark et al., arXiv 2309.17400): the reward's gradient through the last K steps of the sampler, or through all of them.

`draft`, the rival in the paper that this project reproduces, has K = 1. But what a picture shows is decided in the first steps, where the last one's gradient does not come:
with K = 1 what is there gets crisper, and what is missing stays missing. The noise that a step adds is drawn beforehand, so that the picture is a function of it and the weights,
and its derivative goes back through as many steps as it is let.

K steps cost no more denoiser evaluations than the sampler alone, but K times the memory of an update's pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from train.methods import draft

if TYPE_CHECKING:
    from train.config import Experiment

_SEEN = ("method.jitter=0.1", "method.shift=0.05")
_TEN = (
    "method.truncate=10",
    "update.max_grad_norm=1",
    "update.betas=0.9,0.99",
    "update.warmup=5",
    "ema.decay=0.9",
)
_FIVE = ("sampling.steps=5", "method.truncate=5", "update.max_grad_norm=1", *_SEEN)
TUNING = (
    ("tasks.batch=96", "update.lr=2e-4", *_TEN),
    ("tasks.batch=96", "update.lr=2e-4", *_TEN, *_SEEN),
    ("tasks.batch=48", "update.lr=1e-4", "ema.decay=0.97", *_FIVE),
    ("tasks.batch=96", "update.lr=1.5e-4", *_FIVE),
)


@dataclass(frozen=True)
class Method(draft.Method):
    """See the file."""

    truncate: int = 10
    """K."""
    noisings: int = 1
    """Only the last step by itself can be taken again."""


def variant(experiment: Experiment, model: str) -> Experiment:
    """All steps on the miniature. On Stable Diffusion ten of 50 (ours: the authors saw gradients explode through all), a picture at a time; all else as `draft`."""
    plain = draft.variant(experiment, model)
    if model == "miniature":
        return replace(plain, method=Method(truncate=plain.sampling.steps))
    return replace(plain, method=Method(), update=replace(plain.update, micro_batch=1))
