"""Seconds of an iteration, images per second and memory of this trainer and of trl's, in turn: `make peers && python -m bench.peers`.

Each trainer is a process of its own with the models loaded. A round is an iteration of trl's, one here, and the bare calls of one here (`bench.bare`), the
first two in the other order in every other round, so that whatever else the machine does falls on all. What is compared is the median of the rounds'
ratios. `seconds` is by the clock; `cpu_seconds` are those of the processor, which tell less of what else it does. Memory is the most that a process held while it iterated.

Then two processes each train two iterations of a small batch: whether they took the gradient of both, and are one model after it.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.machine import Machine, record_path
from bench.memory import forget_peak, peak_mib, resident_mib
from bench.peers.worker import ROOT, Setting, Workers
from evals.files import write_text
from train.launch import free_port
from train.records import FOLDER

GOALS = {"cpu": 1.1, "cuda": 1.5}
"""Images per second here over those of trl."""
SETTING = Setting(
    pipeline="evals/miniature/weights/pipeline",
    prompts="miniature-preference-train",
    batch=80,
    micro_batch=16,
    steps=10,
    trained_steps=5,
    guidance=2.0,
    lora=False,
)
"""The miniature's, with guidance; a batch that takes seconds."""
CASES = ("full", "lora", "processes", "compiled", "recorded", "lora-recorded")
NAMES = {"ours": "here", "trl_ddpo": "trl"}
ALIKE = 4.0
"""Standard errors by which the mean rewards of the base's pictures may differ, one trainer's from the other's: else they draw differently."""


def measured(setting: Setting, rounds: int, threads: int, folder: Path) -> dict[str, Any]:
    """Both trainers in turn.

    Args:
        setting: what both do.
        rounds: pairs of iterations.
        threads: that each may use.
        folder: for logs.

    Raises:
        ValueError: the peer's environment is not there, or its pictures are others than those here.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Workers(name, folder, threads)) for name in ("trl_ddpo", "ours")}
        versions = {
            NAMES[name]: work("prepare", **asked(name, setting, folder))[0] for name, work in workers.items()
        }
        loaded = {name: resident_mib(work.pids[0]) for name, work in workers.items()}
        first = {name: work("iterate")[0] for name, work in workers.items()}
        refuse_other_pictures(first["ours"], first["trl_ddpo"], setting.batch)
        workers["ours"]("bare_iteration")
        peaks: dict[str, list[float | None]] = {name: [] for name in workers}
        found: dict[str, list[dict[str, float]]] = {"trl_ddpo": [], "ours": [], "bare": []}
        for number in range(rounds):
            for name in ("trl_ddpo", "ours") if number % 2 else ("ours", "trl_ddpo"):
                forget_peak(workers[name].pids[0])
                found[name] += workers[name]("iterate")
                peaks[name].append(peak_mib(workers[name].pids[0]))
            found["bare"] += workers["ours"]("bare_iteration")
            print(
                "  "
                + ", ".join(
                    f"{NAMES.get(name, name)} {told[-1]['seconds']:.2f} s" for name, told in found.items()
                ),
                file=sys.stderr,
            )
        memory = {
            NAMES[name]: {
                "resident_mib": max((peak for peak in peaks[name] if peak is not None), default=None),
                "of_it_before_iterating_mib": loaded[name],
                "gpu_mib": work("gpu_peak_mib")[0],
            }
            for name, work in workers.items()
        }
    return {
        "versions": versions,
        "base_reward": {NAMES[name]: told["reward_mean"] for name, told in first.items()},
        "memory": memory,
        **summary(found, setting.batch),
    }


def asked(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """What a trainer's `prepare` is given."""
    if name == "trl_ddpo":
        copy = folder / "pipeline"
        if not copy.is_dir():
            for_older_transformers(ROOT / setting.pipeline, copy)
        setting = replace(setting, pipeline=str(copy))
    return {"setting": asdict(setting)}


def for_older_transformers(pipeline: Path, copy: Path) -> None:
    """Make a copy of a pipeline whose text encoder's weights have the names that transformers 4 looks for.

    Version 5 leaves `text_model.` out of them; 4 finds none of its own, and goes on with random ones after a warning.
    """
    shutil.copytree(pipeline, copy)
    weights = copy / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(weights).items()}
    save_file(named, weights, {"format": "pt"})


def refuse_other_pictures(ours: Mapping[str, float], theirs: Mapping[str, float], batch: int) -> None:
    """Refuse to compare trainers that do not draw alike from the base.

    Raises:
        ValueError: telling both mean rewards.
    """
    error = math.hypot(ours["reward_std"], theirs["reward_std"]) / math.sqrt(batch)
    if not abs(ours["reward_mean"] - theirs["reward_mean"]) <= ALIKE * error:
        raise ValueError(
            f"the base's pictures get a mean reward of {ours['reward_mean']:.3f} here and {theirs['reward_mean']:.3f} by trl "
            f"(standard error {error:.3f}), so the two do not draw the same model: nothing is compared"
        )


def summary(found: Mapping[str, Sequence[Mapping[str, float]]], batch: int) -> dict[str, Any]:
    """Medians of the rounds, and the ratios of each round's own.

    Args:
        found: rounds of `trl_ddpo`, `ours` and `bare`, each with `seconds` and `cpu_seconds`.
        batch: images of an iteration.
    """
    told: dict[str, Any] = {}
    for clock in ("seconds", "cpu_seconds"):
        of = {name: [each[clock] for each in rounds] for name, rounds in found.items()}
        told[clock] = {NAMES.get(name, name): statistics.median(values) for name, values in of.items()}
        for what, over, under in (
            ("times_as_fast", "trl_ddpo", "ours"),
            ("ours_over_bare", "ours", "bare"),
            ("trl_over_bare", "trl_ddpo", "bare"),
        ):
            ratios = sorted(a / b for a, b in zip(of[over], of[under], strict=True))
            told[f"{what}_{clock}"] = {
                "median": statistics.median(ratios),
                "least": ratios[0],
                "most": ratios[-1],
            }
    told["images_per_second"] = {
        name: batch / seconds for name, seconds in told["seconds"].items() if name != "bare"
    }
    return told


def two_processes(setting: Setting, folder: Path) -> dict[str, Any]:
    """What two processes do to the gradient: how far apart they are after two iterations, here and there; and here from one process."""
    found: dict[str, Any] = {}
    alone = replace(setting, processes=1)
    both = replace(setting, processes=2)
    with Workers("ours", folder, 1) as one:
        (reference,) = trained(one, alone, folder / "ours-alone")
    for name in ("ours", "trl_ddpo"):
        with Workers(name, folder, 1, processes=2, port=free_port()) as pair:
            first, second = trained(pair, both, folder / name)
        found[NAMES[name]] = {
            "gradients_apart": apart(first, second, "gradient."),
            "largest_weight_apart": largest(first, second),
            "sums_of_weights": [total(first), total(second)],
        }
        if name == "ours":
            found[NAMES[name]]["gradient_from_one_process"] = apart(first, reference, "gradient.")
    return found


def trained(workers: Workers, setting: Setting, to: Path) -> list[dict[str, Tensor]]:
    """What each process has written after two iterations."""
    workers("prepare", **asked(workers.name, setting, to.parent))
    for _ in range(2):
        workers("iterate")
    workers("write", to=str(to))
    return [load_file(f"{to}.{rank}") for rank in range(setting.processes)]


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor], kind: str) -> float:
    """|a - b| / |b| over all tensors of a kind: 0 where they are equal, about 1.4 where they have nothing in common."""
    names = [name for name in one if name.startswith(kind)]
    a, b = (torch.cat([each[name].double().flatten() for name in names]) for each in (one, other))
    return float((a - b).norm() / b.norm())


def largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of a weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one if name.startswith("weight."))


def total(tensors: Mapping[str, Tensor]) -> float:
    """Sum of the absolute values of all weights."""
    return sum(float(t.double().abs().sum()) for name, t in tensors.items() if name.startswith("weight."))


def told_speed(case: str, found: Mapping[str, Any], goal: float) -> list[str]:
    """For a reader."""
    fast, bare = found["times_as_fast_seconds"], found["ours_over_bare_seconds"]["median"]
    memory = {
        who: held["gpu_mib"] or held["resident_mib"] or math.nan for who, held in found["memory"].items()
    }
    more = {
        who: (held["resident_mib"] or math.nan) - (held["of_it_before_iterating_mib"] or math.nan)
        for who, held in found["memory"].items()
    }
    return [
        f"{case}: {found['seconds']['here']:.2f} s an iteration here, {found['seconds']['trl']:.2f} s by trl; "
        f"{found['images_per_second']['here']:.1f} and {found['images_per_second']['trl']:.1f} images/s",
        f"  {fast['median']:.3f} times as fast ({fast['least']:.3f} to {fast['most']:.3f}; by processor time "
        f"{found['times_as_fast_cpu_seconds']['median']:.3f}), goal {goal}: {'reached' if fast['median'] >= goal else 'missed'}",
        f"  over the bare calls {bare:.3f} here, {found['trl_over_bare_seconds']['median']:.3f} by trl",
        f"  at most {memory['here']:,.0f} MiB here, {memory['trl']:,.0f} MiB by trl: "
        f"{'no more' if memory['here'] <= memory['trl'] else 'more'}; of it by iterating {more['here']:,.0f} and {more['trl']:,.0f}",
    ]


def told_gradient(who: str, found: Mapping[str, Any]) -> str:
    """For a reader."""
    one, other = found["sums_of_weights"]
    model = "one model" if found["largest_weight_apart"] == 0 else "two different models"
    from_one = found.get("gradient_from_one_process")
    more = "" if from_one is None else f", and {from_one:.1e} from that of one process"
    return (
        f"two processes, {who}: first gradients {found['gradients_apart']:.2g} apart{more}; after two iterations {model}, "
        f"sum|w| {one:.4f} and {other:.4f}, weights up to {found['largest_weight_apart']:.1e} apart"
    )


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Pairs of iterations.")
@click.option("--batch", default=SETTING.batch, show_default=True, type=click.IntRange(1))
@click.option("--micro-batch", default=SETTING.micro_batch, show_default=True, type=click.IntRange(1))
@click.option(
    "--micro-batch-here",
    type=click.IntRange(1),
    help="Here, where it is another, as what trl takes of memory may leave room for; as --micro-batch unless given.",
)
@click.option("--steps", default=SETTING.steps, show_default=True, type=click.IntRange(1))
@click.option("--trained-steps", default=SETTING.trained_steps, show_default=True, type=click.IntRange(1))
@click.option("--guidance", default=SETTING.guidance, show_default=True, type=float, help="Above 1.")
@click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16"]))
@click.option(
    "--case",
    "cases",
    multiple=True,
    default=CASES[:3],
    show_default=True,
    type=click.Choice(CASES),
    help="All weights, adapters, what two processes do, all weights with the denoiser compiled here, and both with its calls recorded here (update.cuda_graphs), "
    "which takes a GPU; may be given several times.",
)
@click.option("--threads", default=torch.get_num_threads(), show_default=True, type=click.IntRange(1))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Record; unless given, that of this machine in results/bench/peers.",
)
def main(
    rounds: int,
    batch: int,
    micro_batch: int,
    micro_batch_here: int | None,
    steps: int,
    trained_steps: int,
    guidance: float,
    precision: Literal["fp32", "bf16"],
    cases: tuple[str, ...],
    threads: int,
    out: Path | None,
) -> None:
    """Measure, print and keep."""
    if not guidance > 1:
        raise ValueError(
            f"--guidance is {guidance}, but it must be above 1: without guidance trl's pipeline hands the denoiser twice as many texts as latents, and stops"
        )
    if trained_steps > steps:
        raise ValueError(f"--trained-steps is {trained_steps}, but there are {steps} of --steps")
    if not torch.cuda.is_available() and (asked_of_a_gpu := [c for c in cases if c.endswith("recorded")]):
        raise ValueError(
            f"--case {asked_of_a_gpu[0]} takes a GPU, and there is none: choose from {', '.join(c for c in CASES if not c.endswith('recorded'))}"
        )
    torch.set_num_threads(threads)
    setting = replace(
        SETTING,
        batch=batch,
        micro_batch=micro_batch,
        micro_batch_here=micro_batch_here,
        steps=steps,
        trained_steps=trained_steps,
        guidance=guidance,
        precision=precision,
    )
    machine, path = Machine.here(), out or record_path(FOLDER / "peers")
    goal = GOALS["cuda" if torch.cuda.is_available() else "cpu"]
    record = kept(path)
    print(machine)
    with tempfile.TemporaryDirectory() as name:
        for case in dict.fromkeys(cases):
            folder, began = Path(name) / case, time.monotonic()
            folder.mkdir()
            one = replace(
                setting,
                lora=case.startswith("lora"),
                compile=case == "compiled",
                cuda_graphs=case.endswith("recorded"),
            )
            if case == "processes":
                # small: what is asked is not how fast
                one = replace(
                    setting,
                    batch=4 * trained_steps,
                    micro_batch=2,
                    micro_batch_here=None,
                    precision="fp32",
                    processes=2,
                )
                found = two_processes(one, folder)
                told = [told_gradient(who, of_one) for who, of_one in found.items()]
            else:
                found = measured(one, rounds, threads, folder)
                told = told_speed(case, found, goal)
            print("\n".join(told), flush=True)
            record[case] = {
                "command": " ".join(["python -m bench.peers", *sys.argv[1:]]),
                "machine": asdict(machine),
                "setting": asdict(one),
                "rounds": rounds,
                "minutes": round((time.monotonic() - began) / 60, 1),
                **found,
            }
            keep(record, path)  # case by case: what is measured is not lost with what comes after


def kept(path: Path) -> dict[str, Any]:
    """What is known of each case; nothing where there is no record.

    Raises:
        ValueError: what is there is no record.
    """
    if not path.is_file():
        return {}
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is there and is no record ({error}): delete it, or give another --out"
        ) from None
    if strange := [name for name in record if name not in CASES]:
        raise ValueError(
            f"{path} is there and is no record (it has {strange[0]}, which is no case): delete it, or give another --out"
        )
    return record


def keep(record: Mapping[str, Any], path: Path) -> None:
    """Write a record, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(record, indent=1) + "\n", path)
    print(f"kept in {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


def in_one_sentence(command: Callable[[], None]) -> None:
    """Do a command; a mistake ends it with exit code 2, a worker that has ended with 1, and one sentence."""
    try:
        command()
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    in_one_sentence(main)
