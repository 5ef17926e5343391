"""Policy gradient over denoising steps: what the paper's method and its relatives share.

A trajectory is drawn with a sampler that has noise, some of its transitions are kept, and each of them gives one optimiser step on the whole
batch (Eq 6 and 7). The rollout's log-probabilities, of the stored values, are the old ones. Relatives differ in what an image is compared with
(`compared`; `GroupRelative`: the others of its prompt), in what bounds an update or is added to it (`loss`), in how much a step counts
(`weights`), or in which steps are trained (`order`) and have noise (`noisy`).

Shapes: B images of all processes (or of this one, where a docstring says local), T kept steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from evals.arithmetic import micro_batches, padded
from evals.conditioning import Conditioning
from evals.diffusion import Trajectory, derive_seed, gaussian_kl, log_prob, predict, transition
from train import advantages as better
from train.batches import Judged, ask, judge, reward_report
from train.data import draw_steps, prompts_of
from train.gates import Rounding, check_identity, check_part
from train.methods import OF_SOME, PAPERS, Comparison, Evaluations, Method
from train.methods._checks import check_halves, check_noise
from train.mixing import Pool
from train.objective import clipped_share, clipped_surrogate, step_weights
from train.run import Run, accumulated, gather, synchronised

if TYPE_CHECKING:
    from train.config import Experiment, Task


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Compared(NamedTuple):
    """How much better each image is than expected, the whole batch on every process."""

    advantage_B: Tensor
    """float32, 0 where there is no reward."""
    report: Mapping[str, Any] = NOTHING
    """What metrics.jsonl records of the comparison."""
    memory: Mapping[str, Any] = NOTHING
    """What `Progress.memory` holds of it once the batch has been used."""


class Seen(NamedTuple):
    """A micro-batch at one denoising step, as a loss sees it; on the device."""

    sigma: float
    """Standard deviation of the transition."""
    next_BCHW: Tensor
    """Latent after the step, the action."""
    mean_BCHW: Tensor
    """Of the transition under the policy now, with a graph."""
    old_mean_BCHW: Tensor
    """Of the transition that drew the action."""
    logp_B: Tensor
    """Of the action under the policy now, with a graph."""
    old_logp_B: Tensor
    """Of it when it was drawn."""
    kl_B: Tensor
    """Exact KL to the policy that drew, in nats; without a graph."""
    advantage_B: Tensor
    """0 for masked images."""
    more: tuple[Tensor, ...]
    """What the method's `columns` gave."""


class Loss(NamedTuple):
    """Of a micro-batch."""

    loss_B: Tensor
    silenced_B: Tensor
    """Bool: images that the bound on the update has left without a gradient."""
    found: tuple[Tensor, ...] = ()
    """What the method's `records` name, each [B]."""


@dataclass(frozen=True)
class Batch:
    """A task's samples, scored. Trajectory, texts and advantages are this process's; the report is of all."""

    trajectory: Trajectory
    order: tuple[int, ...]
    """Drawn denoising steps in order of their updates."""
    texts: list[str]
    advantage_B: Tensor
    valid_B: Tensor
    """Bool: images with a reward."""
    valid: int
    """Their number, over all processes: what the loss is averaged over."""
    report: dict[str, Any]
    memory: Mapping[str, Any] = field(default_factory=dict)
    """See `Compared`."""
    base_mean_BTCHW: Tensor | None = None
    """Means of the base's transitions from the same latents, for methods that compare with it; CPU float32."""


@dataclass(frozen=True)
class PolicyGradient(Method):
    """The paper's algorithm, of which a relative overrides a part."""

    reads: ClassVar[frozenset[str]] = frozenset(OF_SOME)
    records: ClassVar[tuple[str, ...]] = ()
    """Names of what its loss finds beside the ratio, the KL and the clipped: means over the batch, in metrics.jsonl over the steps and by step."""

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        sampling, update = experiment.sampling, experiment.update
        if sampling.eta == 0.0:
            raise ValueError(
                "sampling.eta is 0, but a deterministic sampler has no log-probability to train on: use 1.0"
            )
        if sampling.eta < (least := torch.finfo(torch.float32).eps):
            raise ValueError(
                f"sampling.eta is {sampling.eta}, but below {least:.1g} its noise is lost in the rounding of a latent, and there is nothing to learn from: use 1.0"
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
        return self.rounding(run).note(run.drawable)

    # ----------------------------------------------------------------------------------------- what relatives override

    def order(self, run: Run, task: Task, iteration: int) -> list[int]:
        """Denoising steps to train on, in order of their updates: uniform without replacement (paper, App. A)."""
        return draw_steps(run.drawable, run.experiment.update.trained_steps, run.seed, task, iteration)

    def noisy(self, order: Sequence[int]) -> Sequence[int] | None:
        """Steps of the rollout that have noise, given those to train on; None for all."""
        return None

    def compared(self, run: Run, task: Task, iteration: int, judged: Judged) -> Compared:
        """Better than expected? Eq 10 over the whole batch."""
        shaped, clip = judged.shaped, run.experiment.update.advantage_clip
        return Compared(better.advantages(shaped.credit_B, clip, shaped.group_B))

    def weights(self, run: Run) -> dict[int, float]:
        """How much the loss of each step counts."""
        schedule, eta = run.policy.painter.schedule, run.experiment.sampling.eta
        return step_weights(schedule, run.drawable, eta, run.experiment.update.step_weight == "balanced")

    def columns(self, batch: Batch, kept: int, rows: slice) -> tuple[Tensor, ...]:
        """What else its loss is given of some images at one kept step, a row each."""
        return ()

    def loss(self, run: Run, seen: Seen) -> Loss:
        """What is minimised: Eq 7."""
        clip = run.experiment.update.clip
        loss_B, ratio_B = clipped_surrogate(seen.logp_B, seen.old_logp_B, seen.advantage_B, clip)
        return Loss(loss_B, clipped_share(ratio_B.detach(), seen.advantage_B, clip))

    def rounding(self, run: Run) -> Rounding:
        """How far rollout and update may be apart, given what bounds an update."""
        return run.rounding

    # ------------------------------------------------------------------------------------------------------- algorithm

    def check_before(self, run: Run) -> None:
        check_before(run)

    def collect(self, run: Run, task: Task, iteration: int) -> Batch:
        """What we ask, what the model draws, how good it is, and whether that is better than expected."""
        asked, painter = ask(run, task, iteration), run.policy.painter
        order = self.order(run, task, iteration)
        reduction = run.experiment.update.reduction
        trajectory = painter.draw(
            asked.texts, asked.indices, asked.seed, keep=order, reduction=reduction, noisy=self.noisy(order)
        )
        judged = judge(run, task, painter.decode(trajectory.latents_BCHW), asked)
        advantage_B, report, memory = self.compared(run, task, iteration, judged)
        return Batch(
            trajectory,
            tuple(order),
            asked.texts,
            advantage_B[asked.mine],
            judged.shaped.credit_B.isfinite()[asked.mine],
            judged.valid,
            reward_report(task, judged, advantage_B) | dict(report),
            memory,
        )

    def update(self, run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
        """One optimiser step per drawn denoising step, over the whole batch; the first must find ratio 1 and KL 0 where it is on-policy."""
        policy, weights, rounding = run.policy, self.weights(run), self.rounding(run)
        statistics: dict[str, dict[str, float]] = {}
        for place, step in enumerate(batch.order):
            sums = accumulated(run, partial(policy_gradient, run, batch, step, weights[step]))
            found = gathered_statistics(run, sums)
            if on_policy and place == 0:
                check_identity(run.progress.gates, step, found["ratio_max_dev"], found["kl_max"], rounding)
            found["grad_norm"] = float(policy.optimiser_step())
            statistics[str(policy.painter.schedule.timesteps[step])] = found
        run.progress.memory |= batch.memory
        scale = {} if policy.loss_scale is None else {"loss_scale": policy.loss_scale.value}
        return batch.report | update_report(statistics, self.records) | scale


@dataclass(frozen=True)
class GroupRelative(PolicyGradient):
    """A relative that compares an image with the others of its prompt."""

    @property
    def comparison(self) -> Comparison:
        """Always."""
        return Comparison(f"the method is {self.name}", f"the method {PAPERS}")

    def check(self, experiment: Experiment) -> None:
        """Also groups of one, and rewards that a group shares, are refused."""
        super().check(experiment)
        refuse_group_baseline(self, experiment)
        for task in experiment.tasks:
            if task.images_per_prompt < 2:
                raise ValueError(
                    f"tasks.{task.name}.images_per_prompt is {task.images_per_prompt}, but the method {self.name} compares each image with the "
                    "others of its prompt: use at least 2, or the method ppo"
                )
        refuse_shared_reward(self, experiment)

    def compared(self, run: Run, task: Task, iteration: int, judged: Judged) -> Compared:
        clip, credit_B = run.experiment.update.advantage_clip, judged.shaped.credit_B
        if isinstance(task, Pool) and task.mixing == "gdpo":
            # each reward is relative to its prompt already; by their sum's own deviation two that agree would count no more than one (arXiv 2601.05242)
            relative_B, advantage_B = credit_B, better.normalise(credit_B)
        else:
            relative_B = advantage_B = better.group_relative(credit_B, judged.prompt_B)
        silent = better.silent_share(relative_B, judged.prompt_B)
        return Compared(advantage_B.nan_to_num(nan=0.0).clamp(-clip, clip), {"zero_std": silent})


def refuse_group_baseline(method: Method, experiment: Experiment) -> None:
    """Refuse rewards relative to the group for a method that has a comparison of its own.

    Raises:
        ValueError: naming the field.
    """
    for task in experiment.tasks:
        if task.baseline == "group":
            raise ValueError(
                f"tasks.{task.name}.baseline is group, but the method {method.name} compares images of a prompt in its own way: use batch"
            )


def refuse_shared_reward(method: Method, experiment: Experiment) -> None:
    """Refuse a set-level reward that all images of a prompt share.

    Raises:
        ValueError: naming the field and the choices.
    """
    for task in experiment.tasks:
        if task.shares_reward:
            raise ValueError(
                f"tasks.{task.name}.credit is shared, which gives all images of a prompt the same reward, but the method {method.name} tells them "
                "apart by it: use leave_one_out, or the method ppo"
            )


def in_groups(experiment: Experiment, model: str) -> Experiment:
    """An experiment whose images can be compared with others of their prompt.

    Groups of 16, or 8 on the miniature, where they are smaller: ours, as they divide the batches of every variant (Flow-GRPO: 24). Each image of a
    set has the credit of its own (`leave_one_out`).
    """
    least = 8 if model == "miniature" else 16
    grouped = (
        replace(task, images_per_prompt=max(task.images_per_prompt, least), baseline="batch")
        for task in experiment.tasks
    )
    return replace(experiment, tasks=tuple(map(with_credit_of_its_own, grouped)))


def with_credit_of_its_own(task: Task) -> Task:
    """A task in which no reward is shared."""
    return replace(task, credit="leave_one_out") if task.shares_reward else task


def method_of(run: Run) -> PolicyGradient:
    """The run's method, which is of this family."""
    method = run.experiment.method
    assert isinstance(method, PolicyGradient)
    return method


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
    method, kept, statistics = method_of(run), batch.trajectory.steps.index(step), []
    for rows in micro_batches(size, run.experiment.update.micro_batch):
        with synchronised(run, last=rows.stop == size):
            more = method.columns(batch, kept, rows)
            loss, found = surrogate_of(
                run, batch.texts, batch.trajectory, batch.advantage_B, step, rows, more
            )
            run.policy.backward(loss.sum() * scale)
        statistics.append(found)
    return torch.cat(statistics, 1)


def surrogate_of(
    run: Run,
    texts: Sequence[str],
    drawn: Trajectory,
    advantage_B: Tensor,
    step: int,
    rows: slice,
    more: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """`surrogate` of some rows of a local batch, on the device, at most a micro-batch; `more` holds these rows' columns of the method."""
    painter, device = run.policy.painter, run.accelerator.device
    count = rows.stop - rows.start
    columns = (
        *drawn.part(rows, drawn.steps.index(step)),
        advantage_B[rows],
        *more,
        *painter.encoder(texts[rows]).columns(),
    )
    uncond = painter.unconditional()
    loss, found = padded(
        lambda x, after, mean, logp, advantage, *rest: surrogate(
            run,
            step,
            x,
            after,
            mean,
            logp,
            advantage,
            rest[: len(more)],
            Conditioning(*rest[len(more) :]),
            uncond,
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
    more: tuple[Tensor, ...],
    cond: Conditioning,
    uncond: Conditioning | None,
) -> tuple[Tensor, Tensor]:
    """Loss of a micro-batch [B], and what is recorded of it: rows ratio, KL, clipped, loss, and the method's own [4 + R, B]."""
    policy, update, sampling = run.policy, run.experiment.update, run.experiment.sampling
    schedule = policy.painter.schedule
    timestep = schedule.timesteps[step]
    output = predict(policy.module, x_BCHW, timestep, cond, uncond, sampling.guidance, sampling.precision)
    mean, sigma = transition(schedule, x_BCHW, output, step, sampling.eta)
    logp_B = log_prob(next_BCHW, mean, sigma, update.reduction)
    with torch.no_grad():
        ratio_B, kl_B = (logp_B - old_logp_B).exp(), gaussian_kl(mean, old_mean_BCHW, sigma)
    seen = Seen(sigma, next_BCHW, mean, old_mean_BCHW, logp_B, old_logp_B, kl_B, advantage_B, more)
    loss_B, silenced_B, found = method_of(run).loss(run, seen)
    return loss_B, torch.stack([ratio_B, kl_B, silenced_B.float(), loss_B, *found]).detach()


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
    gates, rounding = run.progress.gates, method_of(run).rounding(run)
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
    """Means over the batch of all processes, and the worst image, from rows ratio, KL, clipped, loss, and the method's own [4 + R, B]."""
    ratio_B, kl_B, clipped_B, loss_B, *more = gather(run, found.T.contiguous()).double().unbind(1)
    own = {name: value_B.mean().item() for name, value_B in zip(method_of(run).records, more, strict=True)}
    return {
        "ratio_mean": ratio_B.mean().item(),
        "ratio_max_dev": (ratio_B - 1).abs().max().item(),
        "kl": kl_B.mean().item(),
        "kl_max": kl_B.max().item(),
        "clipped": clipped_B.mean().item(),
        "loss": loss_B.mean().item(),
    } | own


def update_report(statistics: dict[str, dict[str, float]], records: Sequence[str] = ()) -> dict[str, Any]:
    """Diagnostics of a task's updates: over all of them, and by timestep in order of the updates.

    Args:
        statistics: of each step, by timestep.
        records: names of the method's own.
    """
    steps = list(statistics.values())
    own = {name: sum(found[name] for found in steps) / len(steps) for name in records}
    own_by_step = {
        f"{name}_by_step": {timestep: found[name] for timestep, found in statistics.items()}
        for name in records
    }
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
        **own,
        **own_by_step,
    }
