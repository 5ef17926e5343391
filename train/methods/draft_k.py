"""DRaFT and DRaFT-K (Clark et al., arXiv 2309.17400): the reward's gradient through the last K steps of the sampler, or through all of them.

`draft`, the rival in the paper that this project reproduces, has K = 1. But what a picture shows is decided in the first steps, where the last one's gradient does not come:
with K = 1 what is there gets crisper, and what is missing stays missing. The noise that a step adds is drawn beforehand, so that the picture is a function of it and the weights,
and its derivative goes back through as many steps as it is let.

K steps cost no more denoiser evaluations than the sampler alone, but K times the memory of an update's pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals.diffusion import derive_seed
from train.batches import Asked
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
_PLAIN = ("tasks.batch=48", "update.lr=2e-4", *_TEN, "update.betas=0.9,0.999")
TUNING = (
    ("tasks.batch=96", "update.lr=2e-4", *_TEN),
    ("tasks.batch=96", "update.lr=2e-4", *_TEN, *_SEEN),
    ("tasks.batch=48", "update.lr=1e-4", "ema.decay=0.97", *_FIVE),
    (*_PLAIN, *_SEEN),
)
AGAIN = {
    "imagereward": (
        (*_PLAIN, "method.jitter=0.2", "method.shift=0.05", "method.views=8"),
        (*_PLAIN, "method.jitter=0.15", "method.shift=0.1", "method.views=8"),
    )
}
"""A gradient that is averaged over more of what the reward might be shown, where one noised picture's is as noisy as it is smooth."""
BEST = {"imagereward": AGAIN["imagereward"][0]}


@dataclass(frozen=True)
class Method(draft.Method):
    """See the file."""

    truncate: int = 10
    """K."""
    noisings: int = 1
    """Only the last step by itself can be taken again."""
    jitter: float = 0.0
    """Standard deviation of noise, of values in [0, 1], that a picture is given before the reward sees it (ours). The gradient is then that of the reward averaged over it (randomised
    smoothing, arXiv 1902.02918), and follows less what changes from pixel to pixel, which a reward model was never shown."""
    shift: float = 0.0
    """How far a picture is moved for the same at most, as a share of its side (ours)."""

    views: int = 1
    """How many moved and noised pictures of one the reward looks at (ours): the more, the closer the gradient is to that of the average, for the time of the reward alone."""

    def check(self, experiment: Experiment) -> None:
        """Also what is done to pictures."""
        super().check(experiment)
        if self.jitter < 0:
            raise ValueError(f"method.jitter is {self.jitter}, but it must be at least 0")
        if not 0 <= self.shift < 0.5:
            raise ValueError(f"method.shift is {self.shift}, but it must be a share of the side in [0, 0.5)")
        if self.views < 1:
            raise ValueError(f"method.views is {self.views}, but it must be at least 1")
        if self.views > 1 and not (self.jitter or self.shift):
            raise ValueError(
                f"method.views is {self.views}, but without method.jitter or method.shift all are the picture itself: set one of them, or leave it at 1"
            )

    def seen(
        self, asked: Asked, repeat: int, first: int, images_BCHW: Tensor, rows: slice, view: int
    ) -> Tensor:
        """Moved and noised, each picture by itself; as they are where neither is set."""
        if not (self.jitter or self.shift):
            return images_BCHW
        places = range(first + rows.start, first + rows.stop)
        more = (view,) if view else ()
        seeds = [
            derive_seed("seen", asked.seed, repeat, asked.texts[place], asked.indices[place], *more)
            for place in places
        ]
        seen = [
            disturbed(image_CHW, self.jitter, self.shift, seed)
            for image_CHW, seed in zip(images_BCHW, seeds, strict=True)
        ]
        return torch.stack(seen)


def disturbed(image_CHW: Tensor, jitter: float, shift: float, seed: int) -> Tensor:
    """A picture moved by up to `shift` of its side, its edges repeated, and given noise of deviation `jitter`, within [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_CHW.shape[1:]
    for dim, side in ((1, height), (2, width)):
        most = round(shift * side)
        start = int(torch.randint(0, 2 * most + 1, (), generator=generator))
        edges = image_CHW.narrow(dim, 0, 1), image_CHW.narrow(dim, side - 1, 1)
        # not `pad`: its gradient is not the same twice on a GPU
        wide = torch.cat([edges[0]] * most + [image_CHW] + [edges[1]] * most, dim)
        image_CHW = wide.narrow(dim, start, side)
    noise_CHW = torch.randn(image_CHW.shape, generator=generator).to(image_CHW)
    return (image_CHW + jitter * noise_CHW).clamp(0, 1)


def variant(experiment: Experiment, model: str) -> Experiment:
    """All steps on the miniature. On Stable Diffusion ten of 50 (ours: the authors saw gradients explode through all), a picture at a time; all else as `draft`."""
    plain = draft.variant(experiment, model)
    if model == "miniature":
        return replace(plain, method=Method(truncate=plain.sampling.steps))
    return replace(plain, method=Method(), update=replace(plain.update, micro_batch=1))
