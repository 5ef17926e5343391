"""What is timed one by one, beside a reference operation that is timed with it: `make bench` keeps the ratios, `make bench-check` compares with them.

An operation's ratio is its time over that of a fixed piece of work of its own kind (products and convolutions, tables, or plain Python), done in turn with
it: whatever else the machine does, and whether it is a fast one, falls on both. All operations are gone through several times. In each pass the least of some short readings is taken of both,
which what comes and goes does not move; from pass to pass, minutes apart, ratios differ by what lasts. The ratio of every pass is kept, so that a comparison knows by how much ratios differ where nothing has changed:
one file per hardware in `results/bench/operations`. The models are the miniature's.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from time import process_time as processor_time
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bench.bare import BareCalls, now
from bench.machine import Machine, record_path
from bench.memory import forget_peak, peak_mib
from evals import compare, metrics, rows, scorers, stats, tables
from evals.checkpoints import ROOT
from evals.files import write_text
from evals.metrics import Metric
from evals.suites.miniature import SUITE
from prompts import Prompt, load
from train import experiments
from train import state as states
from train.config import Experiment
from train.loop import iterate, save
from train.methods._policy_gradient import policy_gradient
from train.records import FOLDER
from train.run import Run
from train.start import new_accelerator, prepare, restore

Kind = Literal["arithmetic", "python", "tables"]
PASSES = 8
"""Times that all operations are gone through."""
ROUNDS = 8
"""Readings of an operation in a pass, at most; fewer of one that takes long, one at least."""
LEAST_SECONDS = 0.02
"""A shorter operation is repeated until a reading takes as long."""
PASS_SECONDS = 0.2
"""What the readings of an operation in a pass are to take together."""
MOST_REFERENCE_SECONDS = 1.0
"""A reading of the reference takes no longer, however long the operation is."""
LEAST_PASS_SECONDS = 5.0
"""From the beginning of a pass to that of the next, at least: a few short operations are else all measured in one moment."""
SCORES = ROOT / "results" / "scores.csv.xz"
RESAMPLES = 1000


@dataclass(frozen=True)
class Operation:
    """Something that is timed."""

    name: str
    count: int
    """What it does, in `unit`."""
    unit: str
    kind: Kind
    """Of the reference that is timed with it."""
    call: Callable[[], object]
    before: Callable[[], None] = lambda: None
    """Done before each call, off the clock."""


class Taken(NamedTuple):
    """Seconds of a call."""

    wall: float
    cpu: float


class Pass(NamedTuple):
    """What came of one pass, by each clock."""

    ratio: Taken
    """The operation's least time over its reference's."""
    reference: Taken
    """That least time of the reference: how fast the machine was."""


@dataclass(frozen=True)
class Timed:
    """What an operation took."""

    ratio: float
    """Its time over its reference's, median over the passes."""
    least: float
    most: float
    cpu_ratio: float
    """The same of the processor's time of this process, all threads: what other processes do is hardly in it, nor is waiting for a disk."""
    seconds: float
    """Of a call, median."""
    per_second: float
    unit: str
    peak_mib: float | None
    """Most resident memory of the whole process during it."""
    date: str
    commit: str
    load: float
    kind: str = ""
    """Of its reference. Records that were made before passes were kept have neither it nor what follows, and are compared with nothing."""
    passes: tuple[Pass, ...] = ()


# -------------------------------------------------------------------------------------------------------------- reference


def arithmetic() -> None:
    """Convolutions and matrix products of the miniature's sizes, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    image_BCHW = torch.randn(48, 96, 8, 8, generator=generator, requires_grad=True)
    kernel = torch.randn(96, 96, 3, 3, generator=generator)
    tokens_BLD, matrix_DD = (
        torch.randn(48, 64, 160, generator=generator),
        torch.randn(160, 640, generator=generator),
    )
    for _ in range(6):
        (F.conv2d(image_BCHW, kernel, padding=1).sum() + (tokens_BLD @ matrix_DD).sum()).backward()


def python() -> None:
    """Sorting, dictionaries, JSON and small arrays: one thread, and no library that would hide it."""
    numbers = np.random.default_rng(0).normal(size=20_000)
    for _ in range(3):
        kept = {f"{i}": value for i, value in enumerate(sorted(numbers.tolist()))}
        json.loads(json.dumps(kept))
        for _ in range(50):
            np.sort(numbers)


def on_tables() -> None:
    """Grouping, joining and resampling of a table as large as a metric is given: the same thousands of small calls inside pandas and numpy, which feel a busy machine as those of a metric do."""
    table, weight_NP = _made_up_table()
    keys = ["seed", "set", "prompt"]
    summed = table.groupby(keys, sort=True)["value"].agg(["sum", "count"])
    wide = table.pivot_table(index=keys, columns="image", values="value")
    joined = summed.join(wide, how="inner")
    table[table["value"].notna()].merge(table[[*keys, "image"]], on=[*keys, "image"])
    mean_NS = weight_NP @ joined.to_numpy() / weight_NP.sum(axis=1, keepdims=True)
    np.quantile(mean_NS, [0.025, 0.975], axis=0)


@cache
def _made_up_table() -> tuple[pd.DataFrame, stats.Array]:
    """Made-up scores of 553 prompts, and weights of a thousand resamples."""
    generator, prompts, images = np.random.default_rng(0), 553, 4
    table = pd.DataFrame(
        {
            "seed": 0,
            "set": "made-up",
            "prompt": [f"{number:05d}" for number in range(prompts) for _ in range(images)],
            "image": [*range(images)] * prompts,
            "value": generator.normal(size=prompts * images),
        }
    )
    return table, generator.exponential(size=(RESAMPLES, prompts))


REFERENCES: dict[Kind, Callable[[], None]] = {"arithmetic": arithmetic, "python": python, "tables": on_tables}


# ------------------------------------------------------------------------------------------------------------- operations


class Workbench:
    """A run of the miniature, and whatever else the operations work on; each made when it is first needed."""

    def __init__(self, folder: Path, batch: int | None = None, prompts_of_metrics: int = 553) -> None:
        """Keep the sizes.

        Args:
            folder: for the run.
            batch: images; a micro-batch of the miniature unless given.
            prompts_of_metrics: prompts that a metric is given, of the 553 whose GenEval tasks are known.
        """
        self.folder, self.prompts_of_metrics = folder, prompts_of_metrics
        self.batch = batch or experiments.load("imagereward", "miniature").sampling.micro_batch

    @cached_property
    def experiment(self) -> Experiment:
        """The preference experiment on one micro-batch."""
        chosen = experiments.load("imagereward", "miniature")
        (task,) = chosen.tasks
        return replace(
            chosen,
            tasks=(replace(task, batch=self.batch),),
            sampling=replace(chosen.sampling, micro_batch=self.batch),
            update=replace(chosen.update, micro_batch=self.batch),
            iterations=10**6,
            save_every=10**6,
            samples_every=0,
        )

    @cached_property
    def run(self) -> Run:
        """It, after its first iteration: AdamW's moments are there, embeddings are kept."""
        run = prepare(self.experiment, "miniature", 0, self.folder / "run", new_accelerator())
        iterate(run, 0)
        return run

    @cached_property
    def texts(self) -> list[str]:
        """As many as images."""
        return [prompt.text for prompt in self.asked("miniature-preference-unseen", 1)]

    def asked(self, prompt_set: str, images: int) -> list[Prompt]:
        """Prompts of a set, each so many times, as many as images."""
        return [prompt for prompt in load(prompt_set) for _ in range(images)][: self.batch]

    def pictures(self, prompts: Sequence[Prompt]) -> Tensor:
        """The base's."""
        return self.run.policy.painter.paint([p.text for p in prompts], range(len(prompts)), 0)


def operations(bench: Workbench) -> Iterator[Operation]:
    """All of them; what one needs is made when it is asked for."""
    for name, make in makers().items():
        yield make(bench, name)


def makers() -> dict[str, Callable[[Workbench, str], Operation]]:
    """How each operation is made, by its name."""
    return {
        "iteration": _iteration,
        "bare calls of an iteration": _bare,
        "rollout": _rollout,
        "decoder": _decoder,
        "update": _update,
        "saving": _saving,
        "resuming": _resuming,
        **{f"reward {name}": _reward for name in scorers.names("miniature")},
        **{f"metric {name}": _metric for name in metrics.names()},
        "table": _table,
    }


def _iteration(bench: Workbench, name: str) -> Operation:
    run = bench.run
    return Operation(name, bench.batch, "images", "arithmetic", lambda: iterate(run, run.progress.iteration))


def _bare(bench: Workbench, name: str) -> Operation:
    return Operation(name, bench.batch, "images", "arithmetic", BareCalls(bench.run))


def _rollout(bench: Workbench, name: str) -> Operation:
    painter, texts = bench.run.policy.painter, bench.texts
    keep = bench.run.drawable
    count = len(texts) * len(painter.schedule) * painter.sampling.branches

    def draw() -> None:
        painter.draw(texts, range(len(texts)), 0, keep=keep)

    return Operation(name, count, "denoiser evaluations", "arithmetic", draw)


def _decoder(bench: Workbench, name: str) -> Operation:
    painter = bench.run.policy.painter
    latents = torch.randn(bench.batch, *painter.latent_shape, generator=torch.Generator().manual_seed(0))
    return Operation(name, bench.batch, "images", "arithmetic", lambda: painter.decode(latents))


def _update(bench: Workbench, name: str) -> Operation:
    run = bench.run
    (task,), method = run.experiment.tasks, run.experiment.method
    batch = method.collect(run, task, 0)

    def step() -> None:
        policy_gradient(run, batch, batch.order[0], 1.0)
        run.policy.optimiser_step()

    return Operation(
        name, bench.batch * run.experiment.sampling.branches, "denoiser evaluations", "arithmetic", step
    )


def _saving(bench: Workbench, name: str) -> Operation:
    run = bench.run

    def elsewhere() -> None:
        run.progress.iteration += 1  # a state of the same place is not written twice

    return Operation(name, 1, "states", "python", lambda: save(run), elsewhere)


def _resuming(bench: Workbench, name: str) -> Operation:
    run = bench.run
    run.progress.iteration += 1
    save(run)

    def resume() -> None:
        checkpoint = states.latest(run.out / "state")
        assert checkpoint is not None
        states.read(checkpoint)
        restore(run, checkpoint)

    return Operation(name, 1, "states", "python", resume)


def _reward(bench: Workbench, name: str) -> Operation:
    scorer_name = name.split()[1]
    part = next(part for part in SUITE.parts if scorer_name in part.scorers)
    scorer = scorers.load(scorer_name, bench.run.accelerator.device, "miniature")
    asked = bench.asked(part.prompt_set, part.images_per_prompt)
    images = bench.pictures(asked)
    base = (images.flip(0),) if scorer.scope == "paired" else ()
    return Operation(name, len(asked), "images", "arithmetic", lambda: scorer(images, asked, *base))


def _metric(bench: Workbench, name: str) -> Operation:
    metric = metrics.load(name.split()[1])
    own, base = rows_of(metric, bench.prompts_of_metrics, 1), rows_of(metric, bench.prompts_of_metrics, 0)
    prompts = len(metric.statistics(own, own.assign(value=base["value"])))  # a metric may leave some out
    weight_NP = stats.weights(prompts, RESAMPLES, 0, "benchmark")
    weight_NR = np.ones((RESAMPLES, 1))

    def estimate() -> None:
        found = metric.statistics(own, own.assign(value=base["value"]))
        values_RPS = found.to_numpy(dtype=np.float64)[None]
        metric.finish(stats.mean_statistics(values_RPS, weight_NR, weight_NP))

    return Operation(name, len(own), "rows", "tables", estimate)


def rows_of(metric: Metric, prompts: int, experiment: int) -> Any:
    """Made-up rows for a metric, four images of each prompt: classes where it counts those, else right or wrong."""
    generator = np.random.default_rng([prompts, experiment])
    classes = range(1, 4) if metric.scorer in ("skin_tone", "monk_tone") else range(2)
    return rows.table(
        rows.Row(
            experiment=("base", "run")[experiment],
            model="miniature",
            seed=0,
            suite="benchmark:012345",
            prompt_set="geneval",
            prompts="0123456789ab",
            prompt_id=f"{prompt:05d}",
            image=image,
            picture=f"{experiment}{prompt:08d}{image:07d}",
            scorer=metric.scorer,
            version="0a1b2c3d",
            trained_on=0,
            value=float(generator.choice(classes)),
        )
        for prompt in range(prompts)
        for image in range(4)
    )


def _table(bench: Workbench, name: str) -> Operation:
    whole = rows.read([SCORES])
    chosen = whole[whole["experiment"].isin(["base", "joint"])].reset_index(drop=True)

    def table() -> None:
        tables.markdown(compare.compare(chosen, RESAMPLES), "python -m evals compare")

    return Operation(name, len(chosen), "rows", "tables", table)


# ----------------------------------------------------------------------------------------------------------------- timing


@dataclass
class Series:
    """An operation that is warm, and what it and its reference took, pass by pass."""

    operation: Operation
    repeats: int
    """Calls of it in a reading."""
    reference_repeats: int
    """Calls of its reference in one, which takes about as long: what comes and goes is then in both alike."""
    rounds: int
    """Readings of each in a pass."""
    times: list[Taken] = field(default_factory=list)
    """Least of each pass."""
    references: list[Taken] = field(default_factory=list)
    peak_mib: float | None = None
    """Of the first pass: later ones have in it what was made since."""

    @classmethod
    def of(cls, operation: Operation) -> Series:
        """Warm it and its reference, and see how long they take."""
        reference = _reference(operation)
        seconds, reference_seconds = (
            max(min(_taken(each, 1).wall for _ in range(2)), 1e-9) for each in (operation, reference)
        )
        repeats = math.ceil(LEAST_SECONDS / seconds)
        reading = seconds * repeats
        return cls(
            operation,
            repeats,
            max(1, round(min(reading, MOST_REFERENCE_SECONDS) / reference_seconds)),
            rounds=min(ROUNDS, max(1, int(PASS_SECONDS / reading))),
        )

    def go(self) -> None:
        """One pass: reference and operation in turn, the least of each by each clock."""
        reference = _reference(self.operation)
        if not self.times:
            forget_peak()
        readings = list[tuple[Taken, Taken]]()
        with without_collecting():
            for _ in range(self.rounds):
                before = _taken(reference, self.reference_repeats)
                readings.append((before, _taken(self.operation, self.repeats)))
        if not self.times:
            self.peak_mib = peak_mib()
        references, times = zip(*readings, strict=True)
        self.references.append(least_of(references))
        self.times.append(least_of(times))

    def timed(self, machine: Machine) -> Timed:
        """What came of all passes."""
        passes = tuple(
            Pass(Taken(own.wall / reference.wall, own.cpu / reference.cpu), reference)
            for own, reference in zip(self.times, self.references, strict=True)
        )
        ratios = [each.ratio.wall for each in passes]
        seconds = statistics.median(own.wall for own in self.times)
        return Timed(
            ratio=statistics.median(ratios),
            least=min(ratios),
            most=max(ratios),
            cpu_ratio=statistics.median(each.ratio.cpu for each in passes),
            seconds=seconds,
            per_second=self.operation.count / seconds,
            unit=self.operation.unit,
            peak_mib=self.peak_mib,
            date=machine.date,
            commit=machine.commit,
            load=machine.load,
            kind=self.operation.kind,
            passes=passes,
        )


def measured(
    names: Sequence[str],
    make: Callable[[str], Operation],
    machine: Machine,
    passes: int = PASSES,
    failed: dict[str, Exception] | None = None,
) -> dict[str, Timed]:
    """Go through operations pass by pass, each of them in every pass.

    Args:
        names: of the operations.
        make: an operation, by its name; asked for in the first pass.
        machine: on which they are.
        passes: how often all are gone through.
        failed: takes what an operation raises, which is then left out of what comes after, as the others took minutes; raised here unless given.
    """
    series, failures = dict[str, Series](), failed if failed is not None else {}
    with tqdm(total=passes * len(names), desc="operations", file=sys.stderr) as told:
        for number in range(passes):
            start = now()
            for name in names:
                told.update()
                if name in failures:
                    continue
                try:
                    if name not in series:
                        series[name] = Series.of(make(name))
                    series[name].go()
                except Exception as error:
                    if failed is None:
                        raise
                    failures[name] = error
            if number + 1 < passes:
                time.sleep(max(0.0, LEAST_PASS_SECONDS - (now() - start)))
    return {name: each.timed(machine) for name, each in series.items() if name not in failures}


def least_of(taken: Sequence[Taken]) -> Taken:
    """The least by each clock: whatever else a machine does makes things slower, never faster."""
    return Taken(min(each.wall for each in taken), min(each.cpu for each in taken))


@contextmanager
def without_collecting() -> Iterator[None]:
    """What was made before is not gone through for garbage while something is timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _reference(operation: Operation) -> Operation:
    return Operation("reference", 1, "calls", operation.kind, REFERENCES[operation.kind])


def _taken(operation: Operation, repeats: int) -> Taken:
    """Of one call, the mean of some."""
    wall = cpu = 0.0
    for _ in range(repeats):
        operation.before()
        once = _clocked(operation.call)
        wall, cpu = wall + once.wall, cpu + once.cpu
    return Taken(wall / repeats, cpu / repeats)


def _clocked(call: Callable[[], object]) -> Taken:
    wall, cpu = now(), processor_time()
    call()
    return Taken(now() - wall, processor_time() - cpu)


# ---------------------------------------------------------------------------------------------------------------- records


def path_here() -> Path:
    """The record of this hardware."""
    return record_path(FOLDER / "operations")


def kept(path: Path) -> dict[str, Timed]:
    """The record in a file, by operation; none where there is no file.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {name: _read(each) for name, each in stored["operations"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or of another version ({error}): delete it, `make bench` makes it again"
        ) from error


def _read(stored: Mapping[str, Any]) -> Timed:
    """An operation as JSON has it."""
    passes = stored.get("passes", ())
    return replace(
        Timed(**stored), passes=tuple(Pass(Taken(*ratio), Taken(*reference)) for ratio, reference in passes)
    )


def keep(path: Path, machine: Machine, found: Mapping[str, Timed]) -> None:
    """Keep what was found in place of what was kept of the same operations."""
    everything = kept(path) | dict(found)
    in_order = [name for name in makers() if name in everything]
    content = {
        "command": "make bench",
        "machine": asdict(machine),
        "operations": {name: asdict(everything[name]) for name in in_order},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(content, indent=1) + "\n", path)
