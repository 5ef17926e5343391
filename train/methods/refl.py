"""ReFL (Xu et al., ImageReward, arXiv 2304.05977, Algorithm 1): the reward of x_0 as one random late step predicts it, and its gradient through that step.

    lambda phi(r(x_0)),  phi(r) = max(offset - r, 0)

The paper that this project reproduces has it as a rival (its Table 6). One step is drawn for an iteration, as the release draws one for a batch. ReFL's
objective has a pretraining term, which its release leaves out, and users found the model worse than the base: here it is this project's pretraining step
(`--set pretraining.source=`), which is an optimiser step of its own. The release also gives the denoiser the number of the step (30 to 39) in place of its
timestep; here it is the timestep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from evals.diffusion import Schedule
from train.config import Ema, Experiment, Pretraining
from train.methods._reward_gradient import (
    RewardGradient,
    compared_with_none,
    part,
    to_original,
    with_batch_per_gpu,
)

if TYPE_CHECKING:
    from train.run import Run


def phi(reward_B: Tensor, offset: float) -> Tensor:
    """max(offset - r, 0), [B]: the release's relu(2 - r) (paper, Table 6: "phi = ReLU"). It has no gradient where r is above the offset."""
    return (offset - reward_B).relu()


TUNING = (
    ("tasks.batch=48", "update.lr=1e-4", "pretraining.batch=48"),
    ("tasks.batch=48", "update.lr=1e-4", "method.weight=1", "pretraining.batch=48"),
    ("tasks.batch=48", "update.lr=3e-4", "method.weight=1", "pretraining.batch=48"),
    ("tasks.batch=48", "update.lr=1e-3", "method.weight=1", "pretraining.batch=48"),
)
BEST = {"imagereward": TUNING[1]}


@dataclass(frozen=True)
class Method(RewardGradient):
    """See the file."""

    t1: int = 1
    """Steps before the end at which the latest x_0 is predicted (paper, Table 6: T1 = 1)."""
    t2: int = 10
    """The same of the earliest (paper, Table 6: T2 = 10; the release: step 30 to 39 of 40)."""
    offset: float = 2.0
    """Reward above which an image has no gradient (release: 2; the paper does not say)."""
    weight: float = 1e-3
    """lambda (paper, Table 6: 1e-3). AdamW divides it out but for its epsilon; the gradient norm that is bounded has it."""

    def check(self, experiment: Experiment) -> None:
        """Also that the late steps are there."""
        super().check(experiment)
        if not 1 <= self.t1 <= self.t2 <= experiment.sampling.steps:
            raise ValueError(
                f"method.t1 is {self.t1} and method.t2 is {self.t2}, but they are counted from the end of {experiment.sampling.steps} steps "
                f"(sampling.steps): 1 <= t1 <= t2 <= {experiment.sampling.steps}"
            )
        if not self.weight > 0:
            raise ValueError(f"method.weight is {self.weight}, but it must be above 0")

    def firsts(self, steps: int) -> tuple[int, ...]:
        """Counted from the end, t1 to t2."""
        return tuple(range(steps - self.t2, steps - self.t1 + 1))

    def differentiated(self, schedule: Schedule, first: int) -> Schedule:
        """One step, to x_0."""
        return to_original(part(schedule, slice(first, first + 1)))

    def loss(self, reward_B: Tensor) -> Tensor:
        """Lambda phi(r), [B]."""
        return self.weight * phi(reward_B, self.offset)

    def note(self, run: Run) -> str:
        """Where its pretraining term is missing."""
        if run.experiment.pretraining is not None:
            return ""
        return "refl has a pretraining term, and pretraining.source is not given: this trains without it, as its release does"


def variant(experiment: Experiment, model: str) -> Experiment:
    """Table 6 on Stable Diffusion. On the miniature ours, not tuned."""
    if model == "miniature":
        # a quarter of 10 steps, as 10 are of 40; few pictures are above the offset
        plain = compared_with_none(experiment, Method(t1=1, t2=3, offset=4.0))
        return replace(
            plain,
            update=replace(plain.update, lr=3e-5, warmup=10, decay="linear"),
            ema=Ema(decay=0.9),  # one optimiser step an iteration
            pretraining=Pretraining(source="miniature", batch=96),
        )
    paper = with_batch_per_gpu(compared_with_none(experiment, Method()), 12)  # Table 6
    # Table 6 trains all weights; LoRA keeps the rate that it has
    lr = 1e-5 if paper.lora is None else paper.update.lr
    return replace(
        paper,
        # DDIM 40 (Table 6). The release trains without guidance; the paper draws with 7 in training and inference
        sampling=replace(paper.sampling, steps=40),
        update=replace(paper.update, lr=lr, max_grad_norm=1.0),  # release
    )
