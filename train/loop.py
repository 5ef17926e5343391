"""Algorithm 1 of the paper: for every task, sample, score, compare, make the good more likely; then a step on real data.

What this is: PPO's clipped policy gradient over the transitions of a DDIM sampler (Eq 7), with one optimiser step per drawn
denoising step, a batch-wide advantage (Eq 10; `baseline` may take off what a prompt's images share before), and tasks that take turns instead of being added. What it is not: there is no value
function, no KL penalty, no second copy of the denoiser. The rollout's log-probabilities, of the stored values, are the old ones.

When theta_old is fixed is open in the paper: Algorithm 1 sets it once per iteration, and yet draws later tasks' samples from the policy that
earlier tasks have updated; sec. 3.3 reads as sampling everything first. The default here (`theta_old="task"`) samples each task
right before its own update, so that all data is on-policy and every task's first ratio is 1; `"iteration"` samples all first.

Shapes: P prompts, G images per prompt, B = P*G images of all processes (or of this one, where a docstring says local), T kept steps.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from evals.conditioning import Conditioning
from evals.diffusion import (
    Trajectory,
    add_noise,
    denoising_target,
    derive_seed,
    gaussian_kl,
    log_prob,
    micro_batches,
    noise,
    padded,
    predict,
    transition,
)
from prompts import Prompt
from train import grids, snapshots
from train import state as states
from train.advantages import advantages
from train.config import Experiment, Task
from train.data import DataFailed, PretrainingSource, draw_steps, image_indices, noise_seed, prompts_of
from train.gates import (
    NOISE_TOLERANCE,
    Diverged,
    GateBroken,
    Rounding,
    check_identity,
    check_part,
    gradient_error,
)
from train.objective import (
    clipped_share,
    clipped_surrogate,
    denoising_loss,
    drawable_steps,
    step_weights,
)
from train.policy import Policy, local, whole
from train.rewards import RewardFailed, check_validity, score, shape

if TYPE_CHECKING:
    from train.trackers import Trackers

Found = TypeVar("Found")


class Stopped(Exception):
    """Training has stopped early with its state saved; the message is one sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Run:
    """Everything that training needs, ready to go."""

    out: Path
    experiment: Experiment
    identity: states.Identity
    seed: int
    accelerator: Accelerator
    policy: Policy
    prompt_sets: dict[str, Sequence[Prompt]]
    scorers: dict[str, Any]
    source: PretrainingSource | None
    log: states.MetricsLog | None
    """On the main process."""
    progress: states.Progress
    show: Callable[[states.Progress, str, float | None], None]
    """Progress bar: takes progress, task and its mean reward."""
    stop_requested: Callable[[], int] = int
    """The signal that has asked this process to stop, 0 for none."""
    trackers: Trackers | None = None
    """On the main process, where there are any."""
    started: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def drawable(self) -> tuple[int, ...]:
        """Denoising steps that can be trained on: those with a density, but for the last `skip_last` of all."""
        sampling, update = self.experiment.sampling, self.experiment.update
        return drawable_steps(self.policy.painter.schedule, sampling.eta, update.skip_last)

    @property
    def rounding(self) -> Rounding:
        """How far rollout and update may be apart: see `gates`."""
        sampling, update, painter = self.experiment.sampling, self.experiment.update, self.policy.painter
        return Rounding(
            schedule=painter.schedule,
            sampling=sampling,
            reduction=update.reduction,
            clip=update.clip,
            dims=math.prod(painter.latent_shape),
            longest_sum=self.policy.longest_sum,
            same_kernels=sampling.micro_batch == update.micro_batch,
            on_cpu=self.accelerator.device.type == "cpu",
        )


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


# ------------------------------------------------------------------------------------------------------------- algorithm


def train(run: Run) -> None:
    """Run the iterations that are left.

    Raises:
        Stopped: on a signal, a broken reward or a broken gate, with the state saved; or where the weights diverged or data cannot be read, with the state before.
        OSError: where saving fails; the previous state is untouched.
    """
    experiment, progress = run.experiment, run.progress
    begins = not progress.iteration and not progress.phase
    on_main_process(run, lambda: forget_after(run.out, -1 if begins else progress.iteration))
    try:
        if experiment.iterations and begins:
            check_before(run)
        watch(run)
        for iteration in range(progress.iteration, experiment.iterations):
            iterate(run, iteration)
            watch(run)
    except Diverged as reason:
        raise Stopped(
            f"{reason}: lower update.lr, and choose another --out, as this run's settings diverge again"
        ) from reason
    except DataFailed as reason:  # in the middle of an iteration, which no state can describe
        raise Stopped(f"{reason}; the state saved before is intact, and the same command resumes") from reason
    except (RewardFailed, GateBroken) as reason:
        save(run)
        raise Stopped(
            f"{reason}; the state before this update is saved, and the same command resumes"
        ) from reason


def iterate(run: Run, iteration: int) -> None:
    """One iteration of Algorithm 1, or what is left of it."""
    experiment, progress = run.experiment, run.progress
    tasks = order_of_tasks(experiment, iteration)[progress.phase :]
    for task, batch in zip(tasks, sampled(run, tasks, iteration), strict=True):
        on_policy = experiment.update.theta_old == "task" or task is tasks[0]
        diagnostics = update(run, batch, on_policy)
        refuse_divergence(run, task)
        progress.phase += 1
        if task is tasks[-1]:
            diagnostics |= pretraining_step(run, iteration)
            progress.iteration, progress.phase = iteration + 1, 0
        record(run, iteration, task, batch.report | diagnostics)
        save_where_due(run)


def refuse_divergence(run: Run, task: Task) -> None:
    """Refuse weights that are not numbers any more, before they are saved over good ones.

    Raises:
        Diverged: naming the iteration and the task.
    """
    # one question to the device, not one for each weight, and one to the other processes, of which each looks at what it holds
    held = [local(weight).isfinite().all() for weight in run.policy.weights.values()]
    if not gather(run, torch.stack(held).all()[None].int()).all():
        raise Diverged(f"the weights diverged in iteration {run.progress.iteration}, task {task.name}")


def order_of_tasks(experiment: Experiment, iteration: int) -> tuple[Task, ...]:
    """Tasks as listed (the paper does not say), or starting one later in each iteration."""
    tasks = experiment.tasks
    first = iteration % len(tasks) if experiment.task_order == "rotated" else 0
    return tasks[first:] + tasks[:first]


def sampled(run: Run, tasks: Sequence[Task], iteration: int) -> Iterator[Batch]:
    """A batch per task: each drawn when it is asked for, from the policy of that moment, or all before the first update."""
    batches = (collect(run, task, iteration) for task in tasks)
    return iter(list(batches)) if run.experiment.update.theta_old == "iteration" else batches


def collect(run: Run, task: Task, iteration: int) -> Batch:
    """What we ask, what the model draws, how good it is, and whether that is better than expected."""
    prompts_P = prompts_of(task, run.prompt_sets[task.prompts], run.seed, iteration)
    prompts_B = [prompt for prompt in prompts_P for _ in range(task.images_per_prompt)]
    share = task.batch // run.world
    mine = slice(run.rank * share, (run.rank + 1) * share)  # whole groups: `config.check` has seen to it
    order = draw_steps(run.drawable, run.experiment.update.trained_steps, run.seed, task, iteration)

    painter = run.policy.painter
    texts = [prompt.text for prompt in prompts_B[mine]]
    indices = image_indices(task, iteration)[mine]
    reduction = run.experiment.update.reduction
    trajectory = painter.draw(texts, indices, noise_seed(task, run.seed), keep=order, reduction=reduction)
    images = painter.decode(trajectory.latents_BCHW)

    scores = gathered_scores(run, task, images, prompts_B[mine])
    score_BK = torch.stack([scores[term.scorer] for term in task.rewards], 1)
    check_validity(task, score_BK)
    shaped = shape(task, score_BK)
    advantage_B = advantages(shaped.credit_B, run.experiment.update.advantage_clip, shaped.group_B)

    run.progress.images += task.batch
    run.progress.denoiser_evaluations += task.batch * painter.sampling.steps * painter.sampling.branches
    valid = int(shaped.credit_B.isfinite().sum())
    report = reward_report(task, scores, shaped.reported, advantage_B, int(score_BK.isnan().any(1).sum()))
    return Batch(trajectory, tuple(order), texts, advantage_B[mine], valid, report)


def update(run: Run, batch: Batch, on_policy: bool) -> dict[str, Any]:
    """Make the good more likely: one optimiser step per drawn denoising step, over the whole batch.

    Args:
        run: with the policy.
        batch: a task's samples.
        on_policy: whether the policy is still the one that sampled, so that ratio 1 and KL 0 can be demanded before it moves.

    Returns:
        diagnostics, for metrics.jsonl.
    """
    experiment, policy = run.experiment, run.policy
    schedule, eta = policy.painter.schedule, experiment.sampling.eta
    weights = step_weights(schedule, run.drawable, eta, experiment.update.step_weight == "balanced")
    statistics: dict[str, dict[str, float]] = {}
    for place, step in enumerate(batch.order):
        sums = accumulated(run, partial(policy_gradient, run, batch, step, weights[step]))
        found = gathered_statistics(run, sums)
        if on_policy and place == 0:
            check_identity(run.progress.gates, step, found["ratio_max_dev"], found["kl_max"], run.rounding)
        found["grad_norm"] = float(policy.optimiser_step())
        statistics[str(schedule.timesteps[step])] = found
    trained = len(batch.advantage_B) * run.world * len(batch.order)
    run.progress.denoiser_evaluations += trained * experiment.sampling.branches
    scale = {} if policy.loss_scale is None else {"loss_scale": policy.loss_scale.value}
    return update_report(statistics) | scale


def accumulated(run: Run, accumulate: Callable[[], Found]) -> Found:
    """The gradient of one optimiser step, and what `accumulate` finds on the way; in fp16 taken again for as long as it overflows."""
    while True:
        found = accumulate()
        if run.policy.gradients_fit():
            return found


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
    gradient = float(gather(run, difference_of_halves(run, texts, drawn)[None]).max())
    allowed = gradient_error(rounding.sampling, rounding.longest_sum)
    check_part(gates, "gradient", gradient, allowed, rounding.sampling.precision)


def check_noise(run: Run, texts: Sequence[str], seed: int) -> None:
    """The last image has the noise that it has alone.

    Raises:
        GateBroken: where it has not.
    """
    painter, last = replace(run.policy.painter, unet=Silent(run.policy.unet.config)), len(texts) - 1
    together = painter.draw(texts, range(len(texts)), seed).latents_BCHW[-1:]
    alone = painter.draw(texts[-1:], [last], seed).latents_BCHW
    difference = (alone - together).abs().max() / together.abs().max()
    worst = float(gather(run, difference[None]).max())
    check_part(run.progress.gates, "noise", worst, NOISE_TOLERANCE, run.experiment.sampling.precision)


class Silent(torch.nn.Module):
    """A denoiser that always answers zero: what is drawn with it shows the noise that it was given."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x_BCHW: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        """Zeros."""
        return (torch.zeros_like(x_BCHW),)


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


def difference_of_halves(run: Run, texts: Sequence[str], drawn: Trajectory) -> Tensor:
    """Difference between a batch's gradient and its two halves', relative to its norm, on this process.

    Of one weight, the one whose gradient is largest: what comes after it in the network is in it too, and a copy of one weight
    is not a copy of the model.
    """
    weights, size = run.policy.weights, len(texts)

    def accumulate(rows_at_once: int) -> None:
        for rows in micro_batches(size, rows_at_once):
            with synchronised(run, last=rows.stop == size):  # every process has the same images
                loss, _ = surrogate_of(run, texts, drawn, torch.ones(size), drawn.steps[0], rows)
                run.policy.backward(loss.sum() / size)

    accumulated(run, partial(accumulate, size))
    largest = max(weights.values(), key=lambda w: 0.0 if w.grad is None else float(whole(w.grad.norm())))
    assert largest.grad is not None
    at_once = whole(largest.grad).clone()
    run.policy.forget_gradients()
    accumulated(run, partial(accumulate, max(1, size // 2)))
    difference: Tensor = (whole(largest.grad) - at_once).norm() / at_once.norm()
    run.policy.forget_gradients()
    return difference.cpu()


def pretraining_step(run: Run, iteration: int) -> dict[str, Any]:
    """Eq 9: stay close to the data. One optimiser step of its own on captioned latents, where the experiment has it."""
    pretraining, policy = run.experiment.pretraining, run.policy
    if pretraining is None or run.source is None:
        return {}
    painter, sampling, device = policy.painter, run.experiment.sampling, run.accelerator.device
    (x0_BCHW, captions), skipped = pretraining_pairs(run, run.source, iteration, pretraining.batch)
    share, first = len(captions), iteration * pretraining.batch + run.rank * len(captions)
    seed = derive_seed("pretraining", run.seed)
    z_BCHW = torch.stack(
        [noise(seed, text, first + i, x0_BCHW.shape[1:], 0)[0] for i, text in enumerate(captions)]
    )
    timesteps = len(painter.schedule.train_alpha)
    generator = torch.Generator().manual_seed(derive_seed("pretraining timesteps", run.seed, iteration))
    timestep_B = torch.randint(timesteps, (pretraining.batch,), generator=generator)[run.rank * share :][
        :share
    ]
    noisy_BCHW = add_noise(painter.schedule, x0_BCHW, z_BCHW, timestep_B)
    target_BCHW = denoising_target(painter.schedule, x0_BCHW, z_BCHW, timestep_B)

    def accumulate() -> Tensor:
        total = torch.zeros((), device=device)
        for rows in micro_batches(share, run.experiment.update.micro_batch):
            given = (noisy_BCHW[rows], timestep_B[rows], *painter.encoder(captions[rows]).columns())
            with synchronised(run, last=rows.stop == share):
                output = padded(
                    lambda x, timestep, *cond: predict(
                        policy.module, x, timestep, Conditioning(*cond), None, None, sampling.precision
                    ),
                    run.experiment.update.micro_batch,
                    *(column.to(device) for column in given),
                )[: rows.stop - rows.start]
                loss = denoising_loss(output, target_BCHW[rows].to(device)).sum() / share
                policy.backward(pretraining.beta * loss)
            total += loss.detach()
        return total

    total = accumulated(run, accumulate)
    norm = policy.optimiser_step()
    run.progress.denoiser_evaluations += pretraining.batch
    mean = run.accelerator.gather(total.reshape(1)).mean()
    report = {"pretrain_loss": float(mean), "pretrain_grad_norm": float(norm)}
    return report | ({"pretrain_skipped": skipped} if skipped else {})


def pretraining_pairs(
    run: Run, source: PretrainingSource, iteration: int, size: int
) -> tuple[tuple[Tensor, list[str]], int]:
    """This process's share of an iteration's pairs, and how many of all processes' had to be replaced.

    Raises:
        DataFailed: on all processes, where too many cannot be read on one.
    """
    failure: DataFailed | None = None
    pairs = torch.empty(0), list[str]()
    try:
        pairs = source.batch(iteration, size, run.rank, run.world)
    except DataFailed as reason:
        failure = reason
    failed, skipped = gather(run, torch.tensor([[int(failure is not None), source.skipped]])).unbind(1)
    if failure is not None:
        raise failure
    if failed.any():
        raise DataFailed(f"pretraining data cannot be read on process {int(failed.argmax())}")
    return pairs, int(skipped.sum())


def synchronised(run: Run, last: bool) -> AbstractContextManager[Any]:
    """Context of a forward and backward pass: DDP averages gradients over processes after the last of an optimiser step only."""
    return nullcontext() if last else run.accelerator.no_sync(run.policy.module)


# ------------------------------------------------------------------------------------------------------- over processes


def gathered_scores(
    run: Run, task: Task, images_BCHW: Tensor, prompts_B: Sequence[Prompt]
) -> dict[str, Tensor]:
    """Rewards and monitors of the whole batch, in the order of its images, on every process.

    Raises:
        RewardFailed: on all processes, where a scorer failed on one.
    """
    names = list(dict.fromkeys([*(term.scorer for term in task.rewards), *task.monitors]))
    failure: RewardFailed | None = None
    local: dict[str, Tensor] = {}
    try:
        for name in names:
            local[name] = score(name, run.scorers[name], images_BCHW, prompts_B)
    except RewardFailed as reason:
        failure = reason
    scored = gather(
        run, torch.tensor([len(local)])
    )  # every process learns of a failure on any, and stops with it
    if failure is not None:
        raise failure
    if (scored < len(names)).any():
        rank = int(scored.argmin())
        raise RewardFailed(f"scorer {names[int(scored[rank])]} failed on process {rank}")
    score_BN = gather(run, torch.stack([local[name] for name in names], 1))
    return dict(zip(names, score_BN.unbind(1), strict=True))


def gather(run: Run, local: Tensor) -> Tensor:
    """Rows of all processes in order of their rank, on the CPU."""
    everywhere: Tensor = run.accelerator.gather(local.to(run.accelerator.device))
    return everywhere.cpu()


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


# -------------------------------------------------------------------------------------------------------------- reports


def reward_report(
    task: Task, scores: dict[str, Tensor], reported: Tensor, advantage_B: Tensor, invalid: int
) -> dict[str, Any]:
    """How good the samples are. `reward_mean` is over images, or for parity over groups."""
    valid = reported[reported.isfinite()]
    return {
        "reward_mean": mean_of(valid),
        "reward_std": float(valid.std()) if len(valid) > 1 else None,
        "reward_n": len(valid),
        "invalid": invalid,
        "rewards": {term.scorer: mean_of(scores[term.scorer]) for term in task.rewards},
        "monitors": {name: mean_of(scores[name]) for name in task.monitors},
        "advantage_max": float(advantage_B.abs().max()),
    }


def mean_of(value_B: Tensor) -> float | None:
    """Mean of the values there are; None, which JSON has, where there are none."""
    valid = value_B[value_B.isfinite()]
    return float(valid.double().mean()) if len(valid) else None


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


def record(run: Run, iteration: int, task: Task, report: dict[str, Any]) -> None:
    """One line of metrics.jsonl, and the progress bar.

    Raises:
        OSError: where the disk refuses.
    """
    progress = run.progress
    now = time.monotonic()
    elapsed, run.started = now - run.started, now
    progress.seconds += elapsed
    progress.gpu_seconds += elapsed * run.world if run.accelerator.device.type == "cuda" else 0.0
    line = {
        "iteration": iteration,
        "task": task.name,
        **report,
        "images": progress.images,
        "denoiser_evaluations": progress.denoiser_evaluations,
        "seconds": round(progress.seconds, 3),
    }

    def write() -> None:
        assert run.log is not None
        run.log.append(line)

    on_main_process(run, write)
    run.show(progress, task.name, report["reward_mean"])


def forget_after(out: Path, iteration: int) -> None:
    """Remove what was kept of more iterations than a resumed run has done; below 0, all.

    Raises:
        OSError: where the disk refuses.
    """
    grids.forget_after(out, iteration)
    snapshots.forget_after(out, iteration)


def watch(run: Run) -> None:
    """What is kept and looked at while it trains, between two iterations: sheet of samples and snapshot where one is due, then the trackers.

    No result depends on it.

    Raises:
        OSError: where the disk refuses.
    """
    iteration, out, between = run.progress.iteration, run.out, run.progress.phase == 0
    sheet = grids.sheet_path(out, iteration)
    if between and grids.is_due(run.experiment, iteration) and not on_main_disk(run, sheet.is_file()):
        rows = grids.shown(run.experiment, run.prompt_sets)
        images = grids.paint(run.policy, rows)
        on_main_process(run, lambda: grids.write(images, rows, out, iteration))
    kept = snapshots.is_there(out, iteration)
    if between and snapshots.is_due(run.experiment, iteration) and not on_main_disk(run, kept):
        weights = run.policy.weights_to_hand_over()
        on_main_process(run, lambda: snapshots.write(run.policy, weights, run.progress, out))
    on_main_process(run, lambda: run.trackers.follow() if run.trackers is not None else None)


def on_main_disk(run: Run, is_there: bool) -> bool:
    """Whether the main process sees a file: the hosts of the others may have another disk."""
    return bool(gather(run, torch.tensor([int(is_there)]))[0])


# --------------------------------------------------------------------------------------------------------------- saving


def save_where_due(run: Run) -> None:
    """Save after every `save_every`-th iteration and the last, and stop where a signal asks for it.

    Between the tasks of an iteration the state is complete only where each task samples for itself.

    Raises:
        Stopped: with exit code 128 + signal (143, 130 or 129), on every process, where one was asked to stop.
    """
    progress, experiment = run.progress, run.experiment
    if progress.phase and experiment.update.theta_old == "iteration":
        return
    number = int(gather(run, torch.tensor([int(run.stop_requested())])).max())
    if number:
        save(run)
        name = signal.Signals(number).name
        raise Stopped(
            f"stopped by {name} after iteration {progress.iteration}; the same command resumes", 128 + number
        )
    finished = progress.iteration == experiment.iterations
    if progress.phase == 0 and (finished or progress.iteration % experiment.save_every == 0):
        save(run)


def save(run: Run) -> None:
    """Write a checkpoint: gathered from all processes, written by the main one.

    Raises:
        OSError: where the disk refuses; the previous checkpoint is then untouched.
    """
    tensors = {**run.policy.state(), "random": random_states(run)}

    def write() -> None:
        assert run.log is not None
        run.progress.metrics_bytes = run.log.synced_bytes()
        states.save(run.out / "state", run.progress, run.identity, tensors)

    on_main_process(run, write)


def on_main_process(run: Run, work: Callable[[], None]) -> None:
    """Write something on the main process; the others wait for it, and stop with it where it fails.

    Raises:
        OSError: on every process, where the disk refuses the main one.
    """
    failure: OSError | None = None
    if run.accelerator.is_main_process:
        try:
            work()
        except OSError as error:
            failure = error
    failed = gather(run, torch.tensor([int(failure is not None)])).any()
    if failure is not None:
        raise failure
    if failed:
        raise OSError("the main process could not write")


def random_states(run: Run) -> dict[str, Tensor]:
    """States of torch's generators on every process. Training draws from generators of its own; a scorer may not."""
    found = {"cpu": gather(run, torch.get_rng_state()[None])}
    if run.accelerator.device.type == "cuda":
        found["cuda"] = gather(run, torch.cuda.get_rng_state()[None])
    return {
        f"{kind}.{rank}": row.contiguous()
        for kind, rows in found.items()
        for rank, row in enumerate(rows.unbind())
    }
