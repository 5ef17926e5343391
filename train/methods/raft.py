"""RAFT, reward ranked fine-tuning (arXiv 2304.06767), as the paper's baseline: of every `candidates` pictures the best one is trained on as if it were data.

    loss = E_{x_0 accepted} [ |eps_theta(x_t) - eps|^2 ],     x_0 ~ theta: the latest model (paper, 2401.12244, App. A: online)

RAFT's Algorithm 1 draws K pictures of each prompt and keeps the best of them: acceptance 1/K, ranked within the prompt. The paper has acceptance 1/24 (Table 6), but not
how many pictures it draws of a prompt; where they are fewer than 24 the best of 24 can only be taken over the whole batch (`rank` "batch"), and prompts for which the reward
is high anyway are then accepted more often, unless the task compares an image with the others of its prompt first (`baseline` "group").

The cost is in the drawing: an optimiser step is on B / 24 pictures. Those are shared out anew, so that processes have equally many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from train.batches import Judged
from train.config import Experiment, Task
from train.denoising import Noised
from train.methods import Comparison, only_heeded
from train.methods._forward_process import Batch, ForwardProcess, check_groups, shared_out
from train.objective import denoising_loss
from train.run import Run

TUNING = (
    ("tasks.batch=96", "update.lr=1e-4", "method.candidates=8", "method.updates=10"),
    ("tasks.batch=96", "update.lr=3e-5", "method.candidates=4", "method.updates=5"),
    ("tasks.batch=288", "update.lr=3e-5", "method.candidates=8", "method.updates=10"),
    ("tasks.batch=288", "update.lr=1e-4", "method.candidates=24", "method.updates=10"),
)
BEST = {"imagereward": TUNING[3], "compositionality": TUNING[3], "fairness": TUNING[3]}


@dataclass(frozen=True)
class Method(ForwardProcess):
    """See the file."""

    pools: ClassVar[bool] = False

    candidates: int = 24
    """Images of which one is accepted (paper, Table 6: acceptance ratio 1/24)."""
    rank: Literal["batch", "prompt"] = "batch"
    """Among which: all of the iteration, or those of a prompt (RAFT, Algorithm 1), which must then be as many."""

    @property
    def comparison(self) -> Comparison | None:
        """Where the best are those of a prompt."""
        return Comparison("method.rank is prompt", "batch") if self.rank == "prompt" else None

    def check(self, experiment: Experiment) -> None:
        """See `Method`."""
        super().check(experiment)
        if self.candidates < 2:
            raise ValueError(f"method.candidates is {self.candidates}, but the best of at least 2 is needed")
        for task in experiment.tasks:
            where = f"tasks.{task.name}"
            if self.rank == "prompt" and task.images_per_prompt < self.candidates:
                raise ValueError(
                    f"method.rank is prompt, but {where}.images_per_prompt is {task.images_per_prompt}, less than method.candidates "
                    f"{self.candidates}: draw as many, or use batch"
                )
            if task.batch < self.candidates:
                raise ValueError(
                    f"method.candidates is {self.candidates}, of which one is accepted, but {where}.batch is {task.batch}: use at most as many"
                )
        if self.comparison is not None:
            check_groups(experiment, self.comparison)

    def averaged(self, images: int) -> int:
        """See `Method`."""
        return max(1, images // self.candidates) * self.noisings

    def trained_images(self, task: Task) -> int:
        """Those that are accepted."""
        groups, each = task.prompts_per_iteration, task.images_per_prompt
        if self.rank == "prompt":
            return groups * accepted_of(each, self.candidates)
        if task.shares_reward:
            return accepted_of(groups, self.candidates) * each
        return accepted_of(task.batch, self.candidates)

    def signal(self, run: Run, task: Task, judged: Judged) -> Tensor:
        """1 where the image is accepted."""
        shaped = judged.shaped
        if self.rank == "prompt":
            return accepted(shaped.credit_B, judged.prompt_B, self.candidates)
        if shaped.group_B is None:
            return accepted(shaped.credit_B, torch.zeros(len(shaped.credit_B)), self.candidates)
        return accepted_groups(shaped.credit_B, shaped.group_B, self.candidates)

    def collect(self, run: Run, task: Task, iteration: int) -> Batch:
        """See `ForwardProcess`; of the images those that are accepted."""
        return shared_out(run, super().collect(run, task, iteration), iteration)

    def losses(
        self, run: Run, given: Noised, output_RCHW: Tensor, signal_R: Tensor, beside: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The pretraining loss."""
        return denoising_loss(output_RCHW, given.target_BCHW.to(output_RCHW.device)), {}


def accepted_of(images: int, candidates: int) -> int:
    """How many of so many are accepted: one of every `candidates`, and at least one."""
    return max(1, images // candidates)


def accepted(reward_B: Tensor, group_B: Tensor, candidates: int) -> Tensor:
    """1 for the best of each group, NaN for all others, [B]; of equal rewards the first is better."""
    signal_B = torch.full_like(reward_B, torch.nan)
    for group in group_B.unique():
        members = ((group_B == group) & reward_B.isfinite()).nonzero()[:, 0]
        best = reward_B[members].sort(descending=True, stable=True).indices
        signal_B[members[best[: accepted_of(len(members), candidates)]]] = 1.0
    return signal_B


def accepted_groups(reward_B: Tensor, group_B: Tensor, candidates: int) -> Tensor:
    """`accepted` where the images of a group share one reward: whole groups, of which images without a reward stay out. [B]."""
    valid = reward_B.isfinite()
    groups = group_B[valid].unique()
    reward_P = torch.stack([reward_B[valid & (group_B == group)][0] for group in groups])
    best = groups[accepted(reward_P, torch.zeros(len(groups)), candidates).isfinite()]
    return torch.where(valid & torch.isin(group_B, best), 1.0, torch.nan)


def variant(experiment: Experiment, model: str) -> Experiment:
    """Stable Diffusion: the paper's Table 6. The miniature: the rate of its policy gradient (ours, not tuned)."""
    method = Method(updates=5) if model == "miniature" else Method()
    plain = replace(experiment, method=method, update=only_heeded(experiment.update, method))
    if model == "miniature":
        return plain
    # Table 6: 32 pictures on a GPU where the paper's method has 16. It trains all weights; LoRA keeps the rate that it has
    lr = 3e-6 if experiment.lora is None else experiment.update.lr
    tasks = tuple(replace(task, batch=2 * task.batch) for task in experiment.tasks)
    return replace(plain, tasks=tasks, update=replace(plain.update, lr=lr))
