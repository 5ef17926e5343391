"""What would be run, told before anything is loaded: geometry, cost, memory, and the scale of each denoising step's gradient."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

from safetensors import SafetensorError, safe_open

from evals.checkpoints import find_base, weight_files
from evals.diffusion import Schedule
from evals.families import UNET
from train.config import Experiment, Task, as_json
from train.objective import drawable_steps, step_weights

GIB = 2**30
BYTES = 4
"""Weights, gradients, moments and average are float32."""


def plan(experiment: Experiment, processes: int) -> str:
    """A few lines: what an iteration asks of all processes and of each, and what the trained weights take of each one's memory.

    Args:
        experiment: checked for that many processes.
        processes: one to a GPU.
    """
    on = "1 process" if processes == 1 else f"{processes} processes"
    lines = [f"{experiment.iterations} iterations from {experiment.base} on {on}"]
    lines += [_of_task(task, experiment, processes) for task in experiment.tasks]
    if (pretraining := experiment.pretraining) is not None and experiment.tasks:
        share, size = pretraining.batch // processes, experiment.update.micro_batch
        lines.append(f"  pretraining: {pretraining.batch} pairs; {_parts(share, size)} of them on a process")
    if experiment.tasks:
        lines.append(
            f"{evaluations(experiment)} denoiser evaluations and {experiment.optimiser_steps} optimiser steps in all"
        )
        lines += _memory(experiment, processes)
    return "\n".join(lines)


def _of_task(task: Task, experiment: Experiment, processes: int) -> str:
    sampling, update = experiment.sampling, experiment.update
    share = task.batch // processes
    return (
        f"  {task.name}: {task.prompts_per_iteration} prompts x {task.images_per_prompt} images, "
        f"{_evaluations_of(task, experiment)} denoiser evaluations and {update.trained_steps} optimiser steps an iteration; "
        f"on a process {share} images, drawn in {_parts(share, sampling.micro_batch)}, "
        f"gradients accumulated over {_parts(share, update.micro_batch)}"
    )


def _parts(count: int, size: int) -> str:
    """`3 x 48`: so many micro-batches of so many, the last one padded."""
    return f"{math.ceil(count / size)} x {size}"


def _evaluations_of(task: Task, experiment: Experiment) -> int:
    """Denoiser evaluations that an iteration's images of a task take, over all processes."""
    sampling = experiment.sampling
    return task.batch * sampling.branches * (sampling.steps + experiment.update.trained_steps)


def evaluations(experiment: Experiment) -> int:
    """Denoiser evaluations of the whole run, over all processes."""
    of_tasks = sum(_evaluations_of(task, experiment) for task in experiment.tasks)
    of_data = experiment.pretraining.batch if experiment.pretraining is not None else 0
    return experiment.iterations * (of_tasks + of_data)


def _memory(experiment: Experiment, processes: int) -> list[str]:
    """What the denoiser and its training state take, where the base's weights can be counted without a download.

    A bound from below: activations come on top, and text encoders and decoder.
    """
    count = _denoiser_weights(experiment)
    if count is None or experiment.lora is not None:
        return []
    copies = 4 + (experiment.ema is not None)  # weights, gradients, two moments, average
    size = copies * BYTES * count / GIB / (processes if experiment.update.sharding == "fsdp2" else 1)
    return [
        f"{count / 1e6:.1f} M weights are trained: {size:.2f} GiB a process for weights, gradients, "
        f"AdamW{' and average' if experiment.ema is not None else ''}, activations on top"
    ]


def _denoiser_weights(experiment: Experiment) -> int | None:
    """Number of the base denoiser's weights, from the headers of its files; None for what is not here or is damaged."""
    base = Path(find_base(experiment.base))
    try:
        if base.is_file():
            return _count(base, UNET)
        return sum(map(_count, weight_files(base, "unet")[1]))
    except (OSError, SafetensorError, ValueError):
        return None  # loading it says why


def _count(file: Path, beginning: str = "") -> int:
    """Numbers in a file's tensors, of those whose names begin so."""
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(beginning)]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def describe(experiment: Experiment, processes: int) -> str:
    """The plan, the scale of each denoising step's gradient, and all fields as JSON."""
    fields = json.dumps(as_json(experiment), indent=2)
    return "\n".join([plan(experiment, processes), *gradient_scales(experiment), fields])


def gradient_scales(experiment: Experiment) -> list[str]:
    """kappa_t and weight of every denoising step, where the base's scheduler can be read without a download."""
    config = Path(find_base(experiment.base)) / "scheduler" / "scheduler_config.json"
    if not experiment.tasks or not config.is_file():
        return []
    sampling, update = experiment.sampling, experiment.update
    schedule = Schedule.of(
        SimpleNamespace(config=json.loads(config.read_text(encoding="utf-8"))), sampling.steps
    )
    drawable = drawable_steps(schedule, sampling.eta, update.skip_last)
    weights = step_weights(schedule, drawable, sampling.eta, update.step_weight == "balanced")
    lines = ["timestep  sigma   kappa   weight (kappa: scale of the step's gradient)"]
    for step in schedule.stochastic_steps(sampling.eta):
        weight = f"{weights[step]:.3f}" if step in weights else "never drawn"
        kappa = schedule.gradient_scale(step, sampling.eta)
        lines.append(
            f"{schedule.timesteps[step]:8d}  {schedule.sigma(step, sampling.eta):.4f}  {kappa:6.2f}  {weight}"
        )
    return lines
