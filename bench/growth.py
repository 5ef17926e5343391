"""How time and memory grow with batch, denoising steps, trained steps, processes, the size of the prompt set and the pictures that are scored: `python -m bench.growth`.

Each point is an iteration of the miniature after a first one, in a process of its own, so that its peak memory is its own; of the prompt set it is what an iteration asks of it, and
what holding it takes; of pictures it is `evals score --pictures`, after a first one of few. The batch grows in micro-batches of one size. With two processes each has one thread, as one has there.

An axis is straight or better where its exponent, the slope of log(cost) over log(size) from least squares, is at most `STRAIGHT`, and that of its two largest sizes too: 1 is a straight
line through the origin, less is one with a constant, or a curve that flattens. Written to `results/bench/growth`, a CSV and a picture for each hardware; axes that were not measured
keep what they had.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import Machine, record_path
from bench.memory import forget_peak, peak_mib
from evals.checkpoints import ROOT
from evals.files import write_text
from evals.svg import Line, chart
from train.launch import free_port
from train.records import FOLDER

STRAIGHT = 1.1
"""Largest exponent that counts as straight: noise moves one by less than a tenth over the ranges here."""
ROUNDS = 3
MICRO_BATCH = 16
BATCH, STEPS, TRAINED = 32, 10, 2
"""Where an axis is not the one that grows."""
AXES: dict[str, tuple[int, ...]] = {
    "batch": (16, 32, 64, 128),
    "steps": (5, 10, 20, 40),
    "trained_steps": (1, 2, 4, 8),
    "processes": (1, 2),
    "prompts": (10**3, 10**4, 10**5, 10**6, 10**7),
    "pictures": (240, 480, 960, 1920, 3840),
    "drift": (240, 480, 960, 1920, 3840),
}
SCORED_ON = "miniature-scenes-unseen"
SCORERS = {"pictures": ("fully_right", "objects"), "drift": ("fully_right", "objects", "kid")}
"""Of the axes whose points are pictures that are scored: the first look at one at a time, KID compares each with all others."""
TITLES = {
    "batch": "images of an iteration",
    "steps": "denoising steps",
    "trained_steps": "trained steps",
    "processes": "processes",
    "prompts": "prompts in the set",
    "pictures": "pictures scored",
    "drift": "pictures scored, by KID too",
}


@dataclass(frozen=True)
class Point:
    """One measurement."""

    axis: str
    size: int
    seconds: float
    """Of an iteration, of asking a set for an iteration's prompts the first time, or of scoring pictures: the least of a few."""
    mib: float
    """Most resident memory, of all processes together; of a prompt set what was added to it."""


UNITS: dict[str, Callable[[Point], float]] = {
    "s": lambda point: point.seconds,
    "MiB": lambda point: max(
        point.mib, 1.0
    ),  # below a page or two nothing can be told, and 0 has no logarithm
}


def iteration(size: dict[str, int]) -> tuple[float, float | None]:
    """Seconds of an iteration of the miniature in this process, the least of a few, and its peak memory in MiB."""
    from bench.bare import now
    from train import experiments
    from train.loop import iterate
    from train.start import new_accelerator, prepare

    paper = experiments.load("imagereward", "miniature")
    (task,) = paper.tasks
    experiment = replace(
        paper,
        tasks=(replace(task, batch=size["batch"]),),
        sampling=replace(paper.sampling, steps=size["steps"], micro_batch=MICRO_BATCH),
        update=replace(paper.update, trained_steps=size["trained_steps"], micro_batch=MICRO_BATCH),
        iterations=10**6,
        save_every=10**6,
        samples_every=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        # each process keeps its log, which only the main one writes, for itself
        run = prepare(experiment, "miniature", 0, Path(folder) / "run", new_accelerator())
        iterate(run, 0)
        forget_peak()
        seconds = []
        for _ in range(ROUNDS):
            start = now()
            iterate(run, run.progress.iteration)
            seconds.append(now() - start)
    return min(seconds), peak_mib()


def asking(count: int) -> tuple[float, float | None]:
    """Seconds until an iteration has its prompts of a set of so many, made when asked for, the least of a few, and MiB that this takes once."""
    from bench.bare import now
    from prompts import LazyPrompts
    from train import experiments
    from train.data import prompts_of

    (task,) = experiments.load("imagereward", "miniature").tasks
    prompts_of(task, LazyPrompts(_prompt, 10, "made up"), 0, 0)
    forget_peak()
    before, after, seconds = peak_mib(), list[float | None](), []
    for seed in range(1, 1 + ROUNDS):  # another seed has another order: no time is saved by what is kept
        start = now()
        prompts_of(task, LazyPrompts(_prompt, count, "made up"), seed, 0)
        seconds.append(now() - start)
        after.append(peak_mib())  # of the first: those of earlier seeds stay beside the later ones
    return min(seconds), None if before is None or after[0] is None else after[0] - before


def _prompt(number: int) -> Any:
    from prompts import Prompt

    return Prompt(f"{number}", f"picture number {number}")


def scoring(count: int, names: Sequence[str]) -> tuple[float, float | None]:
    """Seconds that scoring so many pictures of a folder takes in this process, the least of a few, and its peak memory in MiB.

    Args:
        count: a multiple of `SCORED_ON`'s prompts.
        names: of the miniature's scorers.
    """
    from bench.bare import now
    from prompts import load

    each, few = count // len(load(SCORED_ON)), 2
    with tempfile.TemporaryDirectory() as folder:
        pictures, seconds = Path(folder) / "pictures", []
        _draw(pictures, max(each, few))
        _score(pictures, few, names, Path(folder) / "few.csv")
        forget_peak()
        for again in range(ROUNDS):
            start = now()
            _score(pictures, each, names, Path(folder) / f"{again}.csv")
            seconds.append(now() - start)
    return min(seconds), peak_mib()


def _draw(folder: Path, each: int) -> None:
    """Pictures of every prompt by the miniature's renderer, as they are asked for."""
    import numpy as np
    from PIL import Image

    from evals.miniature.calibration import scene
    from prompts import load

    for number, prompt in enumerate(load(SCORED_ON)):
        (folder / prompt.id).mkdir(parents=True)
        for image in range(each):
            drawn = scene(prompt, "faithful", np.random.default_rng([number, image])).picture
            pixels_HWC = (np.asarray(drawn) * 255).round().astype(np.uint8)
            Image.fromarray(pixels_HWC).save(folder / prompt.id / f"{image}.png")


def _score(folder: Path, each: int, names: Sequence[str], out: Path) -> None:
    """As `evals score --pictures` does, of a suite with this many pictures of a prompt."""
    from evals import scorers
    from evals.harness import Scored, Scoring
    from evals.pictures import Given
    from evals.suites import Part
    from evals.suites.miniature import SUITE

    suite = replace(SUITE, parts=(Part(SCORED_ON, each, tuple(names)),), name="growth")
    loaded = {name: scorers.load(name, "cpu", suite.domain) for name in names}
    whose = Scored("base", "miniature", 0, "growth:given")
    Scoring(suite, whose, Given(folder, suite, "base"), loaded, out, "cpu", {}).run()


def taken(sizes: dict[str, int]) -> tuple[float, float | None]:
    """Seconds and MiB of a point, in this process."""
    for axis, names in SCORERS.items():
        if axis in sizes:
            return scoring(sizes[axis], names)
    return asking(sizes["prompts"]) if "prompts" in sizes else iteration(sizes)


def measured(axis: str, size: int) -> Point:
    """A point, in processes of its own.

    Raises:
        RuntimeError: with the last line of what it said, where one failed.
    """
    sizes = {"batch": BATCH, "steps": STEPS, "trained_steps": TRAINED} | {axis: size}
    processes = size if axis == "processes" else 1
    environment = dict(os.environ)
    if axis == "processes":
        environment |= {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        environment |= {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.growth", "--point", json.dumps(sizes)],
            cwd=ROOT,
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    told = [process.communicate() for process in running]
    for process, (_, error) in zip(running, told, strict=True):
        if process.returncode:
            raise RuntimeError(f"{axis} {size} failed: {(error.strip().splitlines() or [''])[-1]}")
    found = [json.loads(answer.splitlines()[-1]) for answer, _ in told]
    return Point(
        axis,
        size,
        max(each["seconds"] for each in found),
        sum(each["mib"] if each["mib"] is not None else math.nan for each in found),
    )


def units(points: Sequence[Point]) -> dict[str, Callable[[Point], float]]:
    """What there is to tell: no memory where the system does not say it."""
    return {unit: value for unit, value in UNITS.items() if all(math.isfinite(value(p)) for p in points)}


def exponent(points: Sequence[Point], value: Callable[[Point], float]) -> float:
    """Slope of log(value) over log(size), by least squares."""
    return slope_of([math.log(p.size) for p in points], [math.log(value(p)) for p in points])


def slope_of(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through points by least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def line_of(points: Sequence[Point], value: Callable[[Point], float]) -> tuple[float, float]:
    """Constant and slope by least squares: what an axis costs at nothing, and for each one more."""
    sizes, values = [float(p.size) for p in points], [value(p) for p in points]
    slope = slope_of(sizes, values)
    return (sum(values) - slope * sum(sizes)) / len(points), slope


def is_steep(points: Sequence[Point], value: Callable[[Point], float]) -> bool:
    """Whether it grows faster than a straight line, or does at its end: a flat beginning hides that."""
    return max(exponent(points, value), exponent(points[-2:], value)) > STRAIGHT


def told(points: Sequence[Point]) -> str:
    """A line on an axis, for a reader."""
    parts = []
    for unit, value in units(points).items():
        power, (constant, slope) = exponent(points, value), line_of(points, value)
        end = exponent(points[-2:], value)
        shape = "STEEPER than straight" if is_steep(points, value) else "straight or better"
        parts.append(
            f"{constant:.3g} {unit} + {slope:.3g} {unit} each, exponent {power:.2f} ({end:.2f} at its end), {shape}"
        )
    return f"{TITLES[points[0].axis]}: {'; '.join(parts)}"


STYLE = """<style>
svg { font: 11px sans-serif; fill: currentColor } .chart { overflow: visible }
.axis { stroke: #888 } .grid { stroke: #ddd } polyline { fill: none; stroke: #2563a8; stroke-width: 2 }
.mib { stroke: #b4501e } text { fill: #444 }
</style>"""


def picture(points: Sequence[Point], title: str) -> str:
    """Seconds and memory over each axis, one SVG."""
    width, height = 340, 170
    axes = [axis for axis in AXES if any(point.axis == axis for point in points)]
    parts = []
    for row, axis in enumerate(axes):
        of = [point for point in points if point.axis == axis]
        sizes = [float(point.size) for point in of]
        for column, (css, unit, values) in enumerate(
            (("seconds", "s", [p.seconds for p in of]), ("mib", "MiB", [p.mib for p in of]))
        ):
            what = f"{unit} over {TITLES[axis]}"
            drawn = chart([Line(sizes, values, css)], what, TITLES[axis], from_zero=True)
            x, y = column * width, 30 + row * height
            parts.append(f'<svg x="{x}" y="{y}" width="{width - 20}" height="{height - 30}">{drawn}</svg>')
            parts.append(f'<text x="{x + 46}" y="{y - 2}">{unit}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width} {40 + len(axes) * height}">'
        f'{STYLE}<rect width="100%" height="100%" fill="white"/><text x="8" y="14">{title}</text>{"".join(parts)}</svg>\n'
    )


def table(points: Sequence[Point], machine: Machine) -> str:
    """CSV; every line says where and when."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["axis", "size", "seconds", "mib", "device", "load", "date", "commit"])
    for point in points:
        writer.writerow(
            [
                point.axis,
                point.size,
                f"{point.seconds:.4g}",
                f"{point.mib:.4g}",
                machine.device,
                machine.load,
                machine.date,
                machine.commit,
            ]
        )
    return text.getvalue()


def kept(measured: str, path: Path) -> list[dict[str, str]]:
    """The lines of a table, and those of axes that it has not from the one that is there."""
    new = list(csv.DictReader(io.StringIO(measured)))
    old = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []
    again = {line["axis"] for line in new}
    together = [*(line for line in old if line["axis"] not in again), *new]
    return sorted(together, key=lambda line: list(AXES).index(line["axis"]))


def keep(points: Sequence[Point], machine: Machine) -> Path:
    """Write what was measured, beside what was on other axes; returns where."""
    path = record_path(FOLDER / "growth", ".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, text = kept(table(points, machine), path), io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(text.getvalue(), path)
    every = [
        Point(line["axis"], int(line["size"]), float(line["seconds"]), float(line["mib"])) for line in lines
    ]
    write_text(picture(every, machine.device), path.with_suffix(".svg"))
    return path


def all_points(axes: Sequence[str], least: bool) -> Iterator[Point]:
    """One after the other; `least` takes the two smallest sizes of each axis."""
    for axis in axes:
        for size in AXES[axis][: 2 if least else None]:
            point = measured(axis, size)
            print(f"  {axis} {size:,}: {point.seconds:.3g} s, {point.mib:.0f} MiB", file=sys.stderr)
            yield point


def main() -> int:
    """Measure, print, keep; exit code 1 where an axis is steeper than straight. With `--point`, be one process of a measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--axis", action="append", choices=list(AXES), help="may be given several times; all unless given"
    )
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes of each, not kept")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point is not None:
        seconds, mib = taken(given.point)
        print(json.dumps({"seconds": seconds, "mib": mib}))
        return 0
    machine = Machine.here()
    print(machine)
    points = list(all_points(given.axis or list(AXES), given.quick))
    steep = False
    for axis in dict.fromkeys(point.axis for point in points):
        of = [point for point in points if point.axis == axis]
        print(told(of))
        steep |= any(is_steep(of, value) for value in units(of).values())
    if not given.quick:
        print(f"kept in {keep(points, machine)} and beside it")
    return int(steep)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"error: {error}")
