"""DDPO (Black et al., arXiv 2305.13301): the clipped policy gradient, an image compared with what its prompt has been rewarded with lately.

The paper calls it impractical for millions of prompts, which come but once. A prompt's last rewards, at most `buffer_size` and those of this batch
among them, give the mean and the standard deviation that its images are compared with; until there are `min_count`, the whole batch does (Eq 10).
They are old: they were given to the pictures of earlier policies, so metrics.jsonl records `statistics_age`, in iterations, its largest, and the
share of images that are compared with their own prompt (`statistics_own`). A prompt is known by its id, so that no two are taken for one.

The rewards are part of the saved state, and a resumed run goes on with exactly these: so much text for each prompt that ever came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from train import advantages as better
from train.batches import Judged
from train.data import prompts_of
from train.methods import PAPERS, Comparison
from train.methods._policy_gradient import (
    Compared,
    PolicyGradient,
    refuse_group_baseline,
    refuse_shared_reward,
    with_credit_of_its_own,
)
from train.run import Run

if TYPE_CHECKING:
    from train.config import Experiment, Task

EPSILON = 1e-6
"""Added to a standard deviation (ddpo-pytorch)."""

Rewards = list[list[float]]
"""Of one prompt, the latest last: pairs of the iteration and the reward, as JSON holds them."""


TUNING = (
    ("tasks.batch=96", "update.lr=2e-4"),
    ("tasks.batch=48", "update.lr=1e-4"),
    ("tasks.batch=48", "update.lr=2e-4"),
    ("tasks.batch=96", "update.lr=1e-4"),
)
BEST = {"imagereward": TUNING[1], "compositionality": TUNING[1], "fairness": TUNING[0]}


@dataclass(frozen=True)
class Method(PolicyGradient):
    """See the file."""

    pools: ClassVar[bool] = False

    buffer_size: int = 16
    """Rewards of a prompt that are remembered (ddpo-pytorch's config: 16)."""
    min_count: int = 16
    """Rewards of a prompt from which on it has statistics of its own (ddpo-pytorch's config: 16)."""

    @property
    def comparison(self) -> Comparison:
        """With earlier ones of its prompt, and those beside it."""
        return Comparison(f"the method is {self.name}", f"the method {PAPERS}")

    def check(self, experiment: Experiment) -> None:
        """Also a buffer that cannot be filled, and comparisons within the batch's groups, are refused."""
        super().check(experiment)
        if not 2 <= self.min_count <= self.buffer_size:
            raise ValueError(
                f"method.min_count is {self.min_count}, but it must lie between 2 and method.buffer_size, which is {self.buffer_size}"
            )
        refuse_group_baseline(self, experiment)
        refuse_shared_reward(self, experiment)

    def note(self, run: Run) -> str:
        """Also which tasks' prompts come too seldom."""
        seldom = [
            f"{task.name} ({images:.2g})"
            for task in run.experiment.tasks
            if (images := images_of_a_prompt(run, task)) < self.min_count
        ]
        if not seldom:
            return super().note(run)
        sentence = (
            f"method.min_count is {self.min_count}, but the whole run draws fewer images of a prompt of task {', '.join(seldom)}: "
            "they are compared with the whole batch, as ppo does"
        )
        return "; ".join(filter(None, (super().note(run), sentence)))

    def compared(self, run: Run, task: Task, iteration: int, judged: Judged) -> Compared:
        """With the prompt's remembered rewards where there are enough, else with the batch."""
        prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, iteration)
        ids_B = [prompt.id for prompt in prompts_P for _ in range(task.images_per_prompt)]
        reward_B = judged.shaped.credit_B
        before: Mapping[str, Rewards] = run.progress.memory.get(task.name, {})
        now = remembered(before, ids_B, reward_B, iteration, self.buffer_size)
        known = {name for name in set(ids_B) if len(now.get(name, ())) >= self.min_count}
        advantage_B = better.normalise(reward_B)
        for image, name in enumerate(ids_B):
            if name in known:
                advantage_B[image] = standardised(reward_B[image], [reward for _, reward in now[name]])
        clip = run.experiment.update.advantage_clip
        own = sum(
            name in known for name, reward in zip(ids_B, reward_B.tolist(), strict=True) if reward == reward
        )
        age = [iteration - int(drawn) for name in sorted(known) for drawn, _ in now[name]]
        report = {
            "statistics_own": own / max(1, judged.valid),
            "statistics_age": sum(age) / len(age) if age else None,
            "statistics_age_max": max(age) if age else None,
        }
        return Compared(advantage_B.nan_to_num(nan=0.0).clamp(-clip, clip), report, {task.name: now})


def remembered(
    before: Mapping[str, Rewards], ids_B: Sequence[str], reward_B: Tensor, iteration: int, size: int
) -> dict[str, Rewards]:
    """The last `size` rewards of every prompt, this batch's among them; images without a reward leave nothing.

    Args:
        before: by prompt id; not changed.
        ids_B: prompt id of each image.
        reward_B: NaN = none.
        iteration: this one.
        size: of a prompt's buffer.
    """
    now = dict(before)
    for name, reward in zip(ids_B, reward_B.tolist(), strict=True):
        if reward == reward:
            now[name] = [*now.get(name, ()), [iteration, reward]][-size:]
    return now


def standardised(reward: Tensor, others: Sequence[float]) -> Tensor:
    """(r - mean) / (std + 1e-6) by the mean and the standard deviation, with n, of a prompt's rewards (arXiv 2305.13301; ddpo-pytorch); NaN stays."""
    other_N = torch.tensor(others, dtype=torch.float64)
    return ((reward.double() - other_N.mean()) / (other_N.std(correction=0) + EPSILON)).float()


def images_of_a_prompt(run: Run, task: Task) -> float:
    """How many images of each prompt of a task a run draws on average."""
    return run.experiment.iterations * task.batch / len(run.prompt_sets[task.prompts])


def variant(experiment: Experiment, model: str) -> Experiment:
    """No comparison but that with the prompt's own past, and images of a set with a credit of their own; all else is the experiment's (ours, not tuned)."""
    tasks = tuple(with_credit_of_its_own(replace(task, baseline="batch")) for task in experiment.tasks)
    return replace(experiment, tasks=tasks, method=Method())
