"""Trackers follow metrics.jsonl: what they show, after a kill too; that they cannot stop a run; and what the bar says of pace and cost."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import LoggerType
from click.testing import CliRunner
from safetensors.torch import load_file

from evals.signals import STOPS
from tests import toy
from train import experiments, loop, trackers
from train import state as states
from train.__main__ import main
from train.command import pace
from train.command import run as trainer
from train.config import Experiment
from train.methods._policy_gradient import PolicyGradient
from train.state import Progress
from train.trackers import Guarded, chosen, hyper_parameters, scalars

pytestmark = pytest.mark.usefixtures("toy_scorers", "signals")

ITERATIONS = 3
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers that the trainer sets are put back."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def experiment_of(base: Path | str, prompts: Path | str) -> Experiment:
    return toy.toy_experiment(base, prompts, iterations=ITERATIONS, samples_every=2, save_every=2)


@pytest.fixture
def toy_one(tiny_pipeline_dir: Path, toy_prompts: Path) -> Experiment:
    return experiment_of(tiny_pipeline_dir, toy_prompts)


def curves(folder: Path) -> tuple[Curves, list[int]]:
    """What TensorBoard shows of a folder: scalars by tag, but for times; steps of the samples."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    timeless = [
        tag for tag in events.Tags()["scalars"] if tag not in ("run/seconds", "run/images_per_second")
    ]
    shown = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in timeless}
    pictures = events.Images("samples") if "samples" in events.Tags()["images"] else []
    return shown, [event.step for event in pictures]


def written(out: Path) -> Curves:
    """What metrics.jsonl says, in the same form."""
    found: Curves = defaultdict(list)
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        for key, value in line.items():
            by_name = value if isinstance(value, dict) else {"": value}
            for name, number in by_name.items():
                tag = f"{line['task']}/{key}" + (f"/{name}" if name else "")
                if key not in ("iteration", "task", "seconds", "images", "denoiser_evaluations"):
                    found[tag].append((line["iteration"], number))
    return found


# ------------------------------------------------------------------------------------------------------------ which ones


def test_each_once_and_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.WANDB]
    )
    assert chosen(("wandb", "tensorboard", "wandb")) == ("wandb", "tensorboard")
    assert chosen(("none",)) == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ("tensorbord",),
            r"unknown tracker 'tensorbord' \(did you mean tensorboard\?\): choose from aim, .*, none$",
        ),
        (
            ("none", "tensorboard"),
            "--tracker none is no tracker at all: leave it out, or leave the others out",
        ),
        (
            ("wandb",),
            "--tracker wandb: its library is not installed in this environment: install wandb, or choose from tensorboard, none$",
        ),
    ],
)
def test_others_are_refused_with_the_choices(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match=f"^{told}"):
        chosen(names)


def test_the_command_line_refuses_before_anything_is_done(
    toy_one: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiments, "load", lambda _experiment, _model: toy_one)
    made = CliRunner().invoke(main, ["toy", "--out", str(tmp_path / "run"), "--tracker", "papertrail"])
    assert made.exit_code == 2
    assert made.stderr.startswith("error: unknown tracker 'papertrail'")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- what is logged


def test_numbers_of_an_iteration() -> None:
    lines = [
        {"iteration": 4, "task": "a", "reward_mean": 0.5, "monitors": {"m": None, "n": 2}, "images": 30},
        {"iteration": 4, "task": "b", "reward_mean": None, "grad_norm": {"981": 0.25}, "images": 40},
    ]
    for line, seconds in zip(lines, (7.0, 9.0), strict=True):
        line |= {"denoiser_evaluations": 100, "seconds": seconds}
    assert scalars(lines, {"images": 20, "seconds": 5.0}) == {
        "a/reward_mean": 0.5,
        "a/monitors/n": 2.0,
        "b/grad_norm/981": 0.25,
        "run/images": 40.0,
        "run/denoiser_evaluations": 100.0,
        "run/seconds": 9.0,
        "run/images_per_second": 5.0,
    }


def test_hyper_parameters_are_numbers_and_strings(toy_one: Experiment) -> None:
    found = hyper_parameters(toy_one)
    assert found["update.lr"] == 1e-3
    assert found["lora"] == "null"
    assert found["update.betas"] == "[0.9, 0.999]"
    assert found["tasks.tone.rewards"] == '[{"scorer": "tone", "weight": 1.0}]'
    assert all(isinstance(value, bool | int | float | str) for value in found.values())


# ------------------------------------------------------------------------------------------------------------ TensorBoard


@pytest.fixture(scope="module")
def straight(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A run that was never stopped: folder, curves, samples."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evals.scorers.load", toy.load_scorer)
        assert tracked(experiment_of(tiny_pipeline_dir, toy_prompts), out) == 0
    shown, samples = curves(out / "tensorboard")
    return {"out": out, "curves": shown, "samples": samples}


def tracked(experiment: Experiment, out: Path, *names: str) -> int:
    """Train in this process, or go on with what is there; exit code."""
    return trainer(experiment, "toy-tiny-0", "tiny", 0, out, names or ("tensorboard",))


def killed(base: str, prompts: str, out: str, line: int) -> None:
    """Train, and die after that line of metrics.jsonl."""
    import evals.scorers

    append = states.MetricsLog.append

    def append_and_die(self: states.MetricsLog, record: Any) -> None:
        append(self, record)
        if len(self.path.read_text().splitlines()) == line:
            os.kill(os.getpid(), signal.SIGKILL)

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    states.MetricsLog.append = append_and_die  # type: ignore[method-assign]
    sys.exit(tracked(experiment_of(base, prompts), Path(out)))


def stop_in(monkeypatch: pytest.MonkeyPatch, task: str, iteration: int, by: Callable[[], None]) -> None:
    """Do something that ends the run while that batch is drawn."""
    collect = PolicyGradient.collect

    def collect_and_stop(self: PolicyGradient, run: Any, asked: Any, at: int) -> Any:
        if (asked.name, at) == (task, iteration):
            by()
        return collect(self, run, asked, at)

    monkeypatch.setattr(PolicyGradient, "collect", collect_and_stop)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise KeyboardInterrupt


def test_tensorboard_shows_what_metrics_jsonl_says(straight: dict[str, Any]) -> None:
    shown, expected = straight["curves"], written(straight["out"])
    assert {tag for tag in shown if not tag.startswith("run/")} == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in points], tag
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in points]), tag
    assert [step for step, _ in shown["run/images"]] == list(range(ITERATIONS))
    assert straight["samples"] == [
        1,
        2,
    ]  # sheets after 2 and 3 iterations, with the numbers of the last of these
    assert "redness/grad_norm/751" in shown


def assert_as_straight(out: Path, straight: dict[str, Any]) -> None:
    shown, samples = curves(out / "tensorboard")
    assert shown == straight["curves"]
    assert samples == straight["samples"]
    assert len(list((out / "tensorboard").rglob("hparams.yml"))) == 1


@pytest.mark.parametrize("line", [1, 5])
def test_after_a_kill_it_shows_a_run_that_was_never_stopped(
    straight: dict[str, Any], toy_one: Experiment, toy_prompts: Path, tmp_path: Path, line: int
) -> None:
    """Before the first state, and after one, with an iteration that is done again."""
    out = tmp_path / "run"
    assert toy.launch(1, killed, toy_one.base, str(toy_prompts), str(out), line) == [-signal.SIGKILL]
    assert tracked(toy_one, out) == 0
    assert_as_straight(out, straight)


@pytest.mark.parametrize(("task", "iterations"), [("redness", [0]), ("tone", [0, 1])])
def test_a_stopped_run_shows_its_last_whole_iteration_at_once_and_goes_on(
    straight: dict[str, Any], toy_one: Experiment, tmp_path: Path, task: str, iterations: list[int]
) -> None:
    """Inside an iteration, and after it."""
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        stop_in(patched, task, 1, terminate)
        assert tracked(toy_one, out) == 143
    assert [step for step, _ in curves(out / "tensorboard")[0]["redness/reward_mean"]] == iterations
    assert tracked(toy_one, out) == 0
    assert_as_straight(out, straight)


def test_another_tracker_may_take_over_and_has_the_whole_history(
    straight: dict[str, Any], toy_one: Experiment, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:
        stop_in(patched, "tone", 1, terminate)
        assert trainer(toy_one, "toy-tiny-0", "tiny", 0, out, ()) == 143
    assert not (out / "tensorboard").exists()
    assert tracked(toy_one, out) == 0
    assert_as_straight(out, straight)


def on_two(base: str, prompts: str, out: str) -> None:
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    sys.exit(tracked(replace(experiment_of(base, prompts), iterations=1), Path(out)))


@pytest.mark.slow
def test_only_the_main_process_writes(toy_one: Experiment, toy_prompts: Path, tmp_path: Path) -> None:
    assert toy.launch(2, on_two, toy_one.base, str(toy_prompts), str(tmp_path / "run")) == [0, 0]
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1
    assert [step for step, _ in curves(tmp_path / "run" / "tensorboard")[0]["run/images"]] == [0]


# ------------------------------------------------------------------------------------------------------ tracker services


class Wandb(ModuleType):
    """The part of the library that accelerate calls, with a server that remembers rows; steps below a row's are dropped, as there."""

    def __init__(self, broken: str = "") -> None:
        super().__init__("wandb")
        self.broken, self.asked = broken, list[dict[str, Any]]()
        self.rows: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.dropped: list[int] = []
        self.config = SimpleNamespace(update=lambda values, allow_val_change: None)
        self.finished = 0

    def Image(self, picture: Any) -> Any:
        return picture.size

    def init(self, **options: Any) -> Any:
        self.asked.append(options)
        self._fail_at("init")
        rows = self.rows[options["id"]]
        return SimpleNamespace(step=max(rows, default=-1) + 1, log=self._logger(rows), finish=self._finish)

    def _logger(self, rows: dict[int, dict[str, Any]]) -> Callable[..., None]:
        def log(values: dict[str, Any], step: int) -> None:
            self._fail_at("log")
            if step < max(rows, default=0):
                self.dropped.append(step)
            else:
                rows.setdefault(step, {}).update(values)

        return log

    def _finish(self) -> None:
        self._fail_at("finish")
        self.finished += 1

    def _fail_at(self, place: str) -> None:
        if self.broken == place:
            raise ConnectionError("no route to the service\nand a second line")


@pytest.fixture
def use_wandb(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Wandb]:
    def install(broken: str = "") -> Wandb:
        fake = Wandb(broken)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def test_a_resumed_run_goes_on_in_the_same_run_of_the_service(
    toy_one: Experiment, use_wandb: Callable[..., Wandb], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The crash comes after an iteration that the service has and the saved state does not know."""
    fake, out = use_wandb(), tmp_path / "run"
    for iteration, save_every in ((1, 1), (2, 3)):
        with monkeypatch.context() as patched:
            stop_in(patched, "redness", iteration, crash)
            with pytest.raises(KeyboardInterrupt):
                tracked(replace(toy_one, save_every=save_every), out, "wandb")
    assert tracked(toy_one, out, "wandb") == 0
    ((name, rows),) = fake.rows.items()
    assert len(name) == 21
    assert [options["id"] for options in fake.asked] == [name] * 3
    assert fake.asked[0] == {
        "project": "text-to-image-rl",
        "id": name,
        "resume": "allow",
        "name": "toy-tiny-0",
        "dir": str(out),
    }
    assert sorted(rows) == [0, 1, 2]
    assert fake.dropped == []  # what the service has is not sent again
    assert all(
        {"redness/reward_mean", "tone/reward_mean", "run/seconds"} <= row.keys() for row in rows.values()
    )
    assert [step for step, row in sorted(rows.items()) if "samples" in row] == [1, 2]
    assert fake.finished == 1


def test_a_run_that_begins_again_is_another_one(tmp_path: Path) -> None:
    first = trackers.run_id(tmp_path, fresh=True)
    assert trackers.run_id(tmp_path, fresh=False) == first
    assert trackers.run_id(tmp_path, fresh=True) != first


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    toy_one: Experiment,
    use_wandb: Callable[..., Wandb],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    place: str,
) -> None:
    use_wandb(place)
    assert tracked(replace(toy_one, iterations=1), tmp_path / "run", "wandb", "tensorboard") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(said) == 1
    assert said[0].endswith(
        "note: tracker wandb failed (ConnectionError: no route to the service); training goes on without it, "
        "and metrics.jsonl has everything"
    )
    shown, samples = curves(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in shown["run/images"]] == samples == [0]


def test_a_tracker_without_pictures_gets_none() -> None:
    logged: list[Any] = []
    inner = SimpleNamespace(start=lambda: None, log=lambda values, step: logged.append((values, step)))
    tracker = Guarded("mlflow", lambda: inner)
    tracker.start()
    tracker.log({"a": 1.0}, step=0)
    tracker.log_sheet(None, 0)  # type: ignore[arg-type]
    assert logged == [({"a": 1.0}, 0)]


def test_training_is_the_same_with_any_tracker(
    toy_one: Experiment, use_wandb: Callable[..., Wandb], tmp_path: Path
) -> None:
    use_wandb()
    found = []
    for names in ([], ["tensorboard", "wandb"]):
        torch.manual_seed(3)
        out = tmp_path / f"run{len(names)}"
        assert trainer(replace(toy_one, iterations=1), "toy-tiny-0", "tiny", 0, out, names) == 0
        checkpoint = states.latest(out / "state")
        assert checkpoint is not None
        found.append({path.name: load_file(path) for path in checkpoint.glob("*.safetensors")})
    assert found[0].keys() == found[1].keys()
    for file, tensors in found[0].items():
        assert all(torch.equal(tensor, found[1][file][name]) for name, tensor in tensors.items()), file


# ---------------------------------------------------------------------------------------------------------- pace and cost


def test_pace_counts_what_this_command_did() -> None:
    start = Progress(iteration=10, images=1000, seconds=500.0, gpu_seconds=4000.0)
    assert pace(start, start, 20) == {}
    between = Progress(iteration=10, phase=1, images=1050, seconds=510.0, gpu_seconds=4080.0)
    assert pace(start, between, 20) == {"images/s": "5.0"}
    # 2 iterations took 400 GPU-seconds: 4400 so far, and 8 more at 200 each
    now = Progress(iteration=12, images=1200, seconds=550.0, gpu_seconds=4400.0)
    assert pace(start, now, 20) == {"images/s": "4.0", "GPU-hours": "1.22 of 1.67"}


def test_without_a_gpu_there_are_no_gpu_hours() -> None:
    assert pace(Progress(), Progress(iteration=1, images=8, seconds=2.0), 2) == {"images/s": "4.0"}


@pytest.mark.parametrize(("device", "expected"), [("cuda", 4 * 10.0 + 2 * 5.0), ("cpu", 0.0)])
def test_gpu_time_is_that_of_all_processes_also_where_their_number_changes(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "on_main_process", lambda run, work: None)
    accelerator = SimpleNamespace(device=torch.device(device))
    progress = Progress()
    for world, elapsed in ((4, 10.0), (2, 5.0)):
        run: Any = SimpleNamespace(
            progress=progress, accelerator=accelerator, world=world, started=now[0], show=lambda *_: None
        )
        now[0] += elapsed
        loop.record(run, 0, SimpleNamespace(name="t"), {"reward_mean": 0.0})  # type: ignore[arg-type]
    assert progress.seconds == 15.0
    assert progress.gpu_seconds == expected


def test_the_bar_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    from train.command import Bar

    bar = Bar("toy", 4)
    bar.begin(Progress())
    bar.show(Progress(iteration=1, images=36, seconds=9.0, gpu_seconds=7200.0), "a", 0.5)
    bar.show(Progress(iteration=2, images=72, seconds=18.0, gpu_seconds=14400.0), "a", None)
    bar._bar.refresh()
    bar.close()
    assert "a=-, images/s=4.0, GPU-hours=4.00 of 8.00" in capsys.readouterr().err


def test_a_picture_is_logged_as_it_is() -> None:
    from PIL import Image

    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    value, options = trackers._as_images("tensorboard", picture)
    assert value.shape == (1, 2, 4, 3)
    assert np.array_equal(value[0], np.asarray(picture))
    assert options == {"dataformats": "NHWC"}
