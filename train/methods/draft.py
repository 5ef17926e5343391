"""DRaFT-LV (Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400): the reward's gradient through the last step of the sampler.

The mean reward of the pictures that the sampler draws is maximised; its gradient is cut before the last `truncate` steps (DRaFT-K). With one step the picture
is then noised again to where that step began, and the step taken anew: further samples of the gradient that cost one evaluation each (DRaFT-LV, for low variance).

The paper that this project reproduces has it as a rival (its Table 6); nobody has released the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from evals.diffusion import Schedule
from train.config import Ema, Experiment, Lora
from train.methods._reward_gradient import RewardGradient, compared_with_none, part, with_batch_per_gpu

TUNING = (
    ("tasks.batch=48", "update.lr=1e-3", "lora.rank=32"),
    ("tasks.batch=48", "update.lr=3e-4"),
    ("tasks.batch=48", "update.lr=1e-3"),
    ("tasks.batch=24", "update.lr=3e-4", "sampling.micro_batch=24", "update.micro_batch=24"),
)
BEST = {"imagereward": TUNING[2]}


@dataclass(frozen=True)
class Method(RewardGradient):
    """See the file."""

    truncate: int = 1
    """Last steps of the sampler that have a gradient (paper, Table 6: t_truncate 1)."""
    noisings: int = 3
    """Times that the last step is taken: once by the sampler, and after n noisings more (the DRaFT paper's Algorithm 1; n is 2 in re-implementations, and Table 6 does not say)."""

    def check(self, experiment: Experiment) -> None:
        """Also that the last steps are there."""
        super().check(experiment)
        steps = experiment.sampling.steps
        if not 1 <= self.truncate <= steps:
            raise ValueError(
                f"method.truncate is {self.truncate}, but only 1 to {steps} of {steps} steps (sampling.steps) can have a gradient"
            )
        if self.noisings < 1:
            raise ValueError(f"method.noisings is {self.noisings}, but it must be at least 1")
        if self.noisings > 1 and self.truncate > 1:
            raise ValueError(
                f"method.noisings is {self.noisings} and method.truncate is {self.truncate}, but only the last step is taken again: set one of them to 1"
            )

    def firsts(self, steps: int) -> tuple[int, ...]:
        """The one before the last `truncate`."""
        return (steps - self.truncate,)

    def differentiated(self, schedule: Schedule, first: int) -> Schedule:
        """From there to the end, as the sampler takes them."""
        return part(schedule, slice(first, None))

    @property
    def length(self) -> int:
        """`truncate`."""
        return self.truncate

    @property
    def repeats(self) -> int:
        """`noisings`."""
        return self.noisings

    def loss(self, reward_B: Tensor) -> Tensor:
        """-r, [B]."""
        return -reward_B


def variant(experiment: Experiment, model: str) -> Experiment:
    """Table 6 on Stable Diffusion, its 50 DDIM steps among it. On the miniature ours, not tuned, and of all weights as the other methods there."""
    plain = compared_with_none(experiment, Method())
    if model == "miniature":
        return replace(
            plain,
            method=Method(noisings=2),  # ours: with three it would have a quarter less iterations
            update=replace(plain.update, lr=3e-5, warmup=10, decay="linear"),
            ema=Ema(decay=0.9),  # one optimiser step an iteration
        )
    paper = with_batch_per_gpu(plain, 3)  # Table 6
    return replace(
        paper,
        update=replace(paper.update, lr=5e-5),  # Table 6
        lora=Lora(rank=32),  # Table 6
    )
