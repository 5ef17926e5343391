"""What would be run, told before anything is loaded: geometry, cost, memory, and the scale of each denoising step's gradient."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evals.architectures import ARCHITECTURES, REPOSITORIES
from evals.checkpoints import find_base
from evals.diffusion import Schedule
from train.config import Experiment, Task, as_json, choose
from train.images import is_here
from train.mixing import Pool, turns
from train.objective import drawable_steps, step_weights
from train.policy import learning_rate
from train.resources import adaptable, memory, time_needed


def plan(experiment: Experiment, processes: int) -> str:
    """A few lines: what an iteration asks of all processes and of each, the memory of a GPU, and the time where such a GPU was measured.

    Args:
        experiment: checked for that many processes.
        processes: one to a GPU.
    """
    on = "1 process" if processes == 1 else f"{processes} processes"
    lines = [f"{experiment.iterations} iterations of {experiment.method.name} from {experiment.base} on {on}"]
    lines += [_of_task(task, experiment, processes) for task in turns(experiment)]
    if (pretraining := experiment.pretraining) is not None and experiment.tasks:
        share, size = pretraining.batch // processes, experiment.update.micro_batch
        # a plan may be made where the pictures are not
        there = pretraining.source == "miniature" or is_here(pretraining.source)
        where = "" if there else ", which is not on this machine"
        lines.append(
            f"  pretraining: {pretraining.batch} pairs of {pretraining.source}{where}; {_parts(share, size)} of them on a process"
        )
    if experiment.tasks:
        lines.append(
            f"{evaluations(experiment)} denoiser evaluations and {experiment.optimiser_steps} optimiser steps in all"
        )
        lines += [
            *_of_warmup(experiment),
            *memory(experiment, processes),
            *time_needed(experiment, processes),
        ]
    return "\n".join(lines)


def _of_task(task: Task, experiment: Experiment, processes: int) -> str:
    sampling, update = experiment.sampling, experiment.update
    share, rows = task.batch // processes, experiment.method.rows(task, processes)
    steps = experiment.method.optimiser_steps(experiment)
    parts = task.parts if isinstance(task, Pool) else (task,)
    drawn = " and ".join(
        f"{part.prompts_per_iteration} prompts x {part.images_per_prompt} images" for part in parts
    )
    mixed = f", mixed by {task.mixing}" if isinstance(task, Pool) else ""
    return (
        f"  {task.name}{mixed}: {drawn}, "
        f"{sum(experiment.method.evaluations(experiment, task))} denoiser evaluations and {steps} optimiser steps an iteration; "
        f"on a process {share} images, drawn in {_parts(share, sampling.micro_batch)}, "
        f"gradients accumulated over {_parts(rows, update.micro_batch, experiment.method.repeats)}"
    )


def _of_warmup(experiment: Experiment) -> list[str]:
    """A line where the run is over before the rate has risen, which is asked for and never reached."""
    update, steps = experiment.update, experiment.optimiser_steps
    if not 0 < steps < update.warmup:
        return []
    most = max(learning_rate(update, taken, steps) for taken in range(steps)) / update.lr
    return [
        f"update.warmup is {update.warmup} of {steps} optimiser steps: the rate rises to {100 * most:.3g} % of update.lr at most"
    ]


def _parts(count: int, size: int, repeats: int = 1) -> str:
    """`3 x 48`: so many micro-batches of so many, the last one padded, each of them `repeats` times."""
    return f"{math.ceil(count / size) * repeats} x {size}"


def evaluations(experiment: Experiment) -> int:
    """Denoiser evaluations of the whole run, over all processes."""
    of_tasks = sum(sum(experiment.method.evaluations(experiment, task)) for task in turns(experiment))
    of_data = experiment.pretraining.batch if experiment.pretraining is not None else 0
    return experiment.iterations * (of_tasks + of_data)


def within(experiment: Experiment, budget: int) -> Experiment:
    """As many iterations as a budget of denoiser evaluations pays for.

    A rate that falls to 0 at the end of a run does so within the budget: what a run has reached at a tenth of it is not what a run of a tenth of the length would.

    Raises:
        ValueError: where it does not pay for one, naming what one takes.
    """
    each = evaluations(replace(experiment, iterations=1))
    if budget < each:
        raise ValueError(
            f"--budget is {budget} denoiser evaluations, but one iteration of {experiment.method.name} takes {each}: give at least as many"
        )
    return replace(experiment, iterations=budget // each)


def describe(experiment: Experiment, processes: int) -> str:
    """The plan, the scale of each denoising step's gradient, and all fields as JSON."""
    fields = json.dumps(as_json(experiment), indent=2)
    return "\n".join([plan(experiment, processes), *gradient_scales(experiment), fields])


def check_steps(experiment: Experiment) -> None:
    """`refuse_steps`, where the base's scheduler can be read without a download.

    Raises:
        ValueError: naming the field.
    """
    config = _scheduler(experiment.base)
    if config is not None:
        refuse_steps(config, experiment.sampling.steps)


def check_targets(experiment: Experiment) -> None:
    """Refuse adapters of modules that the base's denoiser has not, where their names can be read without a download.

    Raises:
        ValueError: naming the module and the choices.
    """
    modules = adaptable(experiment)
    if experiment.lora is None or not modules:
        return
    for target in experiment.lora.targets:
        if not any(f".{module}".endswith(f".{target}") for module in modules):
            choose("module in lora.targets", target, sorted(set(map(_short_module, modules))))


def _short_module(name: str) -> str:
    """As one names a module in `lora.targets`: its last part, with the one before where that is a number."""
    *before, last = name.split(".")
    return f"{before[-1]}.{last}" if last.isdecimal() and before else last


def refuse_steps(config: Mapping[str, Any], steps: int) -> None:
    """Refuse denoising steps of which the first would be at a timestep that the base was not trained with.

    Args:
        config: of the base's scheduler.
        steps: `sampling.steps`; too many in any case are refused where the schedule is made.

    Raises:
        ValueError: naming the field and the most that works.
    """
    trained, offset = int(config.get("num_train_timesteps", 1000)), int(config.get("steps_offset", 0))
    if config.get("timestep_spacing", "leading") != "leading" or steps > trained:
        return
    fit = [count for count in range(1, steps + 1) if (count - 1) * (trained // count) + offset < trained]
    if steps not in fit:
        raise ValueError(
            f"sampling.steps is {steps}, but with its scheduler's steps_offset of {offset} the base would be asked beyond the {trained} timesteps that it was trained "
            f"with: use at most {max(fit, default=1)}"
        )


def gradient_scales(experiment: Experiment) -> list[str]:
    """kappa_t and weight of every denoising step, where they matter and the base's scheduler can be read without a download."""
    config = _scheduler(experiment.base)
    if not experiment.tasks or config is None or "step_weight" not in experiment.method.reads:
        return []
    sampling, update = experiment.sampling, experiment.update
    schedule = Schedule.of(SimpleNamespace(config=config), sampling.steps)
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


def _scheduler(base: str) -> dict[str, Any] | None:
    """The base's scheduler config, from its folder or as published; None where neither is known."""
    file = Path(find_base(base)) / "scheduler" / "scheduler_config.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    known = REPOSITORIES.get(base)
    return ARCHITECTURES[known].scheduler if known else None
