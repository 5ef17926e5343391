"""Two and three processes are one: images, advantages, gradients, weights. And the launcher that the Makefile uses."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import DistBackendError  # type: ignore[attr-defined]

from evals.signals import heeded
from evals.workers import LAUNCHER
from prompts import Prompt
from tests import toy
from tests.test_resume import Runner, assert_same, kill, train_toy
from train.batches import gathered_scores
from train.command import StopOnSignal
from train.config import Experiment, Lora, Pretraining, Reward, Task
from train.launch import has_lost_another
from train.methods._reward_gradient import agreed
from train.rewards import CannotAnswer, RewardFailed
from train.start import new_accelerator
from train.state import Progress, latest

BATCH = 12  # divides among one, two and three processes in groups of two


def experiment_of(base: str, prompts: str, lora: bool) -> Experiment:
    """The toy experiment, its rewards such that processes have unequal numbers of valid images."""
    experiment = toy.toy_experiment(
        base, prompts, iterations=2, lora=Lora(rank=2, alpha=2.0) if lora else None
    )
    redness, tone = experiment.tasks
    return replace(
        experiment, tasks=(replace(redness, batch=BATCH), replace(tone, batch=BATCH, images_per_prompt=2))
    )


def first_update_and_two_iterations(base: str, prompts: str, out: str, lora: bool) -> None:
    """Record a batch, the gradient of its first update, and the weights after two whole iterations; one file per process."""
    import evals.scorers
    from train.data import CachedPairs
    from train.loop import pretraining_step, train
    from train.methods._policy_gradient import policy_gradient
    from train.start import new_accelerator, prepare

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    run = prepare(experiment_of(base, prompts, lora), "toy", 0, Path(out), new_accelerator())
    record: dict[str, torch.Tensor] = {}
    for task in run.experiment.tasks:
        batch = run.experiment.method.collect(run, task, 0)
        record[f"{task.name}.latents"] = batch.trajectory.latents_BCHW
        record[f"{task.name}.advantage"] = batch.advantage_B
        record[f"{task.name}.valid"] = torch.tensor(batch.valid)
        policy_gradient(run, batch, batch.order[0], weight=1.0)
        for name, weight in run.policy.weights.items():
            assert weight.grad is not None
            record[f"{task.name}.gradient.{name}"] = weight.grad.clone()
        run.policy.optimiser.zero_grad(set_to_none=True)
    train(run)
    pairs = torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    run.experiment = replace(run.experiment, pretraining=Pretraining(source="unused", batch=BATCH))
    run.source = CachedPairs(pairs, list(toy.TEXTS) + ["a"] * 9, seed=0)
    record["pretrain_loss"] = torch.tensor(pretraining_step(run, 0)["pretrain_loss"])
    record |= {f"weights.{name}": weight.detach() for name, weight in run.policy.weights.items()}
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in record.items()},
        Path(out) / f"rank{run.rank}.safetensors",
    )
    run.accelerator.wait_for_everyone()


def recorded(folder: Path, world: int) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(world)]


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def runs(
    request: pytest.FixtureRequest,
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, list[dict[str, torch.Tensor]]]:
    """What each process of one, two and three recorded."""
    found = {}
    for world in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"world{world}")
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), request.param)
        assert toy.launch(world, first_update_and_two_iterations, *arguments) == [0] * world
        found[world] = recorded(out, world)
        found[-world] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_images_and_advantages_are_those_of_one_process(runs: dict[int, Any], world: int) -> None:
    (alone,), several = runs[1], runs[world]
    for task in ("redness", "tone"):
        for what in ("latents", "advantage"):
            together = torch.cat([record[f"{task}.{what}"] for record in several])
            assert torch.equal(together, alone[f"{task}.{what}"]), what
        assert all(record[f"{task}.valid"] == alone[f"{task}.valid"] for record in several)
    assert 0 < alone["tone.valid"] < BATCH, "the test wants some images masked"
    assert alone["tone.advantage"].abs().sum() > 0
    # redness is compared within its prompts, two images each
    torch.testing.assert_close(alone["redness.advantage"][::2], -alone["redness.advantage"][1::2])
    assert alone["redness.advantage"].abs().sum() > 0


@pytest.mark.parametrize("world", [2, 3])
def test_gradient_is_that_of_one_process(runs: dict[int, Any], world: int) -> None:
    (alone,), several = runs[1], runs[world]
    names = [name for name in alone if ".gradient." in name]
    assert names
    for task in ("redness", "tone"):
        assert sum(float(alone[name].abs().sum()) for name in names if name.startswith(task)) > 0
    for name in names:
        for record in several:
            torch.testing.assert_close(record[name], alone[name], rtol=1e-4, atol=1e-6)
            assert torch.equal(record[name], several[0][name])


@pytest.mark.parametrize("world", [2, 3])
def test_weights_after_updates_are_those_of_one_process_and_equal_among_several(
    runs: dict[int, Any], world: int
) -> None:
    (alone,), several = runs[1], runs[world]
    for name in (name for name in alone if name.startswith("weights.")):
        for record in several:
            assert torch.equal(record[name], several[0][name])
            # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
            torch.testing.assert_close(record[name], alone[name], rtol=0, atol=2e-4)
    torch.testing.assert_close(several[0]["pretrain_loss"], alone["pretrain_loss"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_metrics_are_those_of_one_process(runs: dict[int, Any], world: int) -> None:
    assert len(runs[-world]) == len(runs[-1]) == 4
    for ours, alone in zip(runs[-world], runs[-1], strict=True):
        for key in ("iteration", "task", "reward_n", "invalid", "images", "denoiser_evaluations"):
            assert ours[key] == alone[key]
        assert ours["reward_mean"] == pytest.approx(alone["reward_mean"], abs=1e-3)
        assert ours["first_ratio_max_dev"] == 0.0


@contextmanager
def launched(
    out: Path, base: Path, prompts: Path, *settings: str, processes: int = 2, **how: Any
) -> Iterator[subprocess.Popen[str]]:
    """The toy experiment, as `make train-... GPUS=2` starts it; whatever is left of them at the end is killed."""
    arguments = ["toy", "--on", "tiny", "--processes", str(processes), "--out", str(out)]
    for setting in settings:
        arguments += ["--set", setting]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.toy", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOY_BASE": str(base), "TOY_PROMPTS": str(prompts)},
        cwd=Path(__file__).parent.parent,
        **(how or {"stderr": subprocess.PIPE, "text": True}),
    )
    try:
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for child in left:
            child.kill()
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, stderr = process.communicate(timeout=280)
    return process.returncode, stderr


def has_begun(run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a task's update is recorded."""
    log, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not log.is_file() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def where_a_scorer_fails_on_one() -> None:
    """The second process has a reward that raises or refuses what it is given: all stop, and say the same of it."""
    accelerator = new_accelerator()
    rank, pictures = accelerator.process_index, torch.zeros(2, 3, 8, 8)
    run: Any = SimpleNamespace(accelerator=accelerator, rank=rank, seed=0, progress=Progress())
    task = Task("t", "prompts", (Reward("redness"), Reward("other")))
    raising = toy.Raising()
    raising.calls = 2  # the next one raises
    cases: list[tuple[Any, type[RewardFailed], str]] = [
        (raising, RewardFailed, "scorer other failed with RuntimeError: out of ideas"),
        (toy.Refusing(), CannotAnswer, "these prompts have no group"),
    ]
    for failing, kind, sentence in cases:
        run.scorers = {"redness": toy.Redness(), "other": failing if rank == 1 else toy.Redness()}
        with pytest.raises(RewardFailed) as told:
            gathered_scores(run, task, pictures, [Prompt("p", "red")] * 2)
        assert type(told.value) is kind
        assert sentence in str(told.value)
        assert str(told.value).startswith("on process 1: ") == (rank == 0)
        assert getattr(told.value, "scorer", "other") == "other"

    def slopes() -> Any:
        if rank == 1:
            raise CannotAnswer("no group here", "other")

    with pytest.raises(CannotAnswer, match="no group here") as refused:
        agreed(run, slopes)
    assert refused.value.scorer == "other"


def test_all_processes_say_what_a_scorer_failed_with_on_one() -> None:
    assert toy.launch(2, where_a_scorer_fails_on_one) == [0, 0]


@pytest.mark.slow
def test_the_launcher_trains_on_two_processes(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with launched(run, tiny_pipeline_dir, toy_prompts, "iterations=1") as process:
        code, stderr = ended(process)
    assert code == 0, stderr[-2000:]
    card = json.loads((run / "run.json").read_text())
    assert card["hardware"]["processes"] == 2
    assert (run / "model_index.json").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_mistake_on_two_processes_is_one_sentence(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """One that shows only once the model is there; those that show before are in test_bad_input_train."""
    with launched(tmp_path / "run", tiny_pipeline_dir, toy_prompts, "update.trained_steps=99") as process:
        code, stderr = ended(process)
    assert code == 2
    assert [line for line in stderr.splitlines() if line.startswith("error")] == [stderr.splitlines()[-1]]
    assert stderr.splitlines()[-1].startswith("error: update.trained_steps is 99")
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_ctrl_c_to_the_launcher_saves_and_stops(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with launched(run, tiny_pipeline_dir, toy_prompts, "iterations=100000", "save_every=100000") as process:
        has_begun(run, process)
        process.send_signal(signal.SIGINT)
        code, stderr = ended(process)
    assert code == 130, stderr[-2000:]
    assert "stopped by SIGINT after iteration" in stderr
    assert "Traceback" not in stderr
    assert (run / "state" / "latest.json").is_file()


def as_in_a_terminal() -> None:
    """Standard input becomes the controlling terminal; the tests themselves may run under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_closed_terminal_saves_and_stops(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, processes: int
) -> None:
    """The bar can no longer be shown, and the hang-up itself is a signal."""
    run, (terminal, inside) = tmp_path / "run", os.openpty()
    settings = ("iterations=100000", "save_every=100000")
    its_own = {
        "stdin": inside,
        "stdout": inside,
        "stderr": inside,
        "start_new_session": True,
        "preexec_fn": as_in_a_terminal,
    }
    with launched(run, tiny_pipeline_dir, toy_prompts, *settings, processes=processes, **its_own) as process:
        os.close(inside)
        has_begun(run, process)
        os.close(terminal)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert (run / "state" / "latest.json").is_file()


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    """Under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in heeded()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_whose_launcher_is_no_more_stops_as_if_it_were_asked_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {number: signal.getsignal(number) for number in heeded()}
    try:
        stop = StopOnSignal()
        assert not stop.requested()
        monkeypatch.setenv(LAUNCHER, str(os.getppid()))
        assert not stop.requested()
        monkeypatch.setenv(LAUNCHER, str(os.getppid() + 1))
        assert stop.requested() == signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_when_the_launcher_is_killed_no_process_trains_on(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """The same command again would train in the same folder, beside them."""
    run = tmp_path / "run"
    settings, quiet = ("iterations=100000", "save_every=100000"), {"stderr": subprocess.DEVNULL}
    with launched(run, tiny_pipeline_dir, toy_prompts, *settings, **quiet) as process:
        has_begun(run, process)
        workers = psutil.Process(process.pid).children()
        process.kill()
        _, left = psutil.wait_procs(workers, timeout=60)
        for worker in left:
            worker.kill()
    assert not left
    assert (run / "state" / "latest.json").is_file()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_is_named(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with launched(run, tiny_pipeline_dir, toy_prompts, "iterations=100000") as process:
        has_begun(run, process)
        workers = psutil.Process(process.pid).children()
        (second,) = (worker for worker in workers if worker.environ()["RANK"] == "1")
        second.kill()
        code, stderr = ended(process)
        assert not any(worker.is_running() for worker in workers)
    assert code == 128 + signal.SIGKILL
    assert stderr.splitlines()[-1] == "error: process 1 was killed by signal 9"
    told = "error: stopped, since another of the processes has ended or does not answer ("
    assert any(line.startswith(told) for line in stderr.splitlines())
    assert "Traceback" not in stderr


def test_of_another_process_that_is_gone_is_told_apart_what_went_wrong_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")
    assert not has_lost_another(closed), "torchrun names nobody"
    monkeypatch.setenv(LAUNCHER, str(os.getppid()))
    assert has_lost_another(closed)
    assert has_lost_another(DistBackendError("NCCL communicator was aborted"))
    assert not has_lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def killed_while_weights_are_gathered(arguments: list[str], environment: dict[str, str]) -> None:
    """The second process dies while the main one asks for its shares of the third state."""
    from train.policy import Policy

    state, calls = Policy.state, [0]

    def state_or_die(self: Policy) -> Any:
        calls[0] += 1
        if calls[0] == 3 and os.environ["RANK"] == "1":
            kill()
        return state(self)

    Policy.state = state_or_die  # type: ignore[method-assign]
    train_toy(arguments, environment)


@pytest.mark.slow
def test_the_old_state_survives_a_process_that_dies_while_two_save(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """The main one while it writes, or the other before that; with shared out weights in test_fsdp."""
    environment = {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}
    runner = Runner(environment, tmp_path, 2, ("iterations=3", "ema.decay=0.9"))
    assert runner("straight") == [0, 0]
    assert -signal.SIGKILL in runner("writing", "file:1")
    arguments = ["toy", "--on", "tiny", "--out", str(tmp_path / "gathering"), *runner.settings]
    codes = toy.launch(2, killed_while_weights_are_gathered, arguments, environment)
    assert codes[1] == -signal.SIGKILL
    for name in ("writing", "gathering"):
        checkpoint = latest(tmp_path / name / "state")
        assert checkpoint is not None
        assert checkpoint.name == "000002-0"
        assert runner(name) == [0, 0]
        assert_same(runner.result(name), runner.result("straight"))


def _save_to_a_disk_that_is_full(base: str, prompts: str, out: str) -> None:
    from train.command import run as trainer

    if os.environ["RANK"] == "0":
        import train.state

        train.state.save_file = _refuse  # type: ignore[assignment]
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    sys.exit(trainer(experiment_of(base, prompts, lora=False), "toy-tiny-0", "tiny", 0, Path(out)))


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_of_the_main_process_stops_both(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path / "run"))
    assert toy.launch(2, _save_to_a_disk_that_is_full, *arguments) == [1, 1]
