"""Seconds to one gain: trl's DDPOTrainer, and the method that is fastest here (results/methods-imagereward.md). `make peers && python -m bench.peers.gain`.

Both train the miniature on the same reward. What their pictures are worth is gold, which neither is trained on: after each iteration, the mean over the pictures of the last few. trl goes first,
for a number of iterations; its last level is what this project's trainer is then timed to, and so is trl: each until it first is there. Both draw and train with a guidance of 1.01, the model
as it is but for a hundredth: trl's pipeline does not run without, and at 2 the miniature's base stands near the top already. The seconds are those of training, gold's scoring included on both sides,
loading not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from bench.machine import Machine, record_path
from bench.peers.__main__ import NAMES, SETTING, asked, in_one_sentence, keep
from bench.peers.worker import Workers
from train import experiments
from train.records import FOLDER

GOAL = 5.0
"""Times as fast as trl's DDPO to its gold: what the project set itself."""
PICTURES = 480
"""Of the last iterations, whose gold is a level: its standard error is .04 where theirs deviate by .9."""
DDPO = replace(SETTING, lr=1e-4, guidance=1.01)
"""trl's, with a rate that suits as short a run: the paper's method had the best held-out score at 1e-4 to 2e-4 (results/methods-tuning.csv)."""


def refuse_another_reward(name: str) -> None:
    """Refuse an experiment that cannot be raced, before minutes have gone.

    Raises:
        ValueError: it is unknown, or not of preference alone.
    """
    tasks = experiments.load(name, "miniature").tasks
    if [task.name for task in tasks] != ["imagereward"]:
        raise ValueError(
            f"--experiment is {name}, but what trl trains on is the reward of imagereward: choose that or one of its methods, such as imagereward_nft"
        )


def levels(gold: Sequence[float], batch: int) -> list[float]:
    """Mean gold of the last `PICTURES` pictures after each iteration, of fewer where there are not so many yet."""
    window = -(-PICTURES // batch)
    return [statistics.fmean(gold[max(0, i + 1 - window) : i + 1]) for i in range(len(gold))]


def reached(levels_T: Sequence[float], target: float) -> int | None:
    """The iteration after which a level is first reached; None where it is not."""
    return next((i for i, level in enumerate(levels_T) if level >= target), None)


def trained(worker: Workers, batch: int, iterations: int, target: float | None) -> dict[str, Any]:
    """Iterate, until a target is reached where there is one.

    Args:
        worker: prepared.
        batch: images of an iteration.
        iterations: most.
        target: a level of gold.

    Returns:
        of every iteration: seconds and cpu_seconds so far, gold of its images, level.
    """
    found: dict[str, Any] = {"seconds": [], "cpu_seconds": [], "gold": [], "level": []}
    for _ in range(iterations):
        (told,) = worker("iterate")
        for clock in ("seconds", "cpu_seconds"):
            found[clock].append(sum(found[clock][-1:]) + told[clock])
        found["gold"].append(told["gold_mean"])
        found["level"] = levels(found["gold"], batch)
        print(
            f"  {NAMES[worker.name]}: {found['seconds'][-1]:.0f} s, gold {found['level'][-1]:.3f}",
            file=sys.stderr,
        )
        if target is not None and found["level"][-1] >= target:
            break
    return found


def measured(name: str, iterations: int, seed: int, threads: int, folder: Path) -> dict[str, Any]:
    """trl, and then here.

    Args:
        name: the experiment here.
        iterations: of trl.
        seed: of both.
        threads: that each may use.
        folder: for logs.

    Returns:
        of each what `trained` does; `target`; and for each clock how many times as fast it is here, None where the target is not reached.
    """
    ddpo = replace(DDPO, seed=seed)
    with Workers("trl_ddpo", folder, threads) as trl:
        trl("prepare", **asked("trl_ddpo", ddpo, folder), gold=True)
        theirs = trained(trl, ddpo.batch, iterations, None)
    target = theirs["level"][-1]
    experiment = experiments.load(name, "miniature")
    with Workers("ours", folder, threads) as own:
        own("prepare_experiment", name=name, seed=seed, guidance=ddpo.guidance)
        ours = trained(own, experiment.tasks[0].batch, experiment.iterations, target)
    there, here = reached(theirs["level"], target), reached(ours["level"], target)
    assert there is not None, "its last level is the target"
    times = {
        clock: None if here is None else theirs[clock][there] / ours[clock][here]
        for clock in ("seconds", "cpu_seconds")
    }
    return {"seed": seed, "target": target, "trl": theirs, "here": ours, "times_as_fast": times}


def told(found: dict[str, Any], name: str) -> str:
    """For a reader."""
    theirs, ours = found["trl"], found["here"]
    there, here = (reached(each["level"], found["target"]) for each in (theirs, ours))
    assert there is not None
    line = f"seed {found['seed']}: gold {theirs['gold'][0]:.2f} to {found['target']:.3f} in {theirs['seconds'][there]:.0f} s by trl's DDPO"
    if here is None:
        return f"{line}; {name} ends at {ours['level'][-1]:.3f} after {ours['seconds'][-1]:.0f} s, below that"
    times = found["times_as_fast"]["seconds"]
    outcome = "reached" if times >= GOAL else "missed"
    return (
        f"{line}; from {ours['gold'][0]:.2f} in {ours['seconds'][here]:.0f} s here by {name}: {times:.1f} times as fast "
        f"(by processor time {found['times_as_fast']['cpu_seconds']:.1f}), goal {GOAL:g}: {outcome}"
    )


@click.command(help=__doc__)
@click.option("--experiment", "name", default="imagereward_nft", show_default=True, help="Trained here.")
@click.option("--iterations", default=60, show_default=True, type=click.IntRange(1), help="Of trl's DDPO.")
@click.option("--seed", "seeds", multiple=True, default=(0,), show_default=True, type=int)
@click.option("--threads", default=torch.get_num_threads(), show_default=True, type=click.IntRange(1))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Record; unless given, that of this machine in results/bench/peers.",
)
def main(name: str, iterations: int, seeds: tuple[int, ...], threads: int, out: Path | None) -> None:
    """Measure, print and keep."""
    refuse_another_reward(name)
    torch.set_num_threads(threads)
    machine = Machine.here()
    print(machine)
    runs = []
    for seed in dict.fromkeys(seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measured(name, iterations, seed, threads, Path(folder)))
        print(told(runs[-1], name), flush=True)
    record = {
        "command": " ".join(["python -m bench.peers.gain", *sys.argv[1:]]),
        "machine": asdict(machine),
        "experiment": name,
        "trl_setting": {field: value for field, value in asdict(DDPO).items() if field != "seed"},
        "pictures_of_a_level": PICTURES,
        "runs": runs,
    }
    keep(record, out or record_path(FOLDER / "peers", "-gain.json"))


if __name__ == "__main__":
    in_one_sentence(main)
