"""DiffusionNFT, negative-aware fine-tuning (arXiv 2509.16117), for denoisers that predict noise, v or x_0.

The paper has it for flow matching: pictures are drawn by an old policy, a reward becomes the probability r in [0, 1] that a picture is a good one, and the trained velocity
v_theta gives two implicit policies around the old one, of which one learns the good pictures and the other the bad ones:

    v+ = (1 - beta) v_old + beta v_theta,    v- = (1 + beta) v_old - beta v_theta
    loss = E [ r w |v+ - v|^2 + (1 - r) w |v- - v|^2 ],    v = d x_t / d t, the velocity of the noised picture

beta is `mix` here. w is 1 / mean|x_0 error| of the same answer, without a gradient, and both errors are those of the x_0 that it implies (`space` "x0").

**For noise and v.** With x_t = s x_0 + n eps, s = sqrt(alpha-bar_t), n = sqrt(1 - alpha-bar_t), a denoiser's output o implies

    x_0 = (x_t - n o) / s (noise),    x_0 = s x_t - n o (v = s eps - n x_0),    x_0 = o (x_0)

1. At a given x_t each is an affine function of the others, and the weights of v+ and of v- add to 1: mixing outputs and mixing the x_0 that they imply is the same. So
   o+ = (1 - beta) o_old + beta o_theta and o- = (1 + beta) o_old - beta o_theta are the paper's implicit policies, whatever is predicted.
2. An error of the output is an error of x_0 by the factor f = n / s (noise), n (v), 1 (x_0); flow matching's is t. So |x_0 error|^2 / mean|x_0 error| is
   f |o - target|^2 / mean|o - target|, and the loss is the same number for the same model in any of the three.
3. What is learnt does not depend on a weight w(x_t, t) > 0. At one x_t let a = E[r], and m+ = E[r o] / a the answer for good pictures; where o_old = E[o], the derivative
   a (o+ - m+) - (1 - a) o- + (o_old - a m+) = 0 gives o_theta = o_old + (2 / beta) a (m+ - o_old): the paper's optimum, in terms of o. The weight that is used, 1 / mean|x_0 error|,
   depends on the picture and on which of the two policies it is, so that the trained optimum is near this one and not it: in examples a fourth (256 dimensions) to two thirds
   (three) farther from the old policy.

So `space` "output", f = 1, is the same method with another weight of timesteps. For a denoiser that predicts noise f grows without bound towards pure noise (8 at timestep 901 of
Stable Diffusion), and its first steps would be all that is trained.

r = 1/2 + 1/2 clip(A / `update.advantage_clip`, -1, 1) with the advantage A. Where old and policy are the same, the gradient is that of A |o - target|^2 / mean|o - target|: plain
advantage-weighted regression, without a contrast. That is so in the first optimiser step, and in the first one of every iteration for as long as the old policy is a copy
(`old_decay`); the `contrast` that is recorded, rms of o_theta - o_old, says when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from evals.diffusion import Schedule
from train.batches import Judged
from train.config import Experiment, Task
from train.denoising import Noised
from train.methods import Comparison, only_heeded
from train.methods._forward_process import (
    Beside,
    ForwardProcess,
    RelativeTo,
    advantages,
    alpha_of,
    check_groups,
    distance,
    released_recipe,
)
from train.mixing import turns
from train.run import Run

LEAST_ERROR = 1e-5
"""Of the mean absolute error that the loss is divided by (release)."""


_AVERAGED = ("tasks.batch=48", "method.mix=0.1", "ema.decay=0.98")
_FEW_STEPS = ("sampling.steps=5", "method.timesteps=training")
TUNING = (
    ("tasks.batch=48", "update.lr=1e-4", "method.mix=0.1"),
    (*_AVERAGED, "update.lr=1e-4", "method.updates=3"),
    (*_AVERAGED, "update.lr=1e-4", *_FEW_STEPS),
    (*_AVERAGED, "update.lr=1.5e-4", *_FEW_STEPS, "method.updates=2"),
)
AGAIN = {
    "compositionality": (
        (*_AVERAGED, *_FEW_STEPS, "update.lr=3e-5"),
        (*_AVERAGED, *_FEW_STEPS, "update.lr=1e-4", "method.kl=1.0"),
    )
}
"""With those for all, the reward there rises to .93 and falls below .6; with a smaller rate, or a pull to the base that is felt, it stays up."""
BEST = {"imagereward": TUNING[2], "compositionality": AGAIN["compositionality"][1], "fairness": TUNING[2]}


@dataclass(frozen=True)
class Method(ForwardProcess):
    """See the file."""

    reads: ClassVar[frozenset[str]] = frozenset({"advantage_clip"})
    needs_reference: ClassVar[bool] = True
    needs_old: ClassVar[bool] = True

    mix: float = 1.0
    """beta: how much of the policy is in the implicit ones; less is a longer step (release: 1, and .1 for OCR and several rewards)."""
    kl: float = 1e-4
    """Weight of the squared distance to the base (release: 1e-4; 0 leaves the base's evaluations out)."""
    space: Literal["x0", "output"] = "x0"
    """Whose error is made small: x_0's, as in the release, or the output's."""
    relative_to: RelativeTo = "batch"
    """Whose mean and standard deviation make a reward an advantage: the batch's (Eq 10), or the prompt's images'."""
    old_copies: int = 0
    """Optimiser steps in which the old policy is a copy of the policy (release: 0, and 75 for OCR)."""
    old_rise: float = 0.001
    """By how much the old policy's decay rises with each one after (release: .001, and .0075 for OCR)."""
    old_most: float = 0.5
    """Where it stays (release: .5, and .999 for OCR)."""

    @property
    def comparison(self) -> Comparison | None:
        """Where an advantage is relative to the prompt's images."""
        return Comparison("method.relative_to is group", "batch") if self.relative_to == "group" else None

    def check(self, experiment: Experiment) -> None:
        """See `Method`."""
        super().check(experiment)
        if not self.mix > 0:
            raise ValueError(f"method.mix is {self.mix}, but it must be above 0")
        if not 0 <= self.old_most < 1:
            raise ValueError(f"method.old_most is {self.old_most}, but a decay must lie in [0, 1)")
        for field in ("kl", "old_copies", "old_rise"):
            if (value := getattr(self, field)) < 0:
                raise ValueError(f"method.{field} is {value}, but it must be at least 0")
        if self.comparison is not None:
            check_groups(experiment, self.comparison)

    def note(self, run: Run) -> str:
        """Whether the contrast is zero for a while."""
        if self.old_most > 0 and self.old_rise > 0 and not self.old_copies:
            return ""
        how_long = (
            f"for {self.old_copies} optimiser steps" if self.old_most > 0 and self.old_rise > 0 else "always"
        )
        return (
            f"the old policy is a copy of the policy {how_long} (method.old_copies, old_rise, old_most): an iteration's first optimiser step has no "
            "contrast then, and is plain advantage-weighted regression"
        )

    def sampler(self, run: Run) -> AbstractContextManager[None]:
        """The old policy draws."""
        return run.policy.as_old()

    def beside(self) -> tuple[Beside, ...]:
        """The old policy, and the base where a distance to it counts."""
        return ("old", "base") if self.kl > 0 else ("old",)

    def signal(self, run: Run, task: Task, judged: Judged) -> Tensor:
        """The advantage."""
        return advantages(judged, self.relative_to, run.experiment.update.advantage_clip)

    def losses(
        self, run: Run, given: Noised, output_RCHW: Tensor, signal_R: Tensor, beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's loss, and its distance to the base."""
        clip, schedule = run.experiment.update.advantage_clip, run.policy.painter.schedule
        target, old = given.target_BCHW.to(output_RCHW.device), beside["old"]
        factor_R = torch.ones_like(signal_R)
        if self.space == "x0":
            factor_R = x0_factor(schedule, given.timestep_B).to(signal_R)
        good, bad = implicit_policies(output_RCHW, old, self.mix)
        loss_R = contrastive_loss(
            optimality(signal_R, clip),
            normalised_error(good, target, factor_R),
            normalised_error(bad, target, factor_R),
        )
        loss_R = (
            loss_R * clip / self.mix
        )  # release: so that beta and the clip leave the first gradient as it is
        found = {"contrast": distance(output_RCHW, old)}
        if self.kl > 0:
            found["distance"] = distance(output_RCHW, beside["base"])
            loss_R = loss_R + self.kl * found["distance"]
        return loss_R, found

    def update(self, run: Run, batch: Any, on_policy: bool) -> dict[str, Any]:
        """See `ForwardProcess`; the contrast is a root mean square."""
        report = super().update(run, batch, on_policy)
        by_update = {number: value**0.5 for number, value in report["contrast_by_update"].items()}
        return report | {"contrast": report["contrast"] ** 0.5, "contrast_by_update": by_update}

    def after(self, run: Run) -> dict[str, Any]:
        """The old policy follows."""
        old, progress = run.policy.old, run.progress
        assert old is not None
        tasks_done = progress.iteration * len(turns(run.experiment)) + progress.phase + 1
        old.decay = old_decay(tasks_done * self.updates, self.old_copies, self.old_rise, self.old_most)
        old.step(run.policy.weights)
        return {"old_decay": old.decay}


def old_decay(updates: int, copies: int, rise: float, most: float) -> float:
    """Share of the old policy that is kept after so many optimiser steps: 0, then rising by `rise` with each to `most` (release, `return_decay`)."""
    return min(max(0, updates - copies) * rise, most)


def optimality(advantage_R: Tensor, clip: float) -> Tensor:
    """R = 1/2 + 1/2 clip(A / Z, -1, 1): the probability that a picture is a good one, with Z = clip."""
    return 0.5 + 0.5 * (advantage_R / clip).clamp(-1, 1)


def implicit_policies(output_RCHW: Tensor, old_RCHW: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    """Positive and negative policy: (1 - beta) old + beta new, and (1 + beta) old - beta new."""
    return (1 - mix) * old_RCHW + mix * output_RCHW, (1 + mix) * old_RCHW - mix * output_RCHW


def x0_factor(schedule: Schedule, timestep_R: Tensor) -> Tensor:
    """F = |d x_0 / d output| at training timesteps: n / s for noise, n for v, 1 for x_0. Float64 [R] on the CPU."""
    alpha_R = alpha_of(schedule, timestep_R)
    if schedule.prediction_type == "epsilon":
        return ((1 - alpha_R) / alpha_R).sqrt()
    return (1 - alpha_R).sqrt() if schedule.prediction_type == "v_prediction" else torch.ones_like(alpha_R)


def normalised_error(output_RCHW: Tensor, target_RCHW: Tensor, factor_R: Tensor) -> Tensor:
    """|f (o - target)|^2 / mean|f (o - target)|, averaged over dimensions; the divisor without a gradient (release). [R]."""
    error_RCHW = factor_R.view(-1, 1, 1, 1) * (output_RCHW - target_RCHW)
    size_R = error_RCHW.detach().abs().flatten(1).mean(1).clamp(min=LEAST_ERROR)
    return (error_RCHW**2).flatten(1).mean(1) / size_R


def contrastive_loss(optimality_R: Tensor, positive_R: Tensor, negative_R: Tensor) -> Tensor:
    """R loss+ + (1 - r) loss-. [R]."""
    return optimality_R * positive_R + (1 - optimality_R) * negative_R


def variant(experiment: Experiment, model: str) -> Experiment:
    """Stable Diffusion: the release's setting for PickScore. The miniature: as many evaluations with a gradient as its policy gradient has (ours, not tuned)."""
    if model == "miniature":
        method = Method(updates=5, timesteps="sampled", kl=0.0, old_rise=0.01)
        update = replace(only_heeded(experiment.update, method), advantage_clip=5.0)
        return replace(experiment, method=method, update=update)
    # release: 9 of the sampler's 10 timesteps; `space`: the base predicts noise (ours)
    method = Method(noisings=9, timesteps="sampled", space="output")
    return released_recipe(experiment, method, sampling_steps=10, batch=1152, ema=0.9)
