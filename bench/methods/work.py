"""Does the work of cells, several at a time, each in a process of its own; what is there is not done again.

    <root>/<cell>/run/              the run directory; snapshots and state, some 400 MB, only until it is scored
    <root>/<cell>/curves/, images/  score rows and divergences, pictures: see `evals.curve`
    <root>/<cell>/trainings.jsonl   of each time that it was trained: seconds, load, what ran beside, and by which code
    <root>/<cell>/experiment.json   what is trained there
    <root>/<cell>/log               what the process said
    <root>/<cell>/scores.csv.xz     the score rows of all its checkpoints
    <root>/<cell>/cell.json         written last: what was trained, what each of its checkpoints had taken, and how far it is from the base
    <root>/<cell>/stopped.json      in its place where training stopped by itself: weights that diverged, a broken reward or gate

The last three are all that pages read. They are small, and the repository keeps those of its pages, so that a method of one's own stands beside them without training theirs again.

A process holds a lock while it works on a cell, so that one that was left behind and a new one do not write the same files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

import prompts
from bench.methods.cells import KL_PROMPTS, MODEL, Cell
from bench.methods.code import Code, Trained, code_of, recorded, unlike
from evals import signals, suites
from evals.checkpoints import SNAPSHOT_CARD, SNAPSHOTS, find_base, resolve, snapshot_folder, snapshots_of
from evals.files import write_text
from evals.provenance import sha256
from prompts.lock import locked
from train.config import as_json, differences

DONE, STOPPED, TRAININGS, SCORES = "cell.json", "stopped.json", "trainings.jsonl", "scores.csv.xz"
RUN, CURVES, IMAGES, TRAINED = "run", "curves", "images", "experiment.json"
STATE = "state"
"""Of a run, to resume from."""
MEASURED = ("date", "seconds", "cpu_seconds", "load", "threads", "jobs", "cpus")
"""Of a training."""


# ------------------------------------------------------------------------------------------------------------- what is there


def source_of(cell: Cell) -> dict[str, Any]:
    """What decides a cell's scores, beside what was trained."""
    return _source_of(cell.suite, cell.prompt_set, cell.experiment.base)


@cache
def _source_of(suite_name: str, prompt_set: str, base: str) -> dict[str, Any]:
    from evals import divergence, scorers

    suite = suites.only(suites.load(suite_name), [prompt_set])
    names = {name for part in suite.parts for name in part.scorers}
    return {
        "base": resolve(find_base(base)).digest(),
        "suite": repr(suite),
        "prompts": prompts.digest(prompts.load(prompt_set)),
        "versions": {name: scorers.load(name, domain=suite.domain).version for name in sorted(names)},
        "divergence": [divergence.version(), KL_PROMPTS],
    }


def record_of(cell: Cell, root: Path) -> dict[str, Any] | None:
    """What is kept of a cell that is done, by today's scorers; None where there is nothing, or it is to be scored again.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    path = root / cell.key / DONE
    record = _json(path)
    if record is None or record.get("source") != source_of(cell) or not _is_of(record, cell, path):
        return None
    _refuse_partial(record, path)
    return record


def why_missing(cell: Cell, root: Path) -> str:
    """Why a page has no numbers of a cell, where it might have; empty where there is nothing of it."""
    path = root / cell.key / DONE
    record = _json(path)
    if record is None:
        return ""
    if not _is_of(record, cell, path):
        return "trained when a default was another"
    return "scored by other scorers or on other prompts than today's" if record_of(cell, root) is None else ""


def by_other_code(cells: Sequence[Cell], root: Path) -> list[str]:
    """Sentences on cells of a reward that are not all trained by one code, once those that are left are trained by today's; none where they are, or of none it is known."""
    done, left = list[Trained](), list[Cell]()
    for cell in cells:
        if (record := record_of(cell, root)) is not None:
            done.append(Trained(cell.label, cell.seed, recorded(record["trainings"])))
        elif not is_done(cell, root):
            left.append(cell)
    if not done:
        return []
    today = [Trained(f"{cell.label}, to be trained", cell.seed, code_of(cell)) for cell in left]
    return unlike([*done, *today])


def stopped_of(cell: Cell, root: Path) -> str | None:
    """The sentence with which the training of a cell stopped by itself, or None.

    Raises:
        ValueError: naming the file, where it is damaged.
    """
    path = root / cell.key / STOPPED
    record = _json(path)
    return None if record is None or not _is_of(record, cell, path) else str(record.get("sentence"))


def _is_of(record: Mapping[str, Any], cell: Cell, path: Path) -> bool:
    """Whether it tells of this cell: what is at its default is not in the cell's key, and the default may have changed since.

    Raises:
        ValueError: naming the file, where it does not say of what it tells.
    """
    try:
        return not differences(record["experiment"], as_json(cell.experiment))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged (it lacks experiment, or part of it: {error!r}): delete it, and it is made again"
        ) from None


def refuse_other_scores(cell: Cell, record: Mapping[str, Any], root: Path) -> None:
    """Refuse score rows that are not those that the record was written with.

    Raises:
        ValueError: naming the folder.
    """
    path = root / cell.key / SCORES
    if not path.is_file() or sha256(path) != record.get("scores"):
        what = "has changed since" if path.is_file() else "is gone"
        raise ValueError(f"{path} {what}: delete {path.parent}, and the cell is made again")


def trainings_of(cell: Cell, root: Path) -> list[dict[str, Any]]:
    """How a cell was trained, each time."""
    return _trainings(root / cell.key / TRAININGS)


def _trainings(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of trainings.

    Raises:
        ValueError: naming it, where it is damaged.
    """
    if not path.is_file():
        return []
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not _are_trainings(found):
            raise ValueError(f"a line lacks one of {', '.join(MEASURED)}")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete {path.parent}, and the cell is made again"
        ) from None
    return found


def _are_trainings(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("date"), str)
        and all(isinstance(one.get(key), int | float) for key in MEASURED if key != "date")
        and isinstance(one.get("code", {}), dict)  # not recorded before there was a need
        for one in found
    )


def seconds_each(cells: Sequence[Cell], root: Path) -> dict[str, float]:
    """Seconds of training for a denoiser evaluation, by method, of cells that were done on such a machine; of all of them under the empty name."""
    taken: dict[str, list[float]] = {}
    records = [(cell, record) for cell in cells if (record := record_of(cell, root)) is not None]
    here = _processor() if records else ""
    for cell, record in records:
        if record["machine"].get("processor") == here:
            last = record["points"][-1]
            for name in (cell.method, ""):
                taken.setdefault(name, []).append(last["seconds"] / last["denoiser_evaluations"])
    return {name: sum(each) / len(each) for name, each in taken.items()}


def is_done(cell: Cell, root: Path) -> bool:
    """Whether nothing is left to do."""
    return record_of(cell, root) is not None or stopped_of(cell, root) is not None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no record")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is made again") from None
    return found


def _refuse_partial(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a record that lacks what tables read.

    Raises:
        ValueError: naming the file.
    """
    points, machine = record.get("points"), record.get("machine")
    lacks = [key for key in ("command", "date") if not isinstance(record.get(key), str)]
    if not _are_trainings(record.get("trainings")):
        lacks.append("trainings")
    if not isinstance(machine, dict) or not isinstance(machine.get("name"), str):
        lacks.append("machine")
    if not isinstance(points, list) or len(points) < 2 or not all(map(_is_point, points)):
        lacks.append("points")
    if lacks:
        raise ValueError(
            f"{path} is damaged (it lacks {', '.join(lacks)}, or part of it): delete it, and it is made again"
        )


def _is_point(found: Any) -> bool:
    """Whether it says of a checkpoint what tables read."""
    if not isinstance(found, dict):
        return False
    numbers = [found.get(key) for key in ("iteration", "images", "denoiser_evaluations", "seconds")]
    nats = found.get("nats")
    if not isinstance(nats, list) or not nats:
        return False
    return isinstance(found.get("experiment"), str) and all(
        isinstance(number, int | float) for number in [*numbers, *nats]
    )


# --------------------------------------------------------------------------------------------------------- one, in this process


def do(cell: Cell, root: Path, jobs: int, command: str) -> int:
    """Train a cell as far as it is not, and score it.

    Args:
        cell: to be done.
        root: folder of all cells.
        jobs: how many are done at a time, for the record.
        command: that they are done for, for the record.

    Returns:
        the exit code: 0, or 128 and the signal that came.

    Raises:
        ValueError: one sentence, for whatever the user can mend.
    """
    folder = root / cell.key
    with locked(folder / "lock"):
        if is_done(cell, root):
            return 0
        _forget_another(cell, folder)
        code = _train(cell, folder, jobs)
        if code or (folder / STOPPED).is_file():
            return code
        points = score(cell, folder)
        record = {
            "reward": cell.reward,
            "method": cell.method,
            "seed": cell.seed,
            "budget": cell.budget,
            "settings": list(cell.settings),
            "experiment": as_json(cell.experiment),
            "source": source_of(cell),
            "points": points,
            "scores": sha256(folder / SCORES),
            "command": command,
            "machine": _machine(),
            "date": _now(),
            "trainings": trainings_of(cell, root),
        }
        write_text(json.dumps(record, indent=1) + "\n", folder / DONE)
        for part in (SNAPSHOTS, STATE):  # ten times as large as what is handed over, and needed no more
            shutil.rmtree(folder / RUN / part, ignore_errors=True)
    return 0


def _forget_another(cell: Cell, folder: Path) -> None:
    """Remove what was begun in this folder before a default changed: it is of another cell, and would be refused for ever."""
    trained, told = as_json(cell.experiment), folder / TRAINED
    if told.is_file() and _json(told) != trained:
        for part in (RUN, CURVES, IMAGES):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / TRAININGS).unlink(missing_ok=True)
    (folder / STOPPED).unlink(missing_ok=True)
    write_text(json.dumps(trained) + "\n", told)


def _train(cell: Cell, folder: Path, jobs: int) -> int:
    """Train a cell to its end; again, where it is to be scored again and its snapshots are gone.

    Returns:
        the exit code; 0 also where it stopped by itself, which then says `STOPPED`.
    """
    from train.data import DataFailed
    from train.gates import GateBroken
    from train.loop import Stopped, train
    from train.start import finished_card, hand_over, new_accelerator, prepare
    from train.state import Identity

    out = folder / RUN
    if finished_card(out, Identity(as_json(cell.experiment), MODEL, cell.seed)) is not None:
        if {*snapshots_of(out)} >= {*cell.snapshots}:
            return 0
        shutil.rmtree(out)
        (folder / TRAININGS).unlink(missing_ok=True)
    came = [0]  # the signals that ask to stop: training saves first
    with signals.caught(came.append), training(folder / TRAININGS, jobs, code_of(cell)):
        try:
            accelerator = new_accelerator(cell.experiment.update.sharding, cell.experiment.update.cuda_graphs)
            run = prepare(
                cell.experiment, MODEL, cell.seed, out, accelerator, stop_requested=lambda: came[-1]
            )
            train(run)
            hand_over(run, cell.run_name)
        except (Stopped, GateBroken) as stopped:
            if isinstance(stopped, Stopped) and stopped.exit_code > 128:
                return stopped.exit_code
            if isinstance(stopped.__cause__, DataFailed):  # which the user mends
                raise ValueError(str(stopped)) from stopped
            # without what is said of resuming: the same would come of it
            sentence = str(stopped.__cause__ or stopped)
            told = {"sentence": sentence, "date": _now(), "experiment": as_json(cell.experiment)}
            write_text(json.dumps(told) + "\n", folder / STOPPED)
    return 0


@contextmanager
def training(path: Path, jobs: int, code: Code) -> Iterator[None]:
    """Add to a file what the time of the block was measured under, and which code trains in it.

    seconds and cpu_seconds of this process; load: mean of the machine's load average over a minute, taken every few seconds; threads, jobs, cpus.
    """
    import torch

    loads, ended = [os.getloadavg()[0]], threading.Event()

    def watch() -> None:
        while not ended.wait(5.0):
            loads.append(os.getloadavg()[0])

    before = _trainings(path)
    date, start, cpu = _now(), time.monotonic(), time.process_time()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        line = {
            "date": date,
            "seconds": round(time.monotonic() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "load": round(sum(loads) / len(loads), 2),
            "threads": torch.get_num_threads(),
            "jobs": jobs,
            "cpus": os.cpu_count(),
            "code": code,
        }
        write_text("".join(json.dumps(one) + "\n" for one in [*before, line]), path)


def score(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """Score the base, the snapshots and the end of a cell's run, and put the rows of all into one file.

    Returns:
        of each: experiment as in its score rows, iteration, what training had taken: images, denoiser_evaluations, seconds; and
        nats: its divergence from the base on each of `KL_PROMPTS` prompts.
    """
    from evals import rows
    from evals.curve import nats_to_base, scored

    run, curves = folder / RUN, folder / CURVES
    targets = [f"{run}@0", *(f"{run}@{n}" for n in cell.snapshots), str(run)]
    checkpoints = [resolve(target) for target in targets]
    files = [
        scored(target, checkpoint, cell.suite, curves, [cell.prompt_set])
        for target, checkpoint in zip(targets, checkpoints, strict=True)
    ]
    rows.write(rows.by_picture(rows.read(files)), folder / SCORES)
    suite = suites.only(suites.load(cell.suite), [cell.prompt_set])
    found = nats_to_base(checkpoints, suite, curves, KL_PROMPTS, 1)
    nats = [[sum(each) / len(each) for each in of[cell.prompt_set]] for of in found]
    nats = [[0.0] * len(nats[0]), *nats]
    cards = [*(snapshot_folder(run, n) / SNAPSHOT_CARD for n in cell.snapshots), run / "run.json"]
    costs: list[Mapping[str, Any]] = [{"images": 0, "denoiser_evaluations": 0, "seconds": 0.0}]
    costs += [json.loads(card.read_text(encoding="utf-8"))["cost"] for card in cards]
    at = [0, *cell.snapshots, cell.experiment.iterations]
    return [
        {
            "experiment": checkpoint.experiment,
            "iteration": iteration,
            **{what: cost[what] for what in ("images", "denoiser_evaluations", "seconds")},
            "nats": nats_P,
        }
        for checkpoint, iteration, cost, nats_P in zip(checkpoints, at, costs, nats, strict=True)
    ]


def _machine() -> dict[str, str]:
    from evals.provenance import machine
    from train.records import device_name

    return {"name": device_name(), "processor": _processor(), **machine("cpu")}


def _processor() -> str:
    from train.records import processor

    return processor()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ------------------------------------------------------------------------------------------------------ several, in processes


@dataclass
class Crew:
    """Processes at work, each on a cell."""

    arguments: Callable[[Cell], list[str]]
    """The command line that does one of them."""
    root: Path
    threads: int
    at_work: dict[subprocess.Popen[bytes], Cell] = field(default_factory=dict)
    came: int = 0
    """The signal that asks to stop, 0 for none."""

    def run(self, cells: Sequence[Cell], jobs: int) -> list[str]:
        """Do all, so many at a time.

        Returns:
            a sentence for each that failed.

        Raises:
            SystemExit: with 128 and the signal that asked to stop, once all have saved and ended.
            OSError: one cannot be begun; the others have saved and ended.
        """
        waiting, failed = list(cells), list[str]()
        with signals.caught(self._pass_on), tqdm(total=len(cells), desc="cells", file=sys.stderr) as told:
            try:
                while (waiting and not self.came) or self.at_work:
                    while waiting and len(self.at_work) < jobs and not self.came:
                        self._start(waiting.pop(0))
                    time.sleep(0.1)
                    for process in [p for p in self.at_work if p.poll() is not None]:
                        cell = self.at_work.pop(process)
                        told.update(not process.returncode)
                        if process.returncode and not self.came:
                            failed.append(f"{cell.key}: {last_words(self.root / cell.key / 'log')}")
            finally:
                self._end()
        if self.came:
            for sentence in failed:
                print(f"error: {sentence}", file=sys.stderr)
            print("stopped: what is done is kept, and the same command goes on", file=sys.stderr)
            raise SystemExit(128 + self.came)
        return failed

    def _end(self) -> None:
        """Ask all that are at work to save and stop, and wait for them."""
        for process in self.at_work:
            process.terminate()
        for process in self.at_work:
            process.wait()

    def _start(self, cell: Cell) -> None:
        folder = self.root / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with (folder / "log").open("ab") as log:
            # a session of its own: a Ctrl-C of the terminal comes from here only, and once
            process = subprocess.Popen(
                self.arguments(cell), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.at_work[process] = cell
        if self.came:  # since it was begun, so that nobody has told it
            process.send_signal(self.came)

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGHUP:
            signals.leave_terminal()
        self.came = number
        for process in self.at_work:
            process.send_signal(number)


def last_words(log: Path) -> str:
    """What a process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
