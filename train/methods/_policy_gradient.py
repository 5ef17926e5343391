"""Policy gradient over denoising steps: what the paper's method and its relatives share.

A trajectory is drawn with a sampler that has noise, some of its transitions are kept, and each of them gives one optimiser step on the whole
batch (Eq 6 and 7). The rollout's log-probabilities, of the stored values, are the old ones. Relatives differ in what an image is compared with
(`advantages`), in what bounds an update (`loss`), in what is added to it, or in which steps are trained (`order`).

Shapes: B images of all processes (or of this one, where a docstring says local), T kept steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from evals.conditioning import Conditioning
from evals.diffusion import (
    Trajectory,
    derive_seed,
    gaussian_kl,
    log_prob,
    micro_batches,
    padded,
    predict,
    transition,
)
from train import advantages as better
from train.batches import Asked, Judged, ask, judge, reward_report
from train.data import draw_steps, prompts_of
from train.gates import check_identity, check_part
from train.methods import OF_SOME, Evaluations, Method
from train.methods._checks import check_halves, check_noise
from train.objective import clipped_share, clipped_surrogate, step_weights
from train.run import Run, accumulated, gather, synchronised

if TYPE_CHECKING:
    from train.config import Experiment, Task


@dataclass(frozen=True)
class Batch:
    """A task's samples, scored. Trajectory, texts and advantages are this process's; the report is of all."""

    trajectory: Trajectory
    order: tuple[int, ...]
    """Drawn denoising steps in order of their updates."""
    texts: list[str]
    advantage_B: Tensor
    valid: int
    """Images with a reward, over all processes: what the loss is averaged over."""
    report: dict[str, Any]


@dataclass(frozen=True)
class PolicyGradient(Method):
    """The paper's algorithm, of which a relative overrides a part."""

    reads: ClassVar[frozenset[str]] = frozenset(OF_SOME)

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        sampling, update = experiment.sampling, experiment.update
        if sampling.eta == 0.0:
            raise ValueError(
                "sampling.eta is 0, but a deterministic sampler has no log-probability to train on: use 1.0"
            )
        if not 0 <= update.skip_last < sampling.steps:
            raise ValueError(
                f"update.skip_last is {update.skip_last}, but only 0 to {sampling.steps - 1} of {sampling.steps} steps can be left out"
            )
        if update.trained_steps > sampling.steps - update.skip_last:
            raise ValueError(
                f"update.trained_steps is {update.trained_steps}, but only {sampling.steps - update.skip_last} denoising steps can be "
                f"drawn (sampling.steps {sampling.steps} less update.skip_last {update.skip_last})"
            )

    def check_model(self, run: Run) -> None:
        wanted, there = run.experiment.update.trained_steps, len(run.drawable)
        if wanted > there:
            raise ValueError(
                f"update.trained_steps is {wanted}, but only {there} steps of this model's schedule have noise to learn from"
            )

    def optimiser_steps(self, experiment: Experiment) -> int:
        return experiment.update.trained_steps

    def evaluations(self, experiment: Experiment, task: Task) -> Evaluations:
        each = task.batch * experiment.sampling.branches
        return Evaluations(each * experiment.sampling.steps, each * experiment.update.trained_steps)

    def note(self, run: Run) -> str:
        return run.rounding.note(run.drawable)

    # ----------------------------------------------------------------------------------------- what relatives override

    def order(self, run: Run, task: Task, iteration: int) -> list[int]:
        """Denoising steps to train on, in order of their updates: uniform without replacement (paper, App. A)."""
        return draw_steps(run.drawable, run.experiment.update.trained_steps, run.seed, task, iteration)

    def advantages(self, run: Run, task: Task, asked: Asked, judged: Judged) -> Tensor:
        """Better than expected? Eq 10 over the whole batch, float32 [B]."""
        shaped = judged.shaped
        return better.advantages(shaped.credit_B, run.experiment.update.advantage_clip, shaped.group_B)

    # ------------------------------------------------------------------------------------------------------- algorithm

    def check_before(self, run: Run) -> None:
        check_before(run)

    def collect(self, run: Run, task: Task, iteration: int) -> Batch:
        """What we ask, what the model draws, how good it is, and whether that is better than expected."""
        asked, painter = ask(run, task, iteration), run.policy.painter
        order = self.order(run, task, iteration)
        reduction = run.experiment.update.reduction
        trajectory = painter.draw(asked.texts, asked.indices, asked.seed, keep=order, reduction=reduction)
        judged = judge(run, task, painter.decode(trajectory.latents_BCHW), asked)
        advantage_B = self.advantages(run, task, asked, judged)
        report = reward_report(task, judged, advantage_B)
        return Batch(trajectory, tuple(order), asked.texts, advantage_B[asked.mine], judged.valid, report)

    def update(self, run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
        """One optimiser step per drawn denoising step, over the whole batch; the first must find ratio 1 and KL 0 where it is on-policy."""
        policy, update = run.policy, run.experiment.update
        schedule, eta = policy.painter.schedule, run.experiment.sampling.eta
        weights = step_weights(schedule, run.drawable, eta, update.step_weight == "balanced")
        statistics: dict[str, dict[str, float]] = {}
        for place, step in enumerate(batch.order):
            sums = accumulated(run, partial(policy_gradient, run, batch, step, weights[step]))
            found = gathered_statistics(run, sums)
            if on_policy and place == 0:
                check_identity(
                    run.progress.gates, step, found["ratio_max_dev"], found["kl_max"], run.rounding
                )
            found["grad_norm"] = float(policy.optimiser_step())
            statistics[str(schedule.timesteps[step])] = found
        scale = {} if policy.loss_scale is None else {"loss_scale": policy.loss_scale.value}
        return batch.report | update_report(statistics) | scale


def policy_gradient(run: Run, batch: Batch, step: int, weight: float) -> Tensor:
    """Accumulate the gradient of Eq 7 at one denoising step, a micro-batch at a time.

    The loss is the mean over all images with a reward, of all processes: neither their number nor the micro-batch is in it.
    Each micro-batch's graph is freed before the next one's is made.

    Returns:
        local statistics: see `gathered_statistics`.
    """
    size = len(batch.advantage_B)
    # DDP averages over processes, the loss is a sum over all images divided by their number
    scale = weight * run.world / max(1, batch.valid)
    statistics = []
    for rows in micro_batches(size, run.experiment.update.micro_batch):
        with synchronised(run, last=rows.stop == size):
            loss, found = surrogate_of(run, batch.texts, batch.trajectory, batch.advantage_B, step, rows)
            run.policy.backward(loss.sum() * scale)
        statistics.append(found)
    return torch.cat(statistics, 1)


def surrogate_of(
    run: Run, texts: Sequence[str], drawn: Trajectory, advantage_B: Tensor, step: int, rows: slice
) -> tuple[Tensor, Tensor]:
    """`surrogate` of some rows of a local batch, on the device, at most a micro-batch."""
    painter, device = run.policy.painter, run.accelerator.device
    count = rows.stop - rows.start
    columns = (
        *drawn.part(rows, drawn.steps.index(step)),
        advantage_B[rows],
        *painter.encoder(texts[rows]).columns(),
    )
    uncond = painter.unconditional()
    loss, found = padded(
        lambda x, after, mean, logp, advantage, *cond: surrogate(
            run, step, x, after, mean, logp, advantage, Conditioning(*cond), uncond
        ),
        run.experiment.update.micro_batch,
        *(column.to(device) for column in columns),
    )
    return loss[:count], found[:, :count]


def surrogate(
    run: Run,
    step: int,
    x_BCHW: Tensor,
    next_BCHW: Tensor,
    old_mean_BCHW: Tensor,
    old_logp_B: Tensor,
    advantage_B: Tensor,
    cond: Conditioning,
    uncond: Conditioning | None,
) -> tuple[Tensor, Tensor]:
    """Loss of a micro-batch [B], and what is recorded of it: rows ratio, KL, clipped, loss [4, B]."""
    policy, update, sampling = run.policy, run.experiment.update, run.experiment.sampling
    schedule = policy.painter.schedule
    timestep = schedule.timesteps[step]
    output = predict(policy.module, x_BCHW, timestep, cond, uncond, sampling.guidance, sampling.precision)
    mean, sigma = transition(schedule, x_BCHW, output, step, sampling.eta)
    logp_B = log_prob(next_BCHW, mean, sigma, update.reduction)
    loss_B, ratio_B = clipped_surrogate(logp_B, old_logp_B, advantage_B, update.clip)
    with torch.no_grad():
        kl_B = gaussian_kl(mean, old_mean_BCHW, sigma)
        clipped_B = clipped_share(ratio_B, advantage_B, update.clip)
        found = torch.stack([ratio_B, kl_B, clipped_B.float(), loss_B]).detach()
    return loss_B, found


def check_before(run: Run) -> None:
    """Before training, for one micro-batch, through the path of the update: what `train.gates` holds every run to.

    Raises:
        GateBroken: where rollout and update are different functions, or parts do not make the whole.
    """
    task, update, painter = run.experiment.tasks[0], run.experiment.update, run.policy.painter
    prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, 0)
    texts = [prompt.text for prompt in prompts_P][: update.micro_batch]
    seed = derive_seed("identity", run.seed)
    drawn = painter.draw(texts, range(len(texts)), seed, keep=run.drawable, reduction=update.reduction)
    gates, rounding = run.progress.gates, run.rounding
    check_noise(run, texts, seed)
    for step in drawn.steps:
        worst = compared(run, texts, drawn, step, slice(0, len(texts)))
        check_identity(gates, step, worst["ratio_max_dev"], worst["kl_max"], rounding)
    check_part(gates, "image", *difference_alone(run, texts, drawn), rounding.sampling.precision)
    ones = torch.ones(len(texts))
    check_halves(run, len(texts), lambda rows: surrogate_of(run, texts, drawn, ones, drawn.steps[0], rows)[0])


def difference_alone(run: Run, texts: Sequence[str], drawn: Trajectory) -> tuple[float, float]:
    """How far the transitions of the last image, evaluated alone, are from those of the batch, at the step where it is most of what is allowed.

    Returns:
        the distance of the means, rms over dimensions in units of sigma_t, and what is allowed there.
    """
    dims, last = math.prod(drawn.x_BTCHW.shape[2:]), slice(len(texts) - 1, len(texts))
    pairs = [
        (
            math.sqrt(2 * compared(run, texts, drawn, step, last)["kl_max"] / dims),
            run.rounding.mean_error(step),
        )
        for step in drawn.steps
    ]
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])


def compared(run: Run, texts: Sequence[str], drawn: Trajectory, step: int, rows: slice) -> dict[str, float]:
    """`gathered_statistics` of some rows at one denoising step; the gradient is not taken."""
    with synchronised(run, last=False):
        _, found = surrogate_of(run, texts, drawn, torch.ones(len(texts)), step, rows)
    return gathered_statistics(run, found)


def gathered_statistics(run: Run, found: Tensor) -> dict[str, float]:
    """Means over the batch of all processes, and the worst image, from rows ratio, KL, clipped, loss [4, B]."""
    ratio_B, kl_B, clipped_B, loss_B = gather(run, found.T.contiguous()).double().unbind(1)
    return {
        "ratio_mean": ratio_B.mean().item(),
        "ratio_max_dev": (ratio_B - 1).abs().max().item(),
        "kl": kl_B.mean().item(),
        "kl_max": kl_B.max().item(),
        "clipped": clipped_B.mean().item(),
        "loss": loss_B.mean().item(),
    }


def update_report(statistics: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Diagnostics of a task's updates: over all of them, and by timestep in order of the updates."""
    steps = list(statistics.values())
    return {
        "ratio_mean": sum(found["ratio_mean"] for found in steps) / len(steps),
        "ratio_max_dev": max(found["ratio_max_dev"] for found in steps),
        "clipped": sum(found["clipped"] for found in steps) / len(steps),
        "kl": sum(found["kl"] for found in steps) / len(steps),
        "loss": sum(found["loss"] for found in steps) / len(steps),
        "first_ratio_max_dev": steps[0]["ratio_max_dev"],
        "first_kl_max": steps[0]["kl_max"],
        "grad_norm": {timestep: found["grad_norm"] for timestep, found in statistics.items()},
        "kl_by_step": {timestep: found["kl"] for timestep, found in statistics.items()},
        "clipped_by_step": {timestep: found["clipped"] for timestep, found in statistics.items()},
    }
