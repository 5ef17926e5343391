"""Snapshots of a run: what they are, that training does not notice them, and that no kill, full disk or second process spoils one."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evals.checkpoints import LORA_FILE, resolve, snapshot_folder, snapshots_of
from tests import toy
from tests.test_grids import assert_same, everything, interrupted
from train import snapshots
from train.config import Ema, Experiment, Lora, as_json, check, differences
from train.loop import train
from train.run import Run
from train.snapshots import is_due
from train.start import hand_over, new_accelerator, prepare

pytestmark = pytest.mark.usefixtures("toy_scorers")

UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = Lora(rank=2, alpha=2.0)
Start = Callable[..., Run]


@pytest.fixture
def start(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> Start:
    """A run of the toy experiment, begun or gone on with in a folder."""

    def begin(out: str = "run", **changes: Any) -> Run:
        given = {"snapshots_every": 1, "samples_every": 0, "iterations": 2, "ema": Ema(decay=0.9)} | changes
        experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, **given)
        return prepare(experiment, "tiny", 0, tmp_path / out, new_accelerator())

    return begin


def trained(run: Run) -> Run:
    """Trained to its end and handed over."""
    train(run)
    hand_over(run, "toy-tiny-0")
    return run


def tensors(folder: Path) -> dict[str, Tensor]:
    """What a snapshot or a run holds of what is trained."""
    return load_file(folder / (LORA_FILE if (folder / LORA_FILE).is_file() else UNET))


def card(run: Run, iteration: int) -> dict[str, Any]:
    """A snapshot's, but for times."""
    record: dict[str, Any] = json.loads((snapshot_folder(run.out, iteration) / "snapshot.json").read_text())
    del record["cost"]["seconds"], record["cost"]["gpu_hours"]
    return record


def assert_same_snapshot(one: Run, other: Run, iteration: int) -> None:
    places = [snapshot_folder(run.out, iteration) for run in (one, other)]
    assert_same(*(tensors(place) for place in places))
    assert card(one, iteration) == card(other, iteration)


@pytest.mark.parametrize(
    ("iterations", "every", "expected"),
    [(7, 3, [3, 6]), (6, 3, [3]), (2, 50, []), (4, 1, [1, 2, 3]), (4, 0, []), (0, 1, [])],
)
def test_every_nth_but_not_the_base_and_not_the_end(iterations: int, every: int, expected: list[int]) -> None:
    experiment = Experiment(base="", iterations=iterations, snapshots_every=every)
    assert [i for i in range(iterations + 1) if is_due(experiment, i)] == expected


# ------------------------------------------------------------------------------------------------------ what a snapshot is


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_it_is_what_would_be_handed_over_then(start: Start, lora: Lora | None) -> None:
    run = trained(start(lora=lora))
    stopped = start("stopped", lora=lora, snapshots_every=0)
    interrupted(stopped, 2)  # two tasks: one iteration
    hand_over(stopped, "toy-tiny-0")
    assert_same(tensors(snapshot_folder(run.out, 1)), tensors(stopped.out))
    live = start("live", lora=lora, ema=None)
    train(live)
    one, other = (tensors(snapshot_folder(r.out, 1)) for r in (run, live))
    assert any(not torch.equal(one[name], other[name]) for name in one)  # the average, where there is one


def test_it_holds_what_is_trained_and_nothing_else(start: Start) -> None:
    run = trained(start())
    assert [path.name for path in (run.out / "snapshots").iterdir()] == ["000001"]
    inside = sorted(p.relative_to(run.out / "snapshots").as_posix() for p in run.out.glob("snapshots/*/**/*"))
    assert inside == ["000001/snapshot.json", "000001/unet", "000001/unet/config.json", f"000001/{UNET}"]
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert card(run, 1) == {
        "iteration": 1,
        "cost": {
            "images": lines[1]["images"],
            "denoiser_evaluations": lines[1]["denoiser_evaluations"],
        },
        "kl_of_updates": {"redness": lines[0]["kl"], "tone": lines[1]["kl"]},
    }
    assert lines[0]["kl"] > 0


def test_the_way_gone_is_summed_over_iterations(start: Start) -> None:
    run = start(iterations=3)
    train(run)
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()][:4]
    assert card(run, 2)["kl_of_updates"]["tone"] == pytest.approx(lines[1]["kl"] + lines[3]["kl"])


# ------------------------------------------------------------------------------------------------------------ opening one


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_run_at_an_iteration_is_a_checkpoint(
    start: Start, tiny_pipeline_dir: Path, lora: Lora | None
) -> None:
    run = trained(start(lora=lora))
    snapshot, end, base = (resolve(f"{run.out}@{n}") for n in (1, 2, 0))
    assert (snapshot.name, snapshot.iterations) == ("toy@1-tiny-0", 1)
    assert snapshot.rewards == end.rewards == ("redness", "tone")
    assert end == resolve(str(run.out))
    assert (base.name, base.base) == ("base-tiny-0", str(tiny_pipeline_dir))
    assert snapshot.its_base() == end.its_base() == base
    assert len({c.digest() for c in (snapshot, end, base)}) == 3
    assert resolve(f"{run.out}@001").digest() == snapshot.digest()
    # what it opens is the frozen parts of the run and the denoiser of then
    pipeline = snapshot.pipeline()
    stored = tensors(snapshot_folder(run.out, 1))
    if lora is None:
        assert_same(dict(pipeline.unet.state_dict()), stored)
    else:
        adapted = [name for name, _ in pipeline.unet.named_parameters() if "lora_" in name]
        assert len(adapted) == len(stored)
    of_end = end.pipeline()
    assert_same(pipeline.vae.state_dict(), of_end.vae.state_dict())
    moved = zip(pipeline.unet.state_dict().values(), of_end.unet.state_dict().values(), strict=True)
    assert any(not torch.equal(one, other) for one, other in moved)


def test_the_denoiser_of_the_end_is_not_needed(start: Start) -> None:
    run = trained(start())
    (run.out / UNET).unlink()
    stored = tensors(snapshot_folder(run.out, 1))
    assert_same(dict(resolve(f"{run.out}@1").pipeline().unet.state_dict()), stored)


def test_other_weights_in_a_snapshot_are_another_checkpoint(start: Start) -> None:
    run = trained(start())
    before = resolve(f"{run.out}@1").digest()
    path = snapshot_folder(run.out, 1) / UNET
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert resolve(f"{run.out}@1").digest() != before


def test_what_is_no_snapshot_is_one_sentence(start: Start) -> None:
    run = trained(start(iterations=3))
    for iteration in ("7", "x", "", "-1"):
        with pytest.raises(
            ValueError, match=rf"@{iteration}: .* no snapshot of that iteration, it has 1, 2: "
        ):
            resolve(f"{run.out}@{iteration}")
    without = trained(start("without", snapshots_every=0, iterations=1))
    with pytest.raises(
        ValueError, match="no snapshot of that iteration, it has none: `--set snapshots_every"
    ):
        resolve(f"{without.out}@7")
    begun = start("begun")
    interrupted(begun, 2)
    with pytest.raises(ValueError, match="is a run that has not finished"):
        resolve(f"{begun.out}@1")
    (snapshot_folder(run.out, 1) / UNET).write_bytes(b"half a file")
    with pytest.raises(
        ValueError, match=f"with the denoiser of {snapshot_folder(run.out, 1)} cannot be opened"
    ):
        resolve(f"{run.out}@1").pipeline()


# ---------------------------------------------------------------------------------------------------------- no trace left


@pytest.mark.parametrize(("lora", "ema"), [(None, Ema(decay=0.9)), (LORA, None)], ids=["average", "lora"])
def test_training_with_and_without_snapshots_is_the_same_bit_for_bit(
    start: Start, lora: Lora | None, ema: Ema | None
) -> None:
    found = []
    for out, every in (("with", 1), ("without", 0)):
        torch.manual_seed(5)
        run = start(out, snapshots_every=every, lora=lora, ema=ema)
        train(run)
        lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
        found.append((everything(run), [line | {"seconds": 0} for line in lines]))
        assert (run.out / "snapshots").is_dir() == bool(every)
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_run_of_before_there_were_snapshots_goes_on(start: Start) -> None:
    now = as_json(start().experiment)
    stored = {name: value for name, value in now.items() if name != "snapshots_every"}
    assert differences(stored, as_json(start(snapshots_every=0).experiment)) == []
    assert differences(stored, now) == ["snapshots_every (0 -> 1)"]
    interrupted(start("changed", snapshots_every=0), 2)
    run = start("changed", snapshots_every=1)
    train(run)  # a resumed run may be told to keep some
    assert snapshots_of(run.out) == [1]


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^snapshots_every is -1, but it must be at least 0$"):
        check(Experiment(base="", iterations=0, snapshots_every=-1), 1)


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_has_the_snapshots_of_one_that_was_never_stopped(start: Start) -> None:
    """Stopped between two iterations, where the snapshot of that state is not there yet, and inside one."""
    straight = start("straight", iterations=3)
    train(straight)
    for tasks in (2, 3):
        out = f"stopped-{tasks}"
        interrupted(start(out, iterations=3), tasks)
        resumed = start(out, iterations=3)
        train(resumed)
        for iteration in (1, 2):
            assert_same_snapshot(resumed, straight, iteration)


def test_snapshots_that_a_resumed_run_has_not_reached_again_are_removed(start: Start) -> None:
    run = start(iterations=3)
    train(run)
    folder = run.out / "snapshots"
    for name in ("000007", "1000000", ".000007.tmp"):
        (folder / name / "unet").mkdir(parents=True)
    (folder / "mine").mkdir()
    snapshots.forget_after(run.out, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "mine"]
    snapshots.forget_after(run.out, -1)
    assert sorted(path.name for path in folder.iterdir()) == ["mine"]


def test_a_run_that_begins_again_does_not_keep_anothers(start: Start) -> None:
    """Killed before its first checkpoint: its folder is still known as a run's, and its snapshots are made again."""
    run = start(save_every=2)
    left = snapshot_folder(run.out, 1)
    (left / "unet").mkdir(parents=True)
    (left / "snapshot.json").write_text("{}")
    again = start(save_every=2)
    train(again)
    assert card(again, 1)["iteration"] == 1
    assert tensors(left)


def test_a_full_disk_leaves_the_snapshots_before(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = start("straight", iterations=3)
    train(straight)
    run, write_text = start(iterations=3), snapshots.write_text

    def refused(text: str, path: Path) -> None:
        if "000002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_text(text, path)

    monkeypatch.setattr(snapshots, "write_text", refused)
    with pytest.raises(OSError, match="No space left on device"):
        train(run)
    assert [path.name for path in (run.out / "snapshots").iterdir()] == ["000001"]
    monkeypatch.setattr(snapshots, "write_text", write_text)
    again = start(iterations=3)
    train(again)
    for iteration in (1, 2):
        assert_same_snapshot(again, straight, iteration)


# ---------------------------------------------------------------------------------------------------- in processes of their own


def command(arguments: list[str], environment: dict[str, str], trap: str = "", told: str = "") -> None:
    """The command line in a process of its own, which a trap may end in its second snapshot; standard error goes to a file."""
    os.environ |= environment
    if told:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    save = snapshots.Policy.save_trained

    def trapped(self: Any, folder: Path, weights: Any) -> None:
        if trap and "000002" in folder.name:
            if trap == "full":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            else:
                (folder / "unet").mkdir()
                (folder / UNET).write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
        save(self, folder, weights)

    snapshots.Policy.save_trained = trapped  # type: ignore[method-assign]
    toy.command_line(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("trap", "code"), [("kill", -signal.SIGKILL), ("full", 1)])
def test_an_end_in_the_middle_of_one_leaves_the_others_and_is_resumed(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, trap: str, code: int
) -> None:
    environment = {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}
    settings = [
        f"--set={s}" for s in ("iterations=3", "snapshots_every=1", "samples_every=0", "save_every=3")
    ]
    told = str(tmp_path / "told")

    def launch(name: str, *more: str) -> list[int]:
        arguments = ["toy", "--on", "tiny", "--out", str(tmp_path / name), *settings, "--tracker", "none"]
        return toy.launch(1, command, arguments, environment, *more)

    assert launch("straight") == [0]
    assert launch("run", trap, told) == [code]
    assert snapshots_of(tmp_path / "run") == [1]
    if trap == "full":
        last = Path(told).read_text().splitlines()[-1]
        assert last.startswith(f"error: {tmp_path / 'run'} cannot be written (")
        assert last.endswith("the state saved before is intact, and the same command resumes")
        assert "Traceback" not in Path(told).read_text()
    assert launch("run") == [0]
    for iteration in (1, 2):
        places = [snapshot_folder(tmp_path / name, iteration) for name in ("run", "straight")]
        assert_same(*(tensors(place) for place in places))
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == ["000001", "000002"]


def two_iterations(base: str, prompts: str, out: str, sharding: str) -> None:
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    changes = {"iterations": 2, "snapshots_every": 1, "samples_every": 0, "ema": Ema(decay=0.9)}
    experiment = toy.toy_experiment(base, prompts, **changes)
    experiment = replace(experiment, update=replace(experiment.update, micro_batch=2, sharding=sharding))
    run = prepare(experiment, "tiny", 0, Path(out), new_accelerator(experiment.update.sharding))
    train(run)
    run.accelerator.wait_for_everyone()


@pytest.mark.slow
def test_two_processes_keep_the_snapshots_of_one(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    found = {}
    for world, sharding in ((1, "none"), (2, "none"), (2, "fsdp2")):
        out = tmp_path / f"{world}-{sharding}"
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), sharding)
        assert toy.launch(world, two_iterations, *arguments) == [0] * world
        assert snapshots_of(out) == [1]
        found[world, sharding] = tensors(snapshot_folder(out, 1))
    alone = found[1, "none"]
    for several in found.values():
        assert several.keys() == alone.keys()
        for name, tensor in alone.items():
            # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3, a tenth of it in the average
            torch.testing.assert_close(several[name], tensor, rtol=0, atol=2e-4)


def test_a_task_without_a_kl_of_updates_has_none(tmp_path: Path) -> None:
    lines = [{"task": "a", "kl": 0.25}, {"task": "b"}, {"task": "a", "kl": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert snapshots.kl_of_updates(tmp_path / "metrics.jsonl") == {"a": 0.75}
