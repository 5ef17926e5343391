"""Two iterations, kill -9, resume, two more: bit for bit the four of a run that was never stopped. And every way to be stopped."""

from __future__ import annotations

import json
import os
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prompts import digest, load
from tests import toy
from train import state as states
from train.start import refuse_other_prompts, refuse_other_rewards

ITERATIONS = 4


def train_toy(arguments: list[str], environment: dict[str, str], trap: str = "") -> None:
    """The command line in a process of its own, which a trap may end."""
    os.environ |= environment
    if trap:
        set_trap(trap)
    toy.command_line(*arguments)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def set_trap(trap: str) -> None:
    """Arrange for this process to die, or to be asked to stop, at a named point."""
    kind, _, at = trap.partition(":")
    traps = {
        "line": after_line,
        "file": in_file,
        "pointer": before_pointer,
        "full": with_full_disk,
        "term": asked_to_stop,
        "int": partial(asked_to_stop, by=signal.SIGINT),
        "rank": with_a_reward_that_fails_on_one_process,
        "handing": while_handing_over,
        "handing-full": with_full_disk_at_last,
    }
    traps[kind](int(at or 0))


def after_line(count: int) -> None:
    """Die after that line of metrics.jsonl: later than the last checkpoint."""
    append = states.MetricsLog.append

    def append_and_die(self: states.MetricsLog, record: Any) -> None:
        append(self, record)
        if len(self.path.read_text().splitlines()) == count:
            kill()

    states.MetricsLog.append = append_and_die  # type: ignore[method-assign]


def in_file(number: int) -> None:
    """Die while the third checkpoint is being written, in its file of that number."""
    save, save_tensors, written = states.save, states._save_tensors, [0, 0]

    def counting_save(*arguments: Any) -> None:
        written[:] = written[0] + 1, 0
        save(*arguments)

    def write_or_die(path: Path, tensors: Any) -> None:
        if written == [3, number]:
            path.write_bytes(b"half a file")
            kill()
        written[1] += 1
        save_tensors(path, tensors)

    states.save = counting_save  # type: ignore[assignment]
    states._save_tensors = write_or_die


def before_pointer(_: int) -> None:
    """Die when the third checkpoint is whole but not yet named."""
    write = states.write_text

    def write_or_die(text: str, path: Path | str) -> None:
        if Path(path).name == "latest.json" and "000003" in text:
            kill()
        write(text, path)

    states.write_text = write_or_die


def with_full_disk(_: int) -> None:
    """Let the disk take no more from the third checkpoint on."""
    save = states.save

    def refused_save(folder: Path, progress: states.Progress, *rest: Any) -> None:
        if progress.iteration == 3:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(folder, progress, *rest)

    states.save = refused_save  # type: ignore[assignment]


def with_a_reward_that_fails_on_one_process(_: int) -> None:
    """Break the reward of the second process, of the others not."""
    if os.environ["RANK"] == "1":
        toy.SCORERS["redness"] = toy.Raising
        toy.Raising.calls = 2


def while_handing_over(number: int) -> None:
    """Die when that many parts of the trained model are in their places, the first of them being 0."""
    from train import start

    replace_path, moved = start.replace_path, [0]

    def replace_or_die(source: Path, target: Path) -> None:
        if moved[0] == number:
            kill()
        moved[0] += 1
        replace_path(source, target)

    start.replace_path = replace_or_die


def with_full_disk_at_last(_: int) -> None:
    """Let the disk take no more when the trained model is written."""
    from train.policy import Policy

    save = Policy.save

    def refused_save(*arguments: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        save(*arguments)

    Policy.save = refused_save  # type: ignore[method-assign]


def asked_to_stop(number: int, by: signal.Signals = signal.SIGTERM) -> None:
    """Get a signal while the batch of that number is drawn."""
    from train.methods._policy_gradient import PolicyGradient

    collect, calls = PolicyGradient.collect, [0]

    def collect_and_signal(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), by)
        return collect(*arguments)

    PolicyGradient.collect = collect_and_signal  # type: ignore[method-assign]


class Runner:
    """Runs the toy experiment with some settings in folders of one place."""

    def __init__(
        self, environment: dict[str, str], place: Path, world: int, settings: tuple[str, ...]
    ) -> None:
        self.environment, self.place, self.world = environment, place, world
        given = dict(setting.split("=") for setting in (f"iterations={ITERATIONS}", *settings))
        self.settings = [f"--set={field}={value}" for field, value in given.items()]

    def __call__(self, name: str, trap: str = "") -> list[int]:
        arguments = ["toy", "--on", "tiny", "--out", str(self.place / name), *self.settings]
        return toy.launch(self.world, train_toy, arguments, self.environment, trap)

    def result(self, name: str) -> dict[str, Any]:
        """Everything that a run leaves, but for times."""
        out = self.place / name
        checkpoint = states.latest(out / "state")
        assert checkpoint is not None
        progress, _ = states.read(checkpoint)
        tensors = {
            f"{file}/{key}": t
            for file, ts in states.read_tensors(checkpoint).items()
            for key, t in ts.items()
        }
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
        saved = {
            f"unet/{k}": t for k, t in load_file(out / "unet" / "diffusion_pytorch_model.safetensors").items()
        }
        return {
            "tensors": tensors | saved,
            "lines": lines,
            "progress": (
                progress.iteration,
                progress.phase,
                progress.images,
                progress.denoiser_evaluations,
                progress.gates,
            ),
        }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["lines"] == expected["lines"]
    assert found["progress"] == expected["progress"]
    assert found["tensors"].keys() == expected["tensors"].keys()
    different = [
        name
        for name, tensor in expected["tensors"].items()
        if not torch.equal(tensor, found["tensors"][name])
    ]
    assert different == []


@pytest.fixture(scope="module")
def environment(tiny_pipeline_dir: Path, toy_prompts: Path) -> dict[str, str]:
    return {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}


@pytest.fixture(scope="module")
def one(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """One process, saving every iteration; `straight` has run through."""
    runner = Runner(environment, tmp_path_factory.mktemp("one"), 1, ("ema.decay=0.9",))
    assert runner("straight") == [0]
    return runner


def test_straight_run_has_everything(one: Runner) -> None:
    found = one.result("straight")
    assert len(found["lines"]) == 2 * ITERATIONS
    kinds = {name.split("/")[0] for name in found["tensors"]}
    assert kinds == {"weights", "optimiser", "ema", "random", "unet"}
    assert [path.name for path in (one.place / "straight" / "state").iterdir() if path.is_dir()] == [
        "000004-0"
    ]


@pytest.mark.parametrize("trap", ["line:4", "line:5", "line:6", "file:0", "file:2", "pointer:"])
def test_kill_and_resume_is_bit_for_bit_the_straight_run(one: Runner, trap: str) -> None:
    name = "killed-" + trap.replace(":", "-")
    assert one(name, trap) == [-signal.SIGKILL]
    assert not (one.place / name / "run.json").exists()
    assert one(name) == [0]
    assert_same(one.result(name), one.result("straight"))


@pytest.mark.parametrize(
    "options", [("update.theta_old=iteration",), ("lora.rank=2", "save_every=3"), ("task_order=rotated",)]
)
def test_kill_and_resume_with_other_settings(
    environment: dict[str, str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    runner = Runner(environment, tmp_path, 1, options)
    assert runner("straight") == [0]
    assert runner("killed", "line:7") == [-signal.SIGKILL]
    assert runner("killed") == [0]
    for name in ("straight", "killed"):  # adapters leave no unet folder
        (tmp_path / name / "unet").mkdir(exist_ok=True)
        weights = tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors"
        if not weights.exists():
            (tmp_path / name / "pytorch_lora_weights.safetensors").rename(weights)
    assert_same(runner.result("killed"), runner.result("straight"))


@pytest.mark.parametrize("scorer", ["loading", "loading_to_read", "drawing"])
def test_a_scorer_that_draws_random_numbers_draws_the_same_after_a_resume(
    environment: dict[str, str], tmp_path: Path, scorer: str
) -> None:
    """Also where it draws them while it is loaded, which a resumed run does once more."""
    runner = Runner(environment, tmp_path, 1, ())
    runner.settings.append(f"--reward=redness={scorer}")
    assert runner("straight") == [0]
    assert runner("killed", "line:5") == [-signal.SIGKILL]
    assert runner("killed") == [0]
    assert_same(runner.result("killed"), runner.result("straight"))
    lines = runner.result("straight")["lines"]
    assert len({line["rewards"][scorer] for line in lines if line["task"] == "redness"}) == ITERATIONS


def test_kill_and_resume_on_two_processes(environment: dict[str, str], tmp_path: Path) -> None:
    runner = Runner(environment, tmp_path, 2, ("ema.decay=0.9",))
    assert runner("straight") == [0, 0]
    assert -signal.SIGKILL in runner("killed", "line:5")
    assert runner("killed") == [0, 0]
    assert_same(runner.result("killed"), runner.result("straight"))
    assert {f"random/cpu.{rank}" for rank in (0, 1)} <= runner.result("killed")["tensors"].keys()


@pytest.mark.parametrize("batch", [3, 4])
def test_sigterm_saves_and_exits_143(one: Runner, batch: int) -> None:
    """Between two tasks of an iteration, and between two iterations."""
    name = f"terminated-{batch}"
    assert one(name, f"term:{batch}") == [143]
    checkpoint = states.latest(one.place / name / "state")
    assert checkpoint is not None
    assert checkpoint.name == {3: "000001-1", 4: "000002-0"}[batch]
    assert one(name) == [0]
    assert_same(one.result(name), one.result("straight"))


def test_a_state_without_its_average_is_refused(one: Runner) -> None:
    assert one("no-average", "term:3") == [143]
    checkpoint = states.latest(one.place / "no-average" / "state")
    assert checkpoint is not None
    (checkpoint / "ema.safetensors").unlink()
    assert one("no-average") == [2]


def test_a_reward_that_changed_is_refused_and_a_monitor_or_an_old_state_is_not(one: Runner) -> None:
    assert one("changed", "term:3") == [143]
    checkpoint = states.latest(one.place / "changed" / "state")
    assert checkpoint is not None
    path = checkpoint / "progress.json"
    record = json.loads(path.read_text())
    assert record["progress"]["scorer_versions"] == {"redness": "00000000", "tone": "00000001"}
    experiment = toy.toy_experiment("", "")
    out, stored = Path("out"), {"redness": "0000000f", "tone": "00000001"}
    with pytest.raises(ValueError, match=r"version 0000000f of the reward redness, .* 00000000: .*--out"):
        refuse_other_rewards(out, experiment, stored, record["progress"]["scorer_versions"])
    watched = {"redness": "00000000", "tone": "00000001", "watched": "1"}
    refuse_other_rewards(out, experiment, watched, watched | {"watched": "2"})
    record["progress"]["scorer_versions"] = stored
    path.write_text(json.dumps(record))
    assert one("changed") == [2]
    del record["progress"]["scorer_versions"]
    path.write_text(json.dumps(record))
    assert one("changed") == [0]
    assert_same(one.result("changed"), one.result("straight"))


def test_prompts_that_changed_under_their_name_are_refused_and_an_old_state_is_not(
    one: Runner, tmp_path: Path
) -> None:
    """Of a run that was stopped, and of one that is finished."""
    file = toy.write_prompts(tmp_path / "mine.jsonl")
    runner = Runner(one.environment | {"TOY_PROMPTS": str(file)}, tmp_path, 1, ("ema.decay=0.9",))
    before, as_it_was = digest(load(file)), file.read_text()
    assert runner("asked", "term:3") == [143]
    checkpoint = states.latest(tmp_path / "asked" / "state")
    assert checkpoint is not None
    path = checkpoint / "progress.json"
    record = json.loads(path.read_text())
    assert record["progress"]["prompt_versions"] == {str(file): before}
    file.write_text(as_it_was.replace("nurse", "baker"))
    assert runner("asked") == [2]
    file.write_text(as_it_was)
    assert runner("asked") == [0]
    assert runner("asked") == [0]
    file.write_text(as_it_was.replace("nurse", "baker"))
    assert runner("asked") == [2]
    (tmp_path / "asked" / "run.json").unlink()
    assert runner("asked") == [2]
    last = states.latest(tmp_path / "asked" / "state")
    assert last is not None
    record = json.loads((last / "progress.json").read_text())
    del record["progress"]["prompt_versions"]
    (last / "progress.json").write_text(json.dumps(record))
    assert runner("asked") == [0]


def test_prompts_that_changed_are_told_with_run_and_both_digests() -> None:
    told = r"^runs/a was trained on the prompts mine.txt with the digest 0a, which is now 0b: choose another --out, or bring back the prompts of before$"
    with pytest.raises(ValueError, match=told):
        refuse_other_prompts(Path("runs/a"), {"mine.txt": "0a"}, {"mine.txt": "0b"})
    refuse_other_prompts(Path("runs/a"), {"others.txt": "0a"}, {"mine.txt": "0b"})


def test_ctrl_c_saves_and_exits_130(one: Runner) -> None:
    assert one("interrupted", "int:3") == [130]
    assert states.latest(one.place / "interrupted" / "state") is not None
    assert one("interrupted") == [0]
    assert_same(one.result("interrupted"), one.result("straight"))


def test_sigterm_on_one_of_two_processes_stops_both(environment: dict[str, str], tmp_path: Path) -> None:
    runner = Runner(environment, tmp_path, 2, ())
    assert runner("terminated", "term:2") == [143, 143]
    assert runner("terminated") == [0, 0]


def test_a_reward_that_fails_on_one_of_two_processes_stops_both(
    environment: dict[str, str], tmp_path: Path
) -> None:
    runner = Runner(environment, tmp_path, 2, ())
    assert 0 not in runner("failed", "rank:")
    assert states.latest(tmp_path / "failed" / "state") is not None
    assert runner("failed") == [0, 0]


def test_sigterm_waits_for_the_iteration_where_all_was_sampled_first(
    environment: dict[str, str], tmp_path: Path
) -> None:
    runner = Runner(environment, tmp_path, 1, ("update.theta_old=iteration",))
    assert runner("terminated", "term:1") == [143]
    checkpoint = states.latest(tmp_path / "terminated" / "state")
    assert checkpoint is not None
    assert checkpoint.name == "000001-0"


def test_full_disk_keeps_the_state_before(one: Runner) -> None:
    assert one("full", "full:") == [1]
    checkpoint = states.latest(one.place / "full" / "state")
    assert checkpoint is not None
    assert checkpoint.name == "000002-0"
    assert [path.name for path in (one.place / "full" / "state").iterdir() if path.is_dir()] == ["000002-0"]
    assert one("full") == [0]
    assert_same(one.result("full"), one.result("straight"))


@pytest.mark.parametrize("settings", [(), ("lora.rank=2",)])
def test_full_disk_while_handing_over_is_resumed(
    environment: dict[str, str], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """What writes the model raises an error of its own for it."""
    runner = Runner(environment, tmp_path, 1, settings)
    assert runner("full", "handing-full:") == [1]
    assert not (tmp_path / "full" / "run.json").exists()
    assert not list((tmp_path / "full" / ".handing-over.tmp").iterdir())
    assert runner("full") == [0]
    assert (tmp_path / "full" / "run.json").is_file()
    assert not (tmp_path / "full" / ".handing-over.tmp").exists()


@pytest.mark.parametrize("moved", [0, 1, 4])
@pytest.mark.parametrize("iterations", [0, 1])
def test_kill_while_handing_over_is_resumed(
    environment: dict[str, str], tmp_path: Path, iterations: int, moved: int
) -> None:
    """A base run, of no iterations, has no checkpoint by which to know it."""
    runner = Runner(environment, tmp_path, 1, (f"iterations={iterations}",))
    assert runner("killed", f"handing:{moved}") == [-signal.SIGKILL]
    assert not (tmp_path / "killed" / "run.json").exists()
    assert runner("killed") == [0]
    assert (tmp_path / "killed" / "run.json").is_file()
    assert (tmp_path / "killed" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_finished_run_says_so_and_changes_nothing(one: Runner) -> None:
    before = one.result("straight")
    stamps = {path: path.stat().st_mtime_ns for path in (one.place / "straight").rglob("*")}
    assert one("straight") == [0]
    assert {path: path.stat().st_mtime_ns for path in (one.place / "straight").rglob("*")} == stamps
    assert_same(one.result("straight"), before)


def test_a_run_goes_on_with_another_number_of_processes(one: Runner) -> None:
    assert one("moved", "line:5") == [-signal.SIGKILL]
    two = Runner(one.environment, one.place, 2, ("ema.decay=0.9",))
    assert two("moved") == [0, 0]
    assert len(one.result("moved")["lines"]) == 2 * ITERATIONS
    for name, tensor in one.result("straight")["tensors"].items():
        if name.startswith("weights/"):
            torch.testing.assert_close(one.result("moved")["tensors"][name], tensor, rtol=0, atol=2e-4)
