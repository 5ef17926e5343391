"""A window of trained steps in a short rollout, as MixGRPO (arXiv 2507.21802) and Flow-GRPO-Fast have it.

Pictures are drawn in few steps, and only those in the window have noise: the others have eta 0, so that what tells two pictures with one beginning
apart has happened in the window, which is what is trained. The window is `update.trained_steps` steps wide, has an optimiser step for each of
them in order of sampling, and lies within the first share `within` of all steps, where pictures are decided. Where it lies is drawn from the run's
seed, the task and the iteration, the same for all images: one of its own for each image has been seen to end in collapse (verl-omni's notes).

MixGRPO slides its window from the noisiest step on, one every 25 iterations; here, as in Flow-GRPO-Fast, each iteration draws it anew, uniformly.
Images of a prompt begin from noise of their own (MixGRPO: from the same).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from evals.diffusion import derive_seed
from train.methods._policy_gradient import GroupRelative, in_groups
from train.run import Run

if TYPE_CHECKING:
    from train.config import Experiment, Task


TUNING = (
    ("tasks.batch=96", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=1e-4"),
    ("tasks.batch=48", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=2e-4", "method.within=1.0"),
)
BEST = {"imagereward": TUNING[3], "compositionality": TUNING[3], "fairness": TUNING[2]}


@dataclass(frozen=True)
class Method(GroupRelative):
    """See the file."""

    within: float = 0.5
    """Share of the denoising steps, the noisiest, in which the window lies (Flow-GRPO-Fast's config: sde_window_range is the first half)."""

    def check(self, experiment: Experiment) -> None:
        """Also a window that does not fit is refused."""
        super().check(experiment)
        if not 0.0 < self.within <= 1.0:
            raise ValueError(
                f"method.within is {self.within}, but it is a share of the steps and must lie in (0, 1]"
            )
        width, steps = experiment.update.trained_steps, experiment.sampling.steps
        if width > (room := self.room(steps)):
            raise ValueError(
                f"update.trained_steps is {width}, but the window must lie within the first {room} of {steps} denoising steps "
                f"(method.within {self.within:g}): narrow it, or raise method.within or sampling.steps"
            )

    def check_model(self, run: Run) -> None:
        """Also where this model's schedule has no noise to fill the window with."""
        super().check_model(run)
        if not self.windows(run):
            raise ValueError(
                f"update.trained_steps is {run.experiment.update.trained_steps}, but there are not so many steps with noise in a row within "
                f"method.within {self.within:g} and before update.skip_last {run.experiment.update.skip_last}"
            )

    def room(self, steps: int) -> int:
        """Denoising steps in which the window lies: .29 of 100 are 29, although their product in floating point is less."""
        return math.floor(self.within * steps + 1e-9)

    def windows(self, run: Run) -> list[list[int]]:
        """Where the window can lie, from the noisiest on."""
        width, steps = run.experiment.update.trained_steps, run.experiment.sampling.steps
        starts = range(self.room(steps) - width + 1)
        windows = [list(range(start, start + width)) for start in starts]
        return [window for window in windows if set(window) <= set(run.drawable)]

    def order(self, run: Run, task: Task, iteration: int) -> list[int]:
        """The window of this iteration, the noisiest step first."""
        windows = self.windows(run)
        generator = torch.Generator().manual_seed(derive_seed("window", run.seed, task.name, iteration))
        return windows[int(torch.randint(len(windows), (), generator=generator))]

    def noisy(self, order: Sequence[int]) -> Sequence[int]:
        """Those of the window."""
        return order


def variant(experiment: Experiment, model: str) -> Experiment:
    """Ten steps with a window of three on Stable Diffusion (Flow-GRPO-Fast: 10 to train, 40 to evaluate, 3 with noise), six with one of two on the miniature.

    Groups, and the miniature's numbers, are ours and not tuned; there the window lies in the first four steps, of which the third and the fourth have the
    steeper gradients (kappa_t .5 and .7; .15 and .3 before).
    """
    steps, width, within = (6, 2, 0.7) if model == "miniature" else (10, 3, 0.5)
    return replace(
        in_groups(experiment, model),
        sampling=replace(experiment.sampling, steps=steps),
        update=replace(experiment.update, trained_steps=width, skip_last=0),
        method=Method(within=within),
    )
