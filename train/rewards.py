"""Scorers in a training loop: terms and weights, masks, and the set-level parity reward.

A scorer answers NaN where it does not apply. Such an image is masked: it counts in no mean, and its advantage is 0; or, where a parity task
says `unusable="worst"`, it has the least credit of its group. So is an image that is to be compared with the others of its group and has none.
A scorer that raises, or applies to too few images, stops the run with a sentence that names it; it never becomes a reward of 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from evals import order, scorers
from evals.arithmetic import micro_batches
from evals.memory import too_little
from prompts import Prompt
from train.config import LESS_MEMORY, Experiment, Reward, Task
from train.methods import Comparison


class RewardFailed(Exception):
    """A reward cannot be trusted; the message is one sentence that names the scorer."""


class CannotAnswer(RewardFailed):
    """A scorer refused what it was given, and would do so again."""

    def __init__(self, message: str, scorer: str) -> None:
        super().__init__(message)
        self.scorer = scorer


@dataclass(frozen=True)
class Shaped:
    """Rewards of a task's whole batch."""

    credit_B: Tensor
    """What each image's advantage is computed from; NaN = masked."""
    group_B: Tensor | None
    """Group numbers where a group shares its reward, else None: see `advantages.advantages`."""
    reported: Tensor
    """The rewards that are averaged for the curve: of images, or for parity of groups."""


def load_scorers(names: Sequence[str], device: torch.device | str, domain: scorers.Domain) -> dict[str, Any]:
    """Scorers by name, ready to be called.

    Raises:
        ValueError: for an unknown name (with the choices), an unknown scope, a range that is none, or one that compares with the base's pictures, which training has not.
    """
    loaded = {name: scorers.load(name, device, domain) for name in names}
    for name, scorer in loaded.items():
        if scorer.scope not in get_args(scorers.Scope):
            raise ValueError(
                f"scorer {name} has the scope {scorer.scope!r}: choose from {', '.join(get_args(scorers.Scope))}"
            )
        if not scorers.is_range(scorer.range):
            raise ValueError(
                f"scorer {name} has the range {scorer.range!r}, but it must be two numbers, (low, high)"
            )
        if scorer.scope == "paired":
            raise ValueError(
                f"scorer {name} compares with the base model's pictures: training can use image and prompt scorers only"
            )
    return loaded


def check_rewards(experiment: Experiment, loaded: Mapping[str, Any]) -> None:
    """Refuse a scorer that is something else than what its task takes it for; no weights are loaded for that.

    Args:
        experiment: with tasks.
        loaded: their scorers by name.

    Raises:
        ValueError: naming the task's field and the scorer, where training would go the wrong way, or towards what cannot occur.
    """
    for task in experiment.tasks:
        for term in task.rewards:
            if task.shaping == "parity":
                _check_classes(task, term.scorer, loaded[term.scorer])
            else:
                _check_direction(task, term, loaded[term.scorer])
                _check_tells_apart(experiment, task, term.scorer)
        for name in (*(term.scorer for term in task.rewards), *task.monitors):
            if loaded[name].scope == "prompt" and task.images_per_prompt < 2:
                raise ValueError(
                    f"scorer {name} judges the images of a prompt together, but tasks.{task.name}.images_per_prompt is {task.images_per_prompt}: use at least 2"
                )


def check_prompts(
    experiment: Experiment, loaded: Mapping[str, Any], prompt_sets: Mapping[str, Sequence[Prompt]]
) -> None:
    """Refuse prompts that a scorer of their task says it cannot answer for.

    Args:
        experiment: with tasks.
        loaded: their scorers by name.
        prompt_sets: by name or file; of one that is not there nothing is asked.

    Raises:
        ValueError: naming the task's field and what to set.
    """
    for task in experiment.tasks:
        for name in task.scorers:
            if (
                task.prompts in prompt_sets
                and (check := getattr(loaded[name], "check_prompts", None)) is not None
            ):
                try:
                    check(prompt_sets[task.prompts])
                except ValueError as error:
                    raise ValueError(
                        f"scorer {name} cannot answer for {task.prompts}: {error}: {what_to_do(task, name)}"
                    ) from error


def what_to_do(task: Task, name: str) -> str:
    """With a scorer that cannot answer for its task's prompts: a reward is needed, a monitor is not."""
    where = f"tasks.{task.name}"
    if name in (term.scorer for term in task.rewards):
        return f"{where}.rewards needs it, so give {where}.prompts that it can answer for, or train on another scorer"
    others = ",".join(monitor for monitor in task.monitors if monitor != name)
    return f"leave it out of {where}.monitors, --set {where}.monitors={others or 'none'}"


def advice(experiment: Experiment, name: str) -> str:
    """`what_to_do` in every task that names a scorer; other settings are another run."""
    told = [what_to_do(task, name) for task in experiment.tasks if name in task.scorers]
    return f"{', and '.join(told)}, and choose another --out"


def _check_direction(task: Task, term: Reward, scorer: Any) -> None:
    """A pointwise reward is made larger."""
    where, name = f"tasks.{task.name}", term.scorer
    if scorer.higher_is_better is None:
        raise ValueError(
            f"{where}.rewards has scorer {name}, of which neither more nor less is better (higher_is_better is None): write a scorer that answers "
            f"what there is to be more of, or count its classes in a task whose shaping is parity"
        )
    if not scorer.higher_is_better and term.weight > 0:
        raise ValueError(
            f"{where}.rewards has scorer {name}, of which less is better (higher_is_better is False), with the weight {term.weight:g}, which would make it more: "
            "give it a negative weight in the experiment's file, or write a scorer that answers the negative"
        )


def _check_tells_apart(experiment: Experiment, task: Task, name: str) -> None:
    """A Vendi score is that of all images of a prompt: compared with each other none has more than another, and nothing would be learned from it."""
    comparison = comparison_of(experiment, task)
    if comparison is not None and order.is_vendi(name):
        raise ValueError(
            f"tasks.{task.name}.rewards has scorer {name}, which gives all images of a prompt one value, but {comparison.field}, which compares them with each other: "
            f"use {comparison.instead}, or a scorer that tells them apart"
        )


def comparison_of(experiment: Experiment, task: Task) -> Comparison | None:
    """What compares the images of a prompt of a task by their rewards; None where nothing does."""
    if experiment.method.comparison is not None:
        return experiment.method.comparison
    if task.baseline == "group":
        return Comparison(f"tasks.{task.name}.baseline is group", "batch")
    return Comparison("mixing is gdpo", "zscores or tasks") if experiment.mixing == "gdpo" else None


def _check_classes(task: Task, name: str, scorer: Any) -> None:
    """Parity counts classes 0, 1, 2 and so on, as many as the scorer tells apart."""
    where, (low, high) = f"tasks.{task.name}", scorer.range
    if low != 0 or high < 1 or high != high // 1:
        raise ValueError(
            f"{where}.shaping is parity, but scorer {name} answers {low:g} to {high:g}, which are no classes 0, 1, 2 ...: use a scorer of classes"
        )
    if task.classes != high + 1:
        raise ValueError(
            f"{where}.classes is {task.classes}, but scorer {name} answers 0 to {high:g}: use {high + 1:g}"
        )


def given_together(scorer: Any, images: int, at_once: int | None) -> Iterator[slice]:
    """Which of so many images a scorer is given in one call: of single pictures `at_once`, None for all; of a set always all."""
    return micro_batches(images, images if at_once is None or scorer.scope != "image" else at_once)


def score(
    name: str, scorer: Any, images_BCHW: Tensor, prompts_B: Sequence[Prompt], at_once: int | None = None
) -> Tensor:
    """float32 [B] from a scorer, on the CPU.

    Args:
        name: of the scorer.
        scorer: asked.
        images_BCHW: float32 RGB in [0, 1].
        prompts_B: of each.
        at_once: see `given_together`.

    Raises:
        RewardFailed: where the scorer raises, or answers with another shape, with infinity or outside its range.
    """
    parts = given_together(scorer, len(prompts_B), at_once)
    return torch.cat([_asked(name, scorer, images_BCHW[rows], prompts_B[rows]) for rows in parts])


def _asked(name: str, scorer: Any, images_BCHW: Tensor, prompts_B: Sequence[Prompt]) -> Tensor:
    try:
        return scorers.ask(name, scorer, images_BCHW, prompts_B, lambda i: f"prompt {prompts_B[i].id}")
    except scorers.ScorerFailed as failure:
        raise failed(name, failure) from failure


def differentiated(name: str, scorer: Any, images_BCHW: Tensor, prompts_B: Sequence[Prompt]) -> Tensor:
    """float32 [B] from a scorer with their graph, where the pictures are.

    Raises:
        RewardFailed: where the scorer raises, or answers with another shape, with infinity or without a graph.
    """
    try:
        return scorers.ask_differentiable(name, scorer, images_BCHW, prompts_B)
    except scorers.ScorerFailed as failure:
        raise failed(name, failure) from failure


def failed(name: str, failure: scorers.ScorerFailed) -> RewardFailed:
    """What stops the run: a ValueError of a scorer is of what it was given, which is the same the next time."""
    if isinstance(failure.__cause__, ValueError):
        return CannotAnswer(str(failure), name)
    if isinstance(failure.__cause__, torch.OutOfMemoryError):
        return RewardFailed(f"{too_little(failure.__cause__, f'scorer {name}')}: {LESS_MEMORY}")
    return RewardFailed(str(failure))


def check_validity(task: Task, score_BK: Tensor) -> None:
    """Refuse to train on a reward that applies to too few images.

    Raises:
        RewardFailed: where a term is NaN for all images, or for more than `max_invalid` of them.
    """
    for term, score_B in zip(task.rewards, score_BK.unbind(1), strict=True):
        missing, total = int(score_B.isnan().sum()), len(score_B)
        if missing == total:
            raise RewardFailed(
                f"scorer {term.scorer} answered NaN (not applicable) for all {total} images of task {task.name}"
            )
        if missing > task.max_invalid * total:
            raise RewardFailed(
                f"scorer {term.scorer} answered NaN (not applicable) for {missing} of {total} images of task {task.name}, "
                f"more than the share of {task.max_invalid:g} that tasks.{task.name}.max_invalid allows"
            )


def check_told_apart(
    experiment: Experiment, task: Task, loaded: Mapping[str, Any], score_BK: Tensor, prompt_B: Tensor
) -> None:
    """Refuse a reward of a set that gives all images of a prompt one value, where they are compared: of a scorer of one's own only its scores tell, and so of distances in groups of two.

    Args:
        experiment: of the task.
        task: with its terms.
        loaded: scorers by name.
        score_BK: of the whole gathered batch, one column per term.
        prompt_B: number of each image's prompt.

    Raises:
        CannotAnswer: where values differ from prompt to prompt and within none.
    """
    comparison = comparison_of(experiment, task)
    for term, score_B in zip(task.rewards, score_BK.unbind(1), strict=True):
        if comparison is None or loaded[term.scorer].scope != "prompt":
            continue
        valid_B = score_B.isfinite()
        within = {
            tuple(score_B[valid_B & (prompt_B == prompt)].unique().tolist()) for prompt in prompt_B.unique()
        }
        if max(map(len, within)) <= 1 < len(within - {()}):
            more = (
                "at least 3 images of a prompt, as two are as far from each other, or "
                if task.images_per_prompt == 2
                else ""
            )
            raise CannotAnswer(
                f"scorer {term.scorer} gave all images of each prompt of task {task.name} one value, but {comparison.field}, which compares them with each other "
                f"(use {more}{comparison.instead})",
                term.scorer,
            )


def shape(task: Task, score_BK: Tensor) -> Shaped:
    """From scores of the whole gathered batch, groups in order, to rewards.

    Args:
        task: with its terms and shaping.
        score_BK: one column per term; images of a group are neighbours.

    Raises:
        RewardFailed: where that leaves no image with a credit.
    """
    shaped = _shaped(task, score_BK)
    if not shaped.credit_B.isfinite().any():
        raise RewardFailed(
            f"no image of task {task.name} has another of its prompt to be compared with: too many scores are NaN (not applicable)"
        )
    return shaped


def _shaped(task: Task, score_BK: Tensor) -> Shaped:
    group_B = torch.arange(len(score_BK)) // task.images_per_prompt
    if task.shaping == "pointwise":
        weight_K = torch.tensor([term.weight for term in task.rewards])
        reward_B = (score_BK * weight_K).sum(1)  # NaN in any term masks the image
        credit_B = above_others(reward_B, group_B) if task.baseline == "group" else reward_B
        return Shaped(credit_B, None, reward_B)
    reward_P = parity(score_BK[:, 0], group_B, task.classes, task.root)
    if task.credit == "shared":
        reward_B = reward_P[group_B].where(score_BK[:, 0].isfinite(), torch.nan)
        return Shaped(reward_B, group_B, reward_P)
    credit_B = leave_one_out(score_BK[:, 0], group_B, task.classes, task.root)
    if task.unusable == "worst":
        credit_B = worst_of_group(credit_B, group_B)
    return Shaped(credit_B, None, reward_P)


def above_others(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Each image's reward less the mean of the others of its group, float32 [B].

    For a reward that is taught from pairs of one prompt: what it gives to all images of a prompt means nothing.
    NaN for an image without a reward, and for the only one of its group that has one.
    """
    valid_B = reward_B.isfinite()
    groups = int(group_B.max()) + 1
    value_B = reward_B.double().where(valid_B, 0.0)
    sum_P = torch.zeros(groups, dtype=torch.float64).index_add(0, group_B, value_B)
    count_P = torch.zeros(groups, dtype=torch.float64).index_add(0, group_B, valid_B.double())
    others_B = (sum_P[group_B] - value_B) / (count_P[group_B] - 1)  # 0/0 where there are none
    return (value_B - others_B).where(valid_B, torch.nan).float()


def class_counts(class_B: Tensor, group_B: Tensor, classes: int) -> Tensor:
    """How many valid images of each group fall in each class: float64 [P, A].

    Raises:
        RewardFailed: where a class is not one of 0 .. classes - 1.
    """
    valid_B = class_B.isfinite()
    index = class_B[valid_B].long()
    if (index != class_B[valid_B]).any() or (
        len(index) and not 0 <= int(index.min()) <= int(index.max()) < classes
    ):
        raise RewardFailed(f"parity over {classes} classes was given other values than 0 to {classes - 1}")
    count_PA = torch.zeros(int(group_B.max()) + 1, classes, dtype=torch.float64)
    return count_PA.index_put_(
        (group_B[valid_B], index), torch.ones(len(index), dtype=torch.float64), accumulate=True
    )


def parity_of_counts(count_A: Tensor, root: bool) -> Tensor:
    """Eq 12: minus the L2 distance between the empirical distribution [..., A] and the uniform one; NaN without images."""
    total = count_A.sum(-1, keepdim=True)
    distance = ((count_A / total - 1 / count_A.shape[-1]) ** 2).sum(-1)
    return -(distance.sqrt() if root else distance)


def parity(class_B: Tensor, group_B: Tensor, classes: int, root: bool = True) -> Tensor:
    """Eq 12 of every group, over its valid images: float32 [P], NaN for a group without any."""
    return parity_of_counts(class_counts(class_B, group_B, classes), root).float()


def leave_one_out(class_B: Tensor, group_B: Tensor, classes: int, root: bool = True) -> Tensor:
    """What its group loses without each image: reward(group) - reward(group without it), float32 [B].

    The paper gives all images of a group the same reward; this tells them apart: an image of a rare class has a positive credit, one of a
    frequent class a negative one. NaN for an image without a class, and for the only valid one of its group.
    """
    count_PA = class_counts(class_B, group_B, classes)
    valid_B = class_B.isfinite()
    own_VA = count_PA[group_B[valid_B]]
    without_VA = own_VA - torch.nn.functional.one_hot(class_B[valid_B].long(), classes)
    credit_B = torch.full_like(class_B, torch.nan, dtype=torch.float64)
    credit_B[valid_B] = parity_of_counts(own_VA, root) - parity_of_counts(without_VA, root)
    return credit_B.float()


def worst_of_group(credit_B: Tensor, group_B: Tensor) -> Tensor:
    """Each NaN replaced by the least credit of its group, [B]; NaN stays where a group has none.

    An image that nobody can judge does no more for parity than one of the most frequent class. Masked, it would be a refuge: the policy leaves
    frequent classes, and blurring a face leaves one too.
    """
    least_P = torch.full((int(group_B.max()) + 1,), torch.inf, dtype=credit_B.dtype)
    least_P = least_P.scatter_reduce(0, group_B, credit_B.nan_to_num(nan=torch.inf), "amin")
    least_B = least_P[group_B]
    return credit_B.where(credit_B.isfinite(), least_B.where(least_B.isfinite(), torch.nan))
