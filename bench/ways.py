"""What could make an iteration faster on this machine, each way beside how it is done, in turn: `python -m bench.ways`; `--profile` tells first where the time goes.

Two runs of the miniature lie side by side, one of them another way. A round is an iteration of each, the first one changing, and what is told is the median of the rounds'
ratios, the other way over as it is: below 1 it is faster; in brackets the least and the most, and the median in time of the processor, which is less moved by what else the machine does. A way changes no result beyond rounding.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.bare import BareCalls, now
from bench.machine import Machine
from evals.diffusion import Trajectory
from train import experiments
from train.config import Experiment
from train.loop import iterate
from train.run import Run
from train.start import new_accelerator, prepare


@dataclass(frozen=True)
class Way:
    """How else it could be done."""

    experiment: Callable[[Experiment], Experiment] = lambda experiment: experiment
    """What is asked for instead."""
    run: Callable[[Run], None] = lambda run: None
    """What is changed of a run that is ready to go."""
    threads: Callable[[int], int] = lambda threads: threads


def in_inference_mode(run: Run) -> None:
    """Rollouts without what autograd keeps of tensors that it might need; what an update needs of them is copied out."""
    draw = run.policy.painter.draw

    def other(*arguments: Any, **options: Any) -> Any:
        with torch.inference_mode():
            drawn: Trajectory = draw(*arguments, **options)
        copied = {
            each.name: value.clone()
            for each in fields(drawn)
            if isinstance(value := getattr(drawn, each.name), Tensor)
        }
        return type(drawn)(steps=drawn.steps, **copied)

    run.policy.painter.draw = other  # type: ignore[method-assign]


def optimiser(fused: bool, foreach: bool) -> Callable[[Run], None]:
    """AdamW another way."""

    def change(run: Run) -> None:
        for group in run.policy.optimiser.param_groups:
            group |= {"fused": fused, "foreach": foreach}

    return change


def micro_batches_of(size: int) -> Callable[[Experiment], Experiment]:
    """In rollout and update."""
    return lambda experiment: replace(
        experiment,
        sampling=replace(experiment.sampling, micro_batch=size),
        update=replace(experiment.update, micro_batch=size),
    )


def channels_last(run: Run) -> None:
    """Of the denoiser's weights, which its activations follow."""
    run.policy.unet.to(memory_format=torch.channels_last)


WAYS = {
    "as it is": Way(),
    "rollouts in inference mode": Way(run=in_inference_mode),
    "AdamW tensor by tensor": Way(run=optimiser(fused=False, foreach=False)),
    "AdamW over lists of tensors": Way(run=optimiser(fused=False, foreach=True)),
    "channels last": Way(run=channels_last),
    "micro-batches of 8": Way(experiment=micro_batches_of(8)),
    "micro-batches of 48": Way(experiment=micro_batches_of(48)),
    "half of the threads": Way(threads=lambda threads: max(1, threads // 2)),
}


def usual(batch: int) -> Experiment:
    """The miniature's preference experiment, in micro-batches of 16."""
    paper = experiments.load("imagereward", "miniature")
    (task,) = paper.tasks
    experiment = replace(
        paper,
        tasks=(replace(task, batch=batch, monitors=()),),
        iterations=10**6,
        save_every=10**6,
        samples_every=0,
    )
    return micro_batches_of(16)(experiment)


def ready(way: Way, batch: int, out: Path) -> Run:
    """A run that way with an iteration behind it."""
    run = prepare(way.experiment(usual(batch)), "miniature", 0, out, new_accelerator())
    way.run(run)
    iterate(run, 0)
    return run


def ratios(way: Way, batch: int, rounds: int) -> tuple[list[float], list[float]]:
    """Time of an iteration that way over that of one as it is, of each round: by the clock, and of the processor."""
    threads = torch.get_num_threads()
    clock, processor = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        usually = ready(Way(), batch, Path(folder) / "usually")
        other = ready(way, batch, Path(folder) / "other")
        for number in range(rounds):
            seconds, of_processor = dict[bool, float](), dict[bool, float]()
            for run in (usually, other) if number % 2 else (other, usually):
                torch.set_num_threads(way.threads(threads) if run is other else threads)
                start, began = now(), time.process_time()
                iterate(run, run.progress.iteration)
                seconds[run is other] = now() - start
                of_processor[run is other] = time.process_time() - began
            torch.set_num_threads(threads)
            clock.append(seconds[True] / seconds[False])
            processor.append(of_processor[True] / of_processor[False])
    return clock, processor


def shares(batch: int) -> dict[str, float]:
    """Of the calls of an iteration, the share of each part's time."""
    with tempfile.TemporaryDirectory() as folder:
        bare = BareCalls(ready(Way(), batch, Path(folder) / "run"))
        bare()
        parts = bare()
    return {each.name: getattr(parts, each.name) / parts.total for each in fields(parts)}


def profiled(batch: int, rows: int) -> str:
    """Table of the operations that an iteration spends most time in, by the time that is their own."""
    with tempfile.TemporaryDirectory() as folder:
        run = ready(Way(), batch, Path(folder) / "run")
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        with profile(activities=kinds) as seen:
            iterate(run, run.progress.iteration)
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=40))


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option(
    "--batch", default=48, show_default=True, type=click.IntRange(1), help="Images of an iteration."
)
@click.option(
    "--way",
    "names",
    multiple=True,
    type=click.Choice(list(WAYS)),
    help="Only this one; may be given several times.",
)
@click.option("--profile", "rows", default=0, type=click.IntRange(0), help="Operations to list first.")
def main(rounds: int, batch: int, names: tuple[str, ...], rows: int) -> None:
    """Measure and print."""
    print(Machine.here())
    if rows:
        print(profiled(batch, rows))
    told = ", ".join(f"{name} {share:.3f}" for name, share in shares(batch).items())
    print(f"shares of the bare calls: {told}", flush=True)
    for name in names or WAYS:
        clock, processor = ratios(WAYS[name], batch, rounds)
        print(
            f"{name}: {statistics.median(clock):.3f} ({min(clock):.3f} to {max(clock):.3f}; processor {statistics.median(processor):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
