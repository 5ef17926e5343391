"""Several rewards at once: tasks take turns (the paper), or their images are one batch in which each is rewarded by all that applies to it.

In a pool every image has the credit of every task's reward that applies to it: a preference model judges scenes and portraits as well, a detector
says nothing of a portrait, parity counts the groups of its own task. Credits of different rewards have different scales, so each is normalised
before they are added with their weights:

- `zscores`: over all images of the batch that have it, as Eq 10 does with one reward (but where a group shares its reward each of its images counts);
- `gdpo`: within the images of each prompt (Liu et al. 2026, arXiv 2601.05242, "Group reward-Decoupled Normalization Policy Optimization", sec. 3), so that
  a reward that tells few images apart is not drowned by one that tells many.

The method then normalises the sum over the batch; one that compares the images of a prompt does so with a sum of z-scores, while that of `gdpo` is relative to
the prompt already. How much of it is whose, and which rewards pull the same way, is recorded.

Shapes: B images of all processes in order of their ranks, K reward terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from train.advantages import group_relative, normalise
from train.config import Experiment, Mixing, Task


@dataclass(frozen=True)
class Pool(Task):
    """Tasks whose images are one batch."""

    parts: tuple[Task, ...] = ()
    mixing: Mixing = "zscores"


def turns(experiment: Experiment) -> tuple[Task, ...]:
    """What takes turns in an iteration: the tasks, or one pool of them."""
    tasks, mixing = experiment.tasks, experiment.mixing
    if mixing == "tasks" or not tasks:
        return tasks
    pool = Pool(
        name="+".join(task.name for task in tasks),
        prompts="+".join(task.prompts for task in tasks),
        rewards=tuple(term for task in tasks for term in task.rewards),
        batch=sum(task.batch for task in tasks),
        monitors=tuple(dict.fromkeys(name for task in tasks for name in task.monitors)),
        parts=tasks,
        mixing=mixing,
    )
    return (pool,)


def part_of(pool: Pool, world: int) -> Tensor:
    """Number of the task that each image of the gathered batch belongs to, [B]: every process has its share of each task, one after the other."""
    shares = torch.tensor([task.batch // world for task in pool.parts])
    return torch.arange(len(pool.parts)).repeat_interleave(shares).repeat(world)


def group_of(pool: Pool, part_B: Tensor) -> Tensor:
    """Number of the prompt that each image was drawn of, [B]; images of one prompt are neighbours within their task."""
    group_B, first = torch.empty_like(part_B), 0
    for number, task in enumerate(pool.parts):
        mine = part_B == number
        group_B[mine] = first + torch.arange(int(mine.sum())) // task.images_per_prompt
        first += task.prompts_per_iteration
    return group_B


def mixed(credit_BK: Tensor, weight_K: Tensor, group_B: Tensor, mixing: Mixing) -> Tensor:
    """Each term's part in the sum, [B, K]: normalised, times its weight; NaN where the term does not apply.

    Args:
        credit_BK: of each reward, larger is better; NaN where it does not apply.
        weight_K: factors.
        group_B: prompts.
        mixing: `zscores` or `gdpo`.
    """
    columns = [
        normalise(credit_B) if mixing == "zscores" else group_relative(credit_B, group_B)
        for credit_B in credit_BK.unbind(1)
    ]
    return torch.stack(columns, 1) * weight_K


def added(part_BK: Tensor) -> Tensor:
    """Sum over the terms that apply, [B]; NaN where none does."""
    return part_BK.nansum(1).where(part_BK.isfinite().any(1), torch.nan)


def shares(part_BK: Tensor) -> list[float]:
    """Share of each term in what is added: mean absolute part, relative to their sum; 0 for all where nothing is told apart."""
    size_K = part_BK.abs().nan_to_num(nan=0.0).double().mean(0)
    return (size_K / size_K.sum()).nan_to_num(nan=0.0).tolist()


def correlations(part_BK: Tensor) -> dict[tuple[int, int], float | None]:
    """Pearson's correlation of every two terms, over images to which both apply; None where fewer than three or one does not vary."""
    found: dict[tuple[int, int], float | None] = {}
    for one, other in combinations(range(part_BK.shape[1]), 2):
        both = part_BK[:, [one, other]].double()
        both = both[both.isfinite().all(1)]
        value = torch.corrcoef(both.T)[0, 1] if len(both) > 2 else torch.tensor(torch.nan)
        found[one, other] = float(value) if value.isfinite() else None
    return found
