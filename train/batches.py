"""What an iteration asks of a task, and how good the answers are: the same for every method.

Shapes: P prompts, G images per prompt, B = P*G images of all processes (or of this one, where a docstring says local), K reward terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prompts import Prompt
from train import mixing
from train.config import Reward, Task
from train.data import image_indices, noise_seed, prompts_of
from train.mixing import Pool
from train.rewards import (
    CannotAnswer,
    RewardFailed,
    Shaped,
    above_others,
    check_told_apart,
    check_validity,
    score,
    shape,
)
from train.run import Run, failed_first, gather, own_stream


@dataclass(frozen=True)
class Asked:
    """This process's share of what an iteration asks: whole groups, as `config.check` has seen to it."""

    prompts: list[Prompt]
    indices: list[int]
    """Image index of each, which with text and seed decides its noise."""
    seed: int
    mine: slice
    """Its place in the whole batch."""

    @property
    def texts(self) -> list[str]:
        """Of the prompts."""
        return [prompt.text for prompt in self.prompts]


@dataclass(frozen=True)
class Judged:
    """Scores of the whole batch, on every process."""

    scores: dict[str, Tensor]
    """Of rewards and monitors, [B] by name."""
    shaped: Shaped
    prompt_B: Tensor
    """Number of the prompt that each image was drawn of."""
    invalid: int
    """Images for which a reward term does not apply."""
    mixture: dict[str, Any] | None = None
    """Of a pool: what is recorded of its mixing."""

    @property
    def valid(self) -> int:
        """Images with a reward, over all processes: what a loss is averaged over."""
        return int(self.shaped.credit_B.isfinite().sum())


def ask(run: Run, task: Task, iteration: int) -> Asked:
    """Prompts and image indices of an iteration."""
    if isinstance(task, Pool):
        return _ask_pool(run, task, iteration)
    prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, iteration)
    prompts_B = [prompt for prompt in prompts_P for _ in range(task.images_per_prompt)]
    mine = share_of(run, task)
    return Asked(prompts_B[mine], image_indices(task, iteration)[mine], noise_seed(task, run.seed), mine)


def _ask_pool(run: Run, pool: Pool, iteration: int) -> Asked:
    """This process's share of each task, one after the other; images are numbered through, so that no two share their noise."""
    asked, indices, first = list[Prompt](), list[int](), iteration * pool.batch
    for part in pool.parts:
        of_part = ask(run, part, iteration)
        asked += of_part.prompts
        indices += range(first + of_part.mine.start, first + of_part.mine.stop)
        first += part.batch
    return Asked(asked, indices, noise_seed(pool, run.seed), share_of(run, pool))


def share_of(run: Run, task: Task) -> slice:
    """Rows of the gathered batch that are this process's."""
    share = task.batch // run.world
    return slice(run.rank * share, (run.rank + 1) * share)


def judge(run: Run, task: Task, images_BCHW: Tensor, asked: Asked) -> Judged:
    """Score local images, gather the scores, and shape them into rewards.

    Raises:
        RewardFailed: on all processes, where a reward cannot be trusted.
    """
    scores = gathered_scores(run, task, images_BCHW, asked.prompts)
    score_BK = torch.stack([scores[term.scorer] for term in task.rewards], 1)
    if isinstance(task, Pool):
        part_B = mixing.part_of(task, run.world)
        check_told_apart(run.experiment, task, run.scorers, score_BK, mixing.group_of(task, part_B))
        return _judge_pool(task, scores, part_B)
    check_validity(task, score_BK)
    prompt_B = torch.arange(len(score_BK)) // task.images_per_prompt
    check_told_apart(run.experiment, task, run.scorers, score_BK, prompt_B)
    return Judged(scores, shape(task, score_BK), prompt_B, int(score_BK.isnan().any(1).sum()))


def _judge_pool(pool: Pool, scores: dict[str, Tensor], part_B: Tensor) -> Judged:
    group_B = mixing.group_of(pool, part_B)
    credits, means, invalid = [], {}, 0
    for number, part in enumerate(pool.parts):
        (term,) = part.rewards
        own_B, score_B = part_B == number, scores[term.scorer]
        check_validity(part, score_B[own_B, None])
        invalid += int(score_B[own_B].isnan().sum())
        shaped = shape(replace(part, rewards=(Reward(term.scorer),)), score_B[own_B, None])
        means[part.name] = mean_of(shaped.reported)
        credits.append(_credit(part, shaped, score_B, own_B, group_B))
    weight_K = torch.tensor([part.rewards[0].weight for part in pool.parts])
    part_BK = mixing.mixed(torch.stack(credits, 1), weight_K, group_B, pool.mixing)
    names = [part.name for part in pool.parts]
    mixture = {
        "task_rewards": means,
        "shares": dict(zip(names, mixing.shares(part_BK), strict=True)),
        "correlations": {
            f"{names[i]}~{names[j]}": value for (i, j), value in mixing.correlations(part_BK).items()
        },
    }
    reported = torch.tensor([value for value in means.values() if value is not None])
    return Judged(scores, Shaped(mixing.added(part_BK), None, reported), group_B, invalid, mixture)


def _credit(part: Task, shaped: Shaped, score_B: Tensor, own_B: Tensor, group_B: Tensor) -> Tensor:
    """Credit of a task's reward for every image of the pool, [B]: parity of its own groups, any other of all images that it applies to."""
    if part.shaping == "parity":
        credit_B = torch.full_like(score_B, torch.nan)
        credit_B[own_B] = shaped.credit_B
        return credit_B
    return above_others(score_B, group_B) if part.baseline == "group" else score_B


def gathered_scores(
    run: Run, task: Task, images_BCHW: Tensor, prompts_B: Sequence[Prompt]
) -> dict[str, Tensor]:
    """Rewards and monitors of the whole batch, in the order of its images, on every process.

    Raises:
        RewardFailed: on all processes, where a scorer failed on one.
    """
    names = task.scorers
    failure: RewardFailed | None = None
    local: dict[str, Tensor] = {}
    try:
        for name in names:
            with own_stream(run, name):
                local[name] = score(name, run.scorers[name], images_BCHW, prompts_B, at_once(run))
    except RewardFailed as reason:
        failure = reason
    raise_where_any_failed(run, failure)
    score_BN = gather(run, torch.stack([local[name] for name in names], 1))
    return dict(zip(names, score_BN.unbind(1), strict=True))


def at_once(run: Run) -> int | None:
    """Images that a scorer is given: on a GPU no more than the denoiser, to bound memory; on a CPU all (None), which scorers cut themselves."""
    on_gpu = run.accelerator.device.type == "cuda"
    return run.experiment.sampling.micro_batch if on_gpu else None


def raise_where_any_failed(run: Run, failure: RewardFailed | None) -> None:
    """Stop every process where a reward has failed on one: the others would wait for what it does next. All must ask.

    Args:
        run: of this process.
        failure: of this process, None where there is none.

    Raises:
        RewardFailed: this process's own, else that of the first that has one; what would fail again (`CannotAnswer`) stays so, with its scorer.
    """
    first = failed_first(run, failure)
    if first is None:
        return
    rank, message = first
    names = sorted(run.scorers)
    mine = names.index(failure.scorer) if isinstance(failure, CannotAnswer) else -1
    theirs = int(gather(run, torch.tensor([mine]))[rank])
    if failure is not None:
        raise failure
    raise RewardFailed(message) if theirs < 0 else CannotAnswer(message, names[theirs])


def reward_report(task: Task, judged: Judged, advantage_B: Tensor) -> dict[str, Any]:
    """How good the samples are. `reward_mean` is over images, for parity over groups, and for a pool over its tasks."""
    reported, scores = judged.shaped.reported, judged.scores
    valid = reported[reported.isfinite()]
    return {
        "reward_mean": mean_of(valid),
        "reward_std": float(valid.std()) if len(valid) > 1 else None,
        "reward_n": len(valid),
        "invalid": judged.invalid,
        "rewards": {term.scorer: mean_of(scores[term.scorer]) for term in task.rewards},
        "monitors": {name: mean_of(scores[name]) for name in task.monitors},
        "advantage_max": float(advantage_B.abs().max()),
        **(judged.mixture or {}),
    }


def mean_of(value_B: Tensor) -> float | None:
    """Mean of the values there are; None, which JSON has, where there are none."""
    valid = value_B[value_B.isfinite()]
    return float(valid.double().mean()) if len(valid) else None
