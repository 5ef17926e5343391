"""What `python -m train` does once its words are read: refuse what cannot be, say the plan, start processes, train, hand over.

Exit codes: see `train.__main__`.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from tqdm import tqdm

from evals import signals, weights
from evals.checkpoints import first_line
from evals.memory import too_little
from evals.scorers import what_is_cut
from evals.workers import is_orphaned
from prompts.lock import locked
from train import experiments, trackers
from train.config import (
    LESS_MEMORY,
    MEMORY_FIELDS,
    Experiment,
    as_json,
    check,
    differences,
    override,
    refuse_twice,
    with_reward,
)
from train.gates import GateBroken
from train.launch import Hosts, has_lost_another, launch, speaks
from train.loop import Stopped, train
from train.plan import check_steps, check_targets, describe, plan
from train.run import Run, own_stream
from train.start import LOCK, check_names, fetch, finished_card, hand_over, new_accelerator, prepare
from train.state import Identity, Progress

RESUMES = "the state saved before is intact, and the same command resumes"


def begin(
    experiment: str,
    model: str,
    seed: int,
    out: Path | None,
    settings: tuple[str, ...],
    reward: str | None,
    processes: int,
    hosts: int,
    host: int,
    first: str | None,
    accept_terms: tuple[str, ...],
    tracker_names: tuple[str, ...],
    dry_run: bool,
    only_fetch: bool,
) -> int:
    """Do what was asked: see the options of `train.__main__.main`, whose names these are.

    Returns:
        the exit code.
    """
    weights.accept_terms(accept_terms)
    try:
        if dry_run and only_fetch:
            raise ValueError("--dry-run fetches nothing, and --fetch makes no plan: leave one of them out")
        as_it_is = experiments.load(experiment, model)
        refuse_twice(settings)
        chosen = override(as_it_is, settings)
        if reward is not None:
            chosen = with_reward(chosen, reward)
        check(chosen, processes * hosts)
        check_names(chosen)
        check_steps(chosen)
        check_targets(chosen)
        changed = differences(as_json(as_it_is), as_json(chosen), but=MEMORY_FIELDS)
        name = run_name(experiment, model, seed, out, changed)
        followers = trackers.chosen(tracker_names)
        if dry_run:
            Hosts.of(hosts, host, first or "HOST:1")  # the address is not needed to make a plan
            click.echo(describe(chosen, processes * hosts))
        elif only_fetch:
            fetch(chosen)
            click.echo(f"base, prompts and scorers' weights of {experiment} on {model} are on this machine")
        else:
            together = Hosts.of(hosts, host, first)
            refuse_to_share_gpus(processes)
            if host == 0 and "RANK" not in os.environ:  # the processes that this one starts have been told
                click.echo(plan(chosen, processes * hosts), err=True)
    except ValueError as mistake:
        return leave(str(mistake), 2)
    if dry_run or only_fetch:
        return 0
    if processes * hosts > 1 and "RANK" not in os.environ:
        return launch(processes, together)
    return run(chosen, name, model, seed, out or Path("results/runs") / name, followers)


def run_name(experiment: str, model: str, seed: int, out: Path | None, changed: Sequence[str]) -> str:
    """What a run is called, by which its scores and pictures are told from others'.

    EXPERIMENT-MODEL-SEED; or as its folder where that is NAME-MODEL-SEED. In a folder that is called otherwise a run of the experiment as it is keeps the experiment's
    name, so that seeds belong together, and one with other settings has the folder's in its place, so that they do not. The base is always the base.

    Args:
        experiment: as on the command line.
        model: variant of the experiment.
        seed: of everything random.
        out: run directory, None where none was given.
        changed: fields that are not as in the experiment.

    Raises:
        ValueError: where a trained model would be called the base.
    """
    of_run = f"-{model}-{seed}"
    folder = "" if out is None else out.resolve().name
    if experiment == "base" or not (folder.endswith(of_run) or (folder and changed)):
        return f"{experiment}{of_run}"
    part = re.sub(r"[^A-Za-z0-9_.]+", "_", folder.removesuffix(of_run)).strip("_.") or experiment
    if part == "base":
        raise ValueError(
            f"--out {out} would call a trained model the base, with which others are compared: choose another folder, such as NAME{of_run}"
        )
    return f"{part}{of_run}"


def refuse_to_share_gpus(processes: int) -> None:
    """Raise ValueError where there are GPUs, but fewer than processes."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else processes
    if processes > gpus:
        raise ValueError(
            f"--processes is {processes}, but this machine has {gpus} GPUs, and each process needs one"
        )


def run(
    experiment: Experiment, name: str, model: str, seed: int, out: Path, followers: Sequence[str] = ()
) -> int:
    """Train and hand over.

    Args:
        experiment: checked.
        name: of the run.
        model: variant of the experiment.
        seed: of everything random.
        out: run directory.
        followers: trackers, from `trackers.chosen`.

    Returns:
        the exit code.
    """
    with ExitStack() as held:
        try:
            if is_finished(name, out, Identity(as_json(experiment), model, seed)):
                return 0
            alone = held.enter_context(alone_in(out))
        except ValueError as mistake:
            return leave(str(mistake), 2)
        except OSError as error:
            return leave(f"{out} cannot be prepared: {error}", 2)
        if not alone:
            told = f"{out} is being trained by another command: wait for its end, or choose another --out"
            return leave(told, 2)
        return _run(experiment, name, model, seed, out, followers)


def is_finished(name: str, out: Path, identity: Identity) -> bool:
    """Whether there is nothing to do, which is said; asked before anything is written, as a finished run may lie where nothing can be.

    Raises:
        ValueError: where it is damaged, or that of another run.
    """
    done = finished_card(out, identity)
    if done is not None:
        say(f"{name} is finished ({out}, {done.get('finished')}): nothing to do")
    return done is not None


@contextmanager
def alone_in(out: Path) -> Iterator[bool]:
    """Whether no other command trains in that folder; of several processes the first asks for all."""
    if not speaks():
        yield True
        return
    with locked(lock_of(out.resolve()), wait=False) as alone:
        yield alone


def lock_of(folder: Path) -> Path:
    """The file that is locked: beside a run directory, and in one that is there already where nothing can be written beside it, as in a mounted volume."""
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / LOCK
    return folder.with_name(f".{folder.name}.lock")


def _run(
    experiment: Experiment, name: str, model: str, seed: int, out: Path, followers: Sequence[str]
) -> int:
    bar = Bar(name, experiment.iterations)
    try:
        return _train(experiment, name, model, seed, out, followers, bar)
    except torch.OutOfMemoryError as error:
        bar.close()
        click.echo(f"error: {_whose()}{too_little(error)}: {LESS_MEMORY}; {RESUMES}", err=True)
    except RuntimeError as error:
        if not has_lost_another(error):
            raise
        bar.close()
        say(
            f"error: stopped, since another of the processes has ended or does not answer ({first_line(error)})",
            to_stderr=True,
        )
    return 1


def _whose() -> str:
    """Which process speaks, where there are several: not all have as much to hold."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"on process {os.environ.get('RANK', '0')}: " if several else ""


def _train(
    experiment: Experiment, name: str, model: str, seed: int, out: Path, followers: Sequence[str], bar: Bar
) -> int:
    stop = StopOnSignal()
    try:
        if is_finished(name, out, Identity(as_json(experiment), model, seed)):  # by another, in between
            return 0
        accelerator = new_accelerator(experiment.update.sharding, experiment.update.cuda_graphs)
        ready = prepare(experiment, model, seed, out, accelerator, bar.show, stop.requested)
        say_what_is_cut(ready)
        if ready.experiment.tasks and (note := ready.experiment.method.note(ready)):
            say(f"note: {note}", to_stderr=True)
    except ValueError as mistake:
        return leave(str(mistake), 2)
    except GateBroken as broken:
        return leave(str(broken), 1)
    except OSError as error:
        return leave(f"{out} cannot be prepared: {error}", 2)
    # from here on a ValueError is a mistake of this project, and shows where it came from
    try:
        ready.trackers = trackers.start(ready, followers, name)
        bar.begin(ready.progress)
        train(ready)
        bar.close()
        hand_over(ready, name)
    except Stopped as stopped:
        bar.close()
        if ready.trackers is not None:
            ready.trackers.close()
        return leave(str(stopped), stopped.exit_code)
    except OSError as error:
        bar.close()
        return leave(f"{out} cannot be written ({error}): {RESUMES}", 1)
    accelerator.end_training()
    say(f"{name} is finished: {out}")
    return 0


def say_what_is_cut(ready: Run) -> None:
    """Name prompts that the model or a scorer will not read to their end."""
    if not speaks():
        return
    for name, prompt_set in ready.prompt_sets.items():
        notes = [ready.policy.painter.encoder.what_is_cut(name, prompt_set)]
        for task in ready.experiment.tasks:
            if task.prompts == name:
                for scorer in task.scorers:
                    with own_stream(ready, scorer):
                        notes.append(what_is_cut(scorer, ready.scorers[scorer], name, prompt_set))
        for note in filter(None, notes):
            say(note, to_stderr=True)


def say(message: str, to_stderr: bool = False) -> None:
    """Print on the first process only."""
    if speaks():
        click.echo(message, err=to_stderr)


def leave(message: str, code: int) -> int:
    """Say in a sentence why."""
    say(message if code > 128 else f"error: {message}", to_stderr=True)
    return code


class StopOnSignal:
    """Remembers that a signal that asks to stop came, so that training can save between two updates. A second Ctrl-C does not wait for that."""

    def __init__(self) -> None:
        self._came = 0
        for number in signals.heeded():
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._came = number
        if number == signal.SIGHUP:
            signals.leave_terminal()
        if number == signal.SIGINT:
            say("stopping after this update; Ctrl-C again stops at once", to_stderr=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def requested(self) -> int:
        """The signal that came, 0 for none. Where the launcher was killed, nobody could send one: then the run must not go on behind the next one's back."""
        return self._came or (signal.SIGTERM if is_orphaned() else 0)


class Bar:
    """Progress on the terminal: iterations, rate, time left, each task's latest reward, images a second, on GPUs their hours so far and in all."""

    def __init__(self, title: str, iterations: int) -> None:
        self._title, self._iterations = title, iterations
        self._bar: Any = None
        self._start = Progress()
        self._shown: dict[str, str] = {}

    def begin(self, progress: Progress) -> None:
        """Start where a resumed run stands, without counting that as speed."""
        hidden = os.environ.get("RANK", "0") != "0"
        at, title = progress.iteration, self._title
        self._start = replace(progress)
        self._bar = tqdm(
            total=self._iterations, initial=at, desc=title, unit="it", disable=hidden, dynamic_ncols=True
        )

    def show(self, progress: Progress, task: str, reward: float | None) -> None:
        """A task's batch is done."""
        self._shown[task] = "-" if reward is None else f"{reward:.3f}"
        self._shown |= pace(self._start, progress, self._iterations)
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(progress.iteration - self._bar.n)

    def close(self) -> None:
        """Leave the line as it is, if there is one."""
        if self._bar is not None:
            self._bar.close()


def pace(start: Progress, now: Progress, iterations: int) -> dict[str, str]:
    """Images a second since the command started, and after a whole iteration on GPUs their hours so far and those that the run takes in all."""
    told: dict[str, str] = {}
    if (seconds := now.seconds - start.seconds) > 0:
        told["images/s"] = f"{(now.images - start.images) / seconds:.1f}"
    done = now.iteration - start.iteration
    if now.gpu_seconds and done and not now.phase:
        each = (now.gpu_seconds - start.gpu_seconds) / done
        in_all = now.gpu_seconds + each * (iterations - now.iteration)
        told["GPU-hours"] = f"{now.gpu_seconds / 3600:.2f} of {in_all / 3600:.2f}"
    return told
