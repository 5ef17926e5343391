"""Algorithm 1 of the paper: for every task, sample, score, compare, make the good more likely; then a step on real data.

Tasks take turns instead of being added, and each has samples of its own. How a batch is drawn and what it does to the policy is the method's
(`train.methods`): the paper's is PPO's clipped policy gradient over the transitions of a DDIM sampler, in `train.methods.ppo`.

When theta_old is fixed is open in the paper: Algorithm 1 sets it once per iteration, and yet draws later tasks' samples from the policy that
earlier tasks have updated; sec. 3.3 reads as sampling everything first. The default here (`theta_old="task"`) samples each task
right before its own update, so that all data is on-policy and every task's first ratio is 1; `"iteration"` samples all first.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.arithmetic import micro_batches
from evals.diffusion import derive_seed, noise
from train import grids, snapshots
from train import state as states
from train.config import Experiment, Task
from train.data import DataFailed, PretrainingSource
from train.denoising import noised, outputs
from train.gates import Diverged, GateBroken
from train.mixing import turns
from train.objective import denoising_loss
from train.policy import local
from train.rewards import CannotAnswer, RewardFailed, advice
from train.run import Run, accumulated, failed_first, gather, on_main_process, synchronised

FAILED = -1
"""In the place of a count, of a process that has none to tell."""


class Stopped(Exception):
    """Training has stopped early with its state saved; the message is one sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


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
            experiment.method.check_before(run)
        watch(run)
        for iteration in range(progress.iteration, experiment.iterations):
            iterate(run, iteration)
            watch(run)
    except Diverged as reason:
        lower = "update.lr" if experiment.pretraining is None else "update.lr or pretraining.beta"
        raise Stopped(
            f"{reason}: lower {lower}, and choose another --out, as this run's settings diverge again"
        ) from reason
    except DataFailed as reason:  # in the middle of an iteration, which no state can describe
        raise Stopped(f"{reason}; the state saved before is intact, and the same command resumes") from reason
    except CannotAnswer as reason:
        save(run)
        raise Stopped(
            f"{reason}, and would again: {advice(experiment, reason.scorer)}; the state before this update is saved"
        ) from reason
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
        report = experiment.method.update(run, batch, on_policy)
        refuse_divergence(run, f"task {task.name}")
        progress.images += task.batch
        progress.denoiser_evaluations += sum(experiment.method.evaluations(experiment, task))
        progress.phase += 1
        if task is tasks[-1]:
            report |= pretraining_step(run, iteration)
            progress.iteration, progress.phase = iteration + 1, 0
        record(run, iteration, task, report)
        save_where_due(run)


def refuse_divergence(run: Run, where: str) -> None:
    """Refuse weights that are not numbers any more, before they are saved over good ones.

    Args:
        run: after an update.
        where: a task, or the pretraining step.

    Raises:
        Diverged: naming the iteration and that.
    """
    # one question to the device, not one for each weight, and one to the other processes, of which each looks at what it holds
    held = [local(weight).isfinite().all() for weight in run.policy.weights.values()]
    if not gather(run, torch.stack(held).all()[None].int()).all():
        raise Diverged(f"the weights diverged in iteration {run.progress.iteration}, {where}")


def order_of_tasks(experiment: Experiment, iteration: int) -> tuple[Task, ...]:
    """Tasks as listed (the paper does not say), or starting one later in each iteration; or one pool of them."""
    tasks = turns(experiment)
    first = iteration % len(tasks) if experiment.task_order == "rotated" else 0
    return tasks[first:] + tasks[:first]


def sampled(run: Run, tasks: Sequence[Task], iteration: int) -> Iterator[Any]:
    """A batch per task: each drawn when it is asked for, from the policy of that moment, or all before the first update."""
    method = run.experiment.method
    batches = (method.collect(run, task, iteration) for task in tasks)
    return iter(list(batches)) if run.experiment.update.theta_old == "iteration" else batches


def pretraining_step(run: Run, iteration: int) -> dict[str, Any]:
    """Eq 9: stay close to the data. One optimiser step of its own on captioned latents, where the experiment has it.

    Raises:
        DataFailed: where the data cannot be read.
        Diverged: where the weights are no numbers afterwards.
    """
    pretraining, policy = run.experiment.pretraining, run.policy
    if pretraining is None or run.source is None:
        return {}
    painter, device = policy.painter, run.accelerator.device
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
    given = noised(painter, x0_BCHW, captions, z_BCHW, timestep_B)

    def accumulate() -> Tensor:
        total = torch.zeros((), device=device)
        for rows in micro_batches(share, run.experiment.update.micro_batch):
            with synchronised(run, last=rows.stop == share):
                output = outputs(run, given, rows)
                loss = denoising_loss(output, given.target_BCHW[rows].to(device)).sum() / share
                policy.backward(pretraining.beta * loss)
            total += loss.detach()
        return total

    total = accumulated(run, accumulate)
    norm = policy.optimiser_step()
    refuse_divergence(run, "the pretraining step")
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
    skipped = gather(run, torch.tensor([FAILED if failure is not None else source.skipped]))
    if (skipped == FAILED).any():
        first = failed_first(run, failure)
        assert first is not None
        raise failure or DataFailed(first[1])
    return pairs, int(skipped.sum())


# -------------------------------------------------------------------------------------------------------------- reports


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


def random_states(run: Run) -> dict[str, Tensor]:
    """States of torch's generators on every process. Training draws from generators of its own, and scorers from none that is kept (`own_stream`); a method may not."""
    found = {"cpu": gather(run, torch.get_rng_state()[None])}
    if run.accelerator.device.type == "cuda":
        found["cuda"] = gather(run, torch.cuda.get_rng_state()[None])
    return {
        f"{kind}.{rank}": row.contiguous()
        for kind, rows in found.items()
        for rank, row in enumerate(rows.unbind())
    }
