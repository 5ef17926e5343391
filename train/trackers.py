"""Trackers: TensorBoard and the others that accelerate knows by name, beside metrics.jsonl.

metrics.jsonl is the record, and trackers follow it: after every iteration they are given what it holds of that iteration, with the sheet of
samples that was drawn after it. It loses what a resumed run does again, so at every start trackers are given its whole history once more:

    tensorboard       files in <run>/tensorboard, made anew at every start
    wandb, swanlab    the same run of the tracker goes on, by the name in trackers.json; steps that it has are not given again
    all others        a new run of the tracker, which has everything; the one before is superseded

A tracker is no part of an experiment, and cannot stop one: what it raises is said in a sentence, and it is left alone from there on.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from evals.checkpoints import first_line
from evals.files import write_text
from train.config import Experiment, as_json, choose, flatten
from train.grids import sheet_path
from train.mixing import turns

if TYPE_CHECKING:
    from train.run import Run

NONE = "none"
NAMES = tuple(LOGGER_TYPE_TO_CLASS)
"""Trackers that accelerate knows. Files of tensorboard, wandb, swanlab, aim and dvclive are in a folder of that name in the run directory."""
PROJECT = "text-to-image-rl"
"""Under what a tracker with projects files all runs."""
ID_FILE = "trackers.json"
"""In the run directory: the name by which a tracker knows this run again."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers to use, each once; `none` is no tracker.

    Raises:
        ValueError: an unknown name, `none` among others, or a library that is not installed; with the choices.
    """
    for name in names:
        choose("tracker", name, [*NAMES, NONE])
    if NONE in names:
        if len(set(names)) > 1:
            raise ValueError(f"--tracker {NONE} is no tracker at all: leave it out, or leave the others out")
        return ()
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in installed:
            raise ValueError(
                f"--tracker {name}: its library is not installed in this environment: install {name}, "
                f"or choose from {', '.join([*installed, NONE])}"
            )
    return tuple(dict.fromkeys(names))


class Guarded(GeneralTracker):
    """A tracker of accelerate's that cannot stop training: it is left alone after the first thing that it raises, with one sentence."""

    requires_logging_directory = False

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        """Keep what makes it.

        Args:
            name: as accelerate knows it.
            make: returns accelerate's tracker, not started.
        """
        self.name = name
        self._make = make
        self._inner: Any = None
        self._first_step = 0
        super().__init__()

    @property
    def tracker(self) -> Any:
        """What the library calls a run."""
        return self._inner.tracker

    def start(self) -> None:
        """Begin a run of the tracker, or go on with one, which says what steps it has."""

        def begin() -> None:
            made = self._make()
            made.start()
            if self.name == "wandb":  # it drops steps below this one, each with a warning
                self._first_step = int(made.tracker.step)
            self._inner = made

        self._guarded(begin)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log hyper-parameters."""
        self._call("store_init_configuration", values)

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        """Log scalars of a step."""
        if step is None or step >= self._first_step:
            self._call("log", values, step=step, **kwargs)

    def log_sheet(self, sheet: Image.Image, step: int) -> None:
        """Log a picture of a step, where the tracker takes pictures."""
        if step >= self._first_step and hasattr(self._inner, "log_images"):
            value, options = _as_images(self.name, sheet)
            self._call("log_images", {"samples": value}, step=step, **options)

    def finish(self) -> None:
        """End the run of the tracker, so that everything is written or sent."""
        self._call("finish")
        self._inner = None

    def _call(self, method: str, *arguments: Any, **options: Any) -> None:
        if self._inner is not None:
            self._guarded(lambda: getattr(self._inner, method)(*arguments, **options))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  anybody's library, and no curve is worth a run
            self._inner = None
            print(
                f"note: tracker {self.name} failed ({type(error).__name__}: {first_line(error)}); training goes on without it, "
                "and metrics.jsonl has everything",
                file=sys.stderr,
            )


def _as_images(name: str, picture: Image.Image) -> tuple[Any, dict[str, Any]]:
    """A picture as a tracker's `log_images` wants it, and options beside it."""
    if name == "tensorboard":
        return np.asarray(picture)[None], {"dataformats": "NHWC"}
    return ([picture] if name in ("wandb", "swanlab") else picture), {}


class Trackers:
    """The trackers of one run, on its main process."""

    def __init__(self, run: Run, names: Sequence[str], title: str) -> None:
        """Start them, and give them the hyper-parameters.

        Args:
            run: prepared, with metrics.jsonl cut to where it resumes.
            names: from `chosen`.
            title: name of the run.
        """
        self._accelerator, self._out = run.accelerator, run.out
        self._tasks = len(turns(run.experiment))
        self._read = 0  # bytes of metrics.jsonl
        self._waiting: list[dict[str, Any]] = []
        self._before: dict[str, Any] = {"images": 0, "seconds": 0.0}
        fresh = not run.progress.iteration and not run.progress.phase
        # what Accelerator(log_with=...) sets, which is made before it is known whether there is something to resume
        run.accelerator.log_with = [Guarded(name, _maker(name, run.out, title, fresh)) for name in names]
        about = {"model": run.identity.model, "seed": run.seed, "processes": run.world}
        run.accelerator.init_trackers(PROJECT, hyper_parameters(run.experiment) | about)

    def follow(self) -> None:
        """Give the trackers every iteration that metrics.jsonl has whole and that they have not been given."""
        with (self._out / "metrics.jsonl").open("rb") as file:
            file.seek(self._read)
            self._waiting += map(json.loads, file)
            self._read = file.tell()
        while len(self._waiting) >= self._tasks > 0:
            lines, self._waiting = self._waiting[: self._tasks], self._waiting[self._tasks :]
            step = int(lines[-1]["iteration"])
            self._accelerator.log(scalars(lines, self._before), step=step)
            self._before = lines[-1]
            self._log_sheet(step)

    def _log_sheet(self, step: int) -> None:
        path = sheet_path(self._out, step + 1)
        if not path.is_file():
            return
        with Image.open(path) as picture:
            sheet = picture.convert("RGB")
        for tracker in self._accelerator.trackers:
            tracker.log_sheet(sheet, step)

    def close(self) -> None:
        """End them where training stops before its end, after which `Accelerator.end_training` does it."""
        self.follow()
        for tracker in self._accelerator.trackers:
            tracker.finish()


def start(run: Run, names: Sequence[str], title: str) -> Trackers | None:
    """The trackers of a run, or None where there are none: on other processes than the main one, and where none was asked for."""
    return Trackers(run, names, title) if names and run.accelerator.is_main_process else None


def _maker(name: str, out: Path, title: str, fresh: bool) -> Callable[[], Any]:
    """What makes accelerate's tracker of that name, so that it goes on where it can, and with its files in the run directory."""
    kind, folder = LOGGER_TYPE_TO_CLASS[name], out / name

    def anew() -> Any:
        if folder.is_dir():
            shutil.rmtree(folder)
        return kind(name, str(out))

    def continued(**options: Any) -> Any:
        return kind(PROJECT, id=run_id(out, fresh), resume="allow", name=title, **options)

    makers: dict[str, Callable[[], Any]] = {
        "tensorboard": anew,
        "wandb": lambda: continued(dir=str(out)),
        "swanlab": lambda: continued(log_dir=str(folder)),
        "aim": lambda: kind(title, str(folder)),
        "mlflow": lambda: kind(PROJECT, run_name=title),
        "dvclive": lambda: kind(dir=str(folder), save_dvc_exp=False, dvcyaml=None),
        "clearml": lambda: kind(PROJECT, task_name=title),
    }
    return makers.get(name, lambda: kind(PROJECT))


def run_id(out: Path, fresh: bool) -> str:
    """21 characters by which a tracker knows this run again, kept in the run directory; others for a run that begins."""
    path = out / ID_FILE
    if fresh or not path.is_file():
        write_text(json.dumps({"id": secrets.token_hex(11)[:21]}) + "\n", path)
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])


def hyper_parameters(experiment: Experiment) -> dict[str, bool | int | float | str]:
    """The experiment's fields by dotted name, as every tracker takes them: what is no number is a string."""
    fields = flatten(as_json(experiment))
    return {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in fields.items()
    }


OF_THE_RUN = ("images", "denoiser_evaluations", "seconds")
"""What a line of metrics.jsonl counts from the run's start on, over all tasks."""


def scalars(lines: Sequence[Mapping[str, Any]], before: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an iteration: of each task under its name, and of the run under `run/`.

    Args:
        lines: of metrics.jsonl, one for each task.
        before: the last line of the iteration before, or zeros.
    """
    found: dict[str, float] = {}
    for line in lines:
        own = {key: value for key, value in line.items() if key not in ("iteration", "task", *OF_THE_RUN)}
        found |= _numbers(own, f"{line['task']}/")
    last = lines[-1]
    found |= {f"run/{name}": float(last[name]) for name in OF_THE_RUN}
    seconds = last["seconds"] - before["seconds"]
    if seconds > 0:
        found["run/images_per_second"] = (last["images"] - before["images"]) / seconds
    return found


def _numbers(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """All numbers of nested objects, under the names that lead to them; what is null is left out."""
    return dict(_walk(values, prefix))


def _walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)
