"""A compiled denoiser is the same function: rollout, update, several processes, resuming. Only the time is another."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import toy
from tests.test_distributed import recorded
from tests.test_fsdp import write_record
from tests.test_resume import Runner, assert_same, train_toy
from train import compiling
from train.config import Ema, Experiment, Lora
from train.loop import train
from train.methods._policy_gradient import policy_gradient
from train.policy import whole
from train.run import Run
from train.start import hand_over, new_accelerator, prepare

UPDATE = toy.toy_experiment("", "").update
SAMPLING = toy.toy_experiment("", "").sampling
GRAPHS_ONLY = "aot_eager"
"""Takes the denoiser apart and together again as the compiler does, forward and backward, and generates no code: seconds, not minutes."""


@pytest.fixture
def graphs_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", GRAPHS_ONLY)
    with torch._dynamo.config.patch(optimize_ddp=True):  # put back, as a run changes it
        yield
    torch.compiler.reset()


def experiment_of(base: Path | str, prompts: Path | str, compiled: bool, **changes: Any) -> Experiment:
    """The first task alone, without guidance."""
    toy_one = toy.toy_experiment(base, prompts, iterations=1)
    update = replace(UPDATE, compile=compiled, gradient_checkpointing=changes.pop("checkpointing", False))
    changes = {"tasks": toy_one.tasks[:1], "sampling": replace(SAMPLING, guidance=None), **changes}
    return replace(toy_one, update=update, **changes)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, toy_scorers: None, graphs_only: None
) -> MakeRun:
    made = 0

    def make(compiled: bool, **changes: Any) -> Run:
        nonlocal made
        made += 1
        experiment = experiment_of(tiny_pipeline_dir, toy_prompts, compiled, **changes)
        return prepare(experiment, "toy", 0, tmp_path / f"run{made}", new_accelerator())

    return make


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def outcome(run: Run) -> tuple[Tensor, Tensor]:
    """Drawn latents, and the gradient of the first update."""
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    policy_gradient(run, batch, batch.order[0], 1.0)
    found = torch.cat([w.grad.flatten() for w in run.policy.weights.values() if w.grad is not None])
    run.policy.forget_gradients()
    return batch.trajectory.latents_BCHW, found


@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [
        pytest.param(Lora(rank=2), True, id="lora"),
        pytest.param(None, True, id="checkpointing", marks=pytest.mark.slow),
        pytest.param(None, False, id="full", marks=pytest.mark.slow),
    ],
)
def test_pictures_and_gradients_are_the_same(
    make_run: MakeRun, lora: Lora | None, checkpointing: bool
) -> None:
    plain = outcome(make_run(False, lora=lora, checkpointing=checkpointing))
    before = graphs()
    compiled = outcome(make_run(True, lora=lora, checkpointing=checkpointing))
    assert graphs() > before, "nothing was compiled"
    for ours, theirs in zip(compiled, plain, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_rollout_and_update_are_one_graph_at_every_step(make_run: MakeRun) -> None:
    """So that a ratio before an update is 1 to the last bit: compiled without gradients the denoiser would round differently."""
    before = graphs()
    run = make_run(True)
    train(run)
    identity = run.progress.gates["identity"]
    assert identity["exact"]
    assert len(identity["steps"]) == 4
    assert graphs() - before == 1 + 1  # and the question whether anything can be compiled


@pytest.mark.slow
def test_two_sizes_of_micro_batch_are_two_graphs_and_the_gate_holds(make_run: MakeRun) -> None:
    before = graphs()
    run = make_run(True, sampling=replace(SAMPLING, guidance=None, micro_batch=3))
    train(run)
    identity = run.progress.gates["identity"]
    assert not identity["exact"]
    assert identity["holds"]
    assert graphs() - before == 2 + 1


@pytest.mark.slow
def test_names_and_what_is_handed_over_know_nothing_of_it(make_run: MakeRun, tmp_path: Path) -> None:
    run, plain = make_run(True, ema=Ema(decay=0.5)), make_run(False, ema=Ema(decay=0.5))
    for each in (run, plain):
        train(each)
        hand_over(each, "toy-toy-0")
    listed = [
        sorted(str(path.relative_to(each.out)) for path in each.out.rglob("*") if path.is_file())
        for each in (run, plain)
    ]
    assert listed[0] == listed[1]
    weights = "unet/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(run.out / weights), load_file(plain.out / weights)
    assert ours.keys() == theirs.keys() == run.policy.weights.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-3)  # AdamW: steps of 1e-3
    assert (run.out / "unet" / "config.json").read_text() == (plain.out / "unet" / "config.json").read_text()


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"update\.compile is true, but .*No working C\+\+ compiler.*g\+\+"):
        compiling.check_compiler(torch.device("cpu"))


def on_two(base: str, prompts: str, out: str, sharding: Any, lora: bool) -> None:
    """Train with and without, and record the weights."""
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    compiling.BACKEND = GRAPHS_ONLY
    record: dict[str, Tensor] = {}
    for compiled in (False, True):
        experiment = experiment_of(
            base, prompts, compiled, checkpointing=True, lora=Lora(rank=2) if lora else None
        )
        experiment = replace(experiment, update=replace(experiment.update, sharding=sharding, micro_batch=2))
        folder = Path(out) / f"compiled-{compiled}"
        run = prepare(experiment, "toy", 0, folder, new_accelerator(sharding))
        before = graphs()
        train(run)
        assert (graphs() > before) == compiled
        record |= {f"{compiled}.{n}": whole(w) for n, w in run.policy.weights.items()}
    write_record(run, record, out)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "lora"), [("none", False), ("none", True), ("fsdp2", False)])
def test_two_processes_compile_and_train_the_same(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, sharding: str, lora: bool
) -> None:
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path), sharding, lora)
    assert toy.launch(2, on_two, *arguments, timeout=280) == [0, 0]
    first, second = recorded(tmp_path, 2)
    for name in (name for name in first if name.startswith("True.")):
        assert torch.equal(first[name], second[name])
        plain = first[name.replace("True.", "False.")]
        torch.testing.assert_close(first[name], plain, rtol=0, atol=1e-3)


class PatientRunner(Runner):
    """Waits for a compiler."""

    def __call__(self, name: str, trap: str = "") -> list[int]:
        arguments = ["toy", "--on", "tiny", "--out", str(self.place / name), *self.settings]
        return toy.launch(self.world, train_toy, arguments, self.environment, trap, timeout=800)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_for_good_it_trains_the_same_and_is_resumed_bit_for_bit(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """With the real compiler, in processes of their own; the second and third find in the cache what the first has made."""
    environment = {
        "TOY_BASE": str(tiny_pipeline_dir),
        "TOY_PROMPTS": str(toy_prompts),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    compiled = PatientRunner(environment, tmp_path, 1, ("iterations=2", "update.compile=true"))
    plain = PatientRunner(environment, tmp_path, 1, ("iterations=2",))
    assert compiled("straight") == [0]
    assert compiled("killed", "line:3") == [-signal.SIGKILL]
    assert compiled("killed") == [0]
    assert_same(compiled.result("killed"), compiled.result("straight"))
    assert plain("plain") == [0]
    ours, theirs = compiled.result("straight"), plain.result("plain")
    for mine, other in zip(ours["lines"], theirs["lines"], strict=True):
        assert mine["first_ratio_max_dev"] == mine["first_kl_max"] == 0.0
        assert mine["reward_mean"] == pytest.approx(other["reward_mean"], abs=1e-3)
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    for name, tensor in theirs["tensors"].items():
        if name.startswith("weights/"):
            torch.testing.assert_close(ours["tensors"][name], tensor, rtol=0, atol=1e-3)
    # a run that was begun without goes on with it
    assert plain("moved", "line:3") == [-signal.SIGKILL]
    assert compiled("moved") == [0]
