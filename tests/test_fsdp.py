"""Weights that two processes share out (FSDP2) are trained as whole ones, and leave the same files."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import toy
from tests.test_distributed import killed_while_weights_are_gathered, recorded
from tests.test_resume import Runner, assert_same
from train import state as states
from train.config import Ema, Experiment, Lora, Pretraining, Reward
from train.plan import plan
from train.run import Run

BATCH = 12


def experiment_of(base: str, prompts: str, lora: bool, sharding: Any, iterations: int = 2) -> Experiment:
    """The toy experiment with an average, three micro-batches on two processes, and unequal numbers of valid images."""
    experiment = toy.toy_experiment(
        base,
        prompts,
        iterations=iterations,
        lora=Lora(rank=2, alpha=2.0) if lora else None,
        ema=Ema(decay=0.5),
    )
    redness, tone = experiment.tasks
    return replace(
        experiment,
        tasks=(replace(redness, batch=BATCH), replace(tone, batch=BATCH, images_per_prompt=2)),
        sampling=replace(experiment.sampling, micro_batch=2),
        update=replace(experiment.update, micro_batch=2, max_grad_norm=0.5, sharding=sharding),
    )


def prepared(experiment: Experiment, out: str) -> Any:
    import evals.scorers
    from train.start import new_accelerator, prepare

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    return prepare(experiment, "toy", 0, Path(out), new_accelerator(experiment.update.sharding))


def write_record(run: Any, record: dict[str, Tensor], out: str) -> None:
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in record.items()}
    save_file(contiguous, Path(out) / f"rank{run.rank}.safetensors")
    run.accelerator.wait_for_everyone()


def two_iterations_and_the_hand_over(base: str, prompts: str, out: str, lora: bool, sharding: str) -> Run:
    """Record a gradient over micro-batches, weights after two iterations and a step on data, and how it lies; hand over. Returns the run."""
    from train.data import CachedPairs
    from train.loop import pretraining_step, train
    from train.methods._policy_gradient import policy_gradient
    from train.policy import whole
    from train.start import hand_over

    run = prepared(experiment_of(base, prompts, lora, sharding), out)
    policy, record = run.policy, {}
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    policy_gradient(run, batch, batch.order[0], weight=1.0)
    for name, weight in policy.weights.items():
        assert weight.grad is not None
        record[f"gradient.{name}"] = whole(weight.grad)
    policy.forget_gradients()
    train(run)
    pairs = torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    run.experiment = replace(run.experiment, pretraining=Pretraining(source="unused", batch=BATCH))
    run.source = CachedPairs(pairs, list(toy.TEXTS) + ["a"] * 9, seed=0)
    found = pretraining_step(run, 0)
    record |= {name: torch.tensor(value) for name, value in found.items()}
    record |= {f"weights.{name}": whole(weight) for name, weight in policy.weights.items()}
    held = [p.to_local() if hasattr(p, "to_local") else p for p in policy.unet.parameters()]
    record["held"] = torch.tensor(sum(p.numel() for p in held))
    hand_over(run, "toy-toy-0")
    write_record(run, record, out)
    return run


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def runs(
    request: pytest.FixtureRequest,
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[list[dict[str, Tensor]], Path]]:
    """What one process and two of FSDP2 recorded, and where their runs lie; two of DDP are in test_distributed."""
    found = {}
    for name, world, sharding in (("one", 1, "none"), ("fsdp2", 2, "fsdp2")):
        out = tmp_path_factory.mktemp(name)
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), request.param, sharding)
        assert toy.launch(world, two_iterations_and_the_hand_over, *arguments) == [0] * world
        found[name] = (recorded(out, world), out)
    return found


def test_each_process_holds_a_share(runs: dict[str, Any]) -> None:
    (alone,), several = runs["one"][0], runs["fsdp2"][0]
    assert sum(record["held"] for record in several) == alone["held"]
    assert max(record["held"] for record in several) < 0.6 * alone["held"]


def test_gradient_over_micro_batches_is_that_of_one_process(runs: dict[str, Any]) -> None:
    (alone,), several = runs["one"][0], runs["fsdp2"][0]
    names = [name for name in alone if name.startswith("gradient.")]
    assert sum(float(alone[name].abs().sum()) for name in names) > 0
    for name in names:
        for record in several:
            torch.testing.assert_close(record[name], alone[name], rtol=1e-4, atol=1e-6)


def test_weights_are_those_of_one_process(runs: dict[str, Any]) -> None:
    (alone,), several = runs["one"][0], runs["fsdp2"][0]
    for name in (name for name in alone if name.startswith("weights.")):
        for record in several:
            assert torch.equal(record[name], several[0][name])
            # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
            torch.testing.assert_close(record[name], alone[name], rtol=0, atol=2e-4)
    for name in ("pretrain_loss", "pretrain_grad_norm"):
        torch.testing.assert_close(several[0][name], alone[name], rtol=1e-3, atol=1e-4)


def test_metrics_and_gates_are_those_of_one_process(runs: dict[str, Any]) -> None:
    ours, alone = (
        [json.loads(line) for line in (runs[way][1] / "metrics.jsonl").read_text().splitlines()]
        for way in ("fsdp2", "one")
    )
    assert len(ours) == len(alone) == 4
    for mine, theirs in zip(ours, alone, strict=True):
        assert mine["first_ratio_max_dev"] == mine["first_kl_max"] == 0.0
        assert mine["reward_mean"] == pytest.approx(theirs["reward_mean"], abs=1e-3)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
    gates = json.loads((runs["fsdp2"][1] / "run.json").read_text())["gates"]
    assert all(gate["holds"] for gate in gates.values())


def two_iterations_of_methods(base: str, prompts: str, out: str, sharding: str) -> None:
    """Record the weights after two iterations of methods that put other weights in place, share pictures out, or go through the denoiser twice."""
    from tests.test_methods_reward_gradient import Smooth
    from train.loop import train
    from train.methods import draft, grpo, nft, only_heeded, raft
    from train.policy import whole

    toy.SCORERS["smooth"] = Smooth
    toy_one = experiment_of(base, prompts, False, sharding)
    task = replace(toy_one.tasks[0], rewards=(Reward("smooth"),), baseline="batch", monitors=())
    record: dict[str, Tensor] = {}
    for method in (
        nft.Method(updates=2, kl=0.1, old_rise=0.1),
        grpo.Method(kl=0.5),
        raft.Method(candidates=4),
        draft.Method(truncate=2, noisings=1),
    ):
        experiment = replace(
            toy_one, tasks=(task,), update=only_heeded(toy_one.update, method), method=method
        )
        run = prepared(experiment, f"{out}/{method.name}")
        train(run)
        record |= {f"{method.name}.{name}": whole(weight) for name, weight in run.policy.weights.items()}
        if run.policy.old is not None:
            record |= {f"old.{name}": whole(weight) for name, weight in run.policy.old.average.items()}
    write_record(run, record, out)


@pytest.mark.slow
def test_methods_train_shares_as_whole_weights(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    found = []
    for world, sharding in ((1, "none"), (2, "fsdp2")):
        out = tmp_path / sharding
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), sharding)
        assert toy.launch(world, two_iterations_of_methods, *arguments) == [0] * world
        found.append(recorded(out, world))
    (alone,), several = found
    for name, weight in alone.items():
        assert torch.equal(several[0][name], several[1][name])
        # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
        torch.testing.assert_close(
            several[0][name], weight, rtol=0, atol=4e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_state_and_hand_over_are_the_files_of_one_process(runs: dict[str, Any]) -> None:
    """Same folders, names, shapes and configs; the numbers are compared above."""
    listed = {}
    for way in ("one", "fsdp2"):
        out = runs[way][1]
        listed[way] = {
            str(path.relative_to(out))
            for path in out.rglob("*")
            if path.is_file() and not path.name.startswith("rank")
        }
    assert listed["one"] == listed["fsdp2"]
    one, ours = runs["one"][1], runs["fsdp2"][1]
    for name in listed["one"]:
        if name.endswith(".safetensors"):
            mine, theirs = load_file(ours / name), load_file(one / name)
            assert {k: v.shape for k, v in mine.items() if "cpu." not in k} == {
                k: v.shape for k, v in theirs.items() if "cpu." not in k
            }
        elif name.endswith("config.json") or name == "model_index.json":
            assert (ours / name).read_text() == (one / name).read_text()


def test_what_is_handed_over_is_the_average(runs: dict[str, Any]) -> None:
    out = runs["fsdp2"][1]
    (state,) = states.checkpoints(out / "state")
    average, weights = load_file(state / "ema.safetensors"), load_file(state / "weights.safetensors")
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in average.items())
    if (
        out / "unet"
    ).is_dir():  # the step on data came after the state, and halves the distance to where it went
        saved = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
        for name, tensor in saved.items():
            after = (average[name] + runs["fsdp2"][0][0][f"weights.{name}"]) / 2
            torch.testing.assert_close(tensor, after, rtol=0, atol=1e-6)
    else:
        saved = load_file(out / "pytorch_lora_weights.safetensors")
        assert len(saved) == len(average)


def test_the_plan_counts_a_share(
    tiny_pipeline_dir: Path, toy_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.resources._denoiser_shapes", lambda _: {"weight": (2**30,)})
    whole = "trained weights 4.0, gradients 4.0, AdamW 8.0, average 4.0"
    share = "trained weights 1.0, gradients 1.0, AdamW 2.0, average 1.0"
    for sharding, gib, parts in (("none", "20.0", whole), ("fsdp2", "5.0", share)):
        experiment = experiment_of(str(tiny_pipeline_dir), str(toy_prompts), False, sharding)
        assert f"memory of a process: {gib} GiB in the update (1073.7 M {parts})" in plan(experiment, 4)


# --------------------------------------------------------------------------------------------- average, divergence, fp16


def swap_and_break(base: str, prompts: str, out: str) -> None:
    """Draw with the average in the weights' place and with the weights again; then break one process's share."""
    from train.gates import Diverged
    from train.loop import refuse_divergence, train
    from train.policy import whole

    experiment = experiment_of(base, prompts, False, "fsdp2", iterations=1)
    run = prepared(replace(experiment, tasks=experiment.tasks[:1]), out)
    task = run.experiment.tasks[0]
    first = run.experiment.method.collect(run, task, 0).trajectory.latents_BCHW
    train(run)
    policy, record = run.policy, {"first": first}
    record["before"] = run.experiment.method.collect(run, task, 0).trajectory.latents_BCHW
    with policy.handed_over():
        record["average"] = run.experiment.method.collect(run, task, 0).trajectory.latents_BCHW
    record["after"] = run.experiment.method.collect(run, task, 0).trajectory.latents_BCHW
    name = "conv_in.weight"
    record["expected"] = whole(policy.ema.average[name])
    with policy.handed_over():
        record["swapped"] = whole(policy.weights[name])
    refuse_divergence(run, "task")
    if run.rank == 1:
        with torch.no_grad():
            policy.weights[name].to_local()[0] = torch.nan
    try:
        refuse_divergence(run, "task")
    except Diverged:
        record["refused"] = torch.ones(())
    write_record(run, record, out)


def test_the_average_takes_the_place_of_the_weights_on_every_process_and_a_broken_share_is_seen_by_all(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """Weights gathered for an earlier forward pass must not be those of a later one."""
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path))
    assert toy.launch(2, swap_and_break, *arguments) == [0, 0]
    for record in recorded(tmp_path, 2):
        assert torch.equal(record["before"], record["after"])
        assert not torch.equal(record["before"], record["first"])
        assert not torch.equal(record["before"], record["average"])
        assert torch.equal(record["swapped"], record["expected"])
        assert "refused" in record


def in_fp16(base: str, prompts: str, out: str) -> None:
    from train.loop import train
    from train.methods._policy_gradient import policy_gradient
    from train.policy import whole
    from train.run import accumulated

    experiment = experiment_of(base, prompts, False, "fsdp2", iterations=1)
    run = prepared(replace(experiment, sampling=replace(experiment.sampling, precision="fp16")), out)
    run.policy.loss_scale.value = 2.0**24  # overflows
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    accumulated(run, lambda: policy_gradient(run, batch, batch.order[0], 1.0))
    assert run.policy.loss_scale.value < 2.0**24
    record = {name: whole(weight.grad) for name, weight in run.policy.weights.items()}
    run.policy.forget_gradients()
    train(run)
    write_record(run, record, out)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [False], ids=["full"], indirect=True)
def test_fp16_trains_on_shares(
    runs: dict[str, Any], tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path))
    assert toy.launch(2, in_fp16, *arguments) == [0, 0]
    alone = runs["one"][0][0]
    found = recorded(tmp_path, 2)[0]
    ours = torch.cat([gradient.flatten() for gradient in found.values()])
    theirs = torch.cat([alone[f"gradient.{name}"].flatten() for name in found])
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1


# --------------------------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def environment(tiny_pipeline_dir: Path, toy_prompts: Path) -> dict[str, str]:
    return {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}


SHARDED = ("iterations=3", "ema.decay=0.9", "update.sharding=fsdp2")


@pytest.fixture(scope="module")
def two(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Two processes that share out the weights; `straight` has run through."""
    runner = Runner(environment, tmp_path_factory.mktemp("two"), 2, SHARDED)
    assert runner("straight") == [0, 0]
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("trap", ["file:1", "line:5"])
def test_kill_and_resume_is_bit_for_bit_the_straight_run(two: Runner, trap: str) -> None:
    """Between two states, and while the main process writes one."""
    name = "killed-" + trap.replace(":", "-")
    assert -signal.SIGKILL in two(name, trap)
    checkpoint = states.latest(two.place / name / "state")
    assert checkpoint is not None
    assert checkpoint.name == "000002-0"
    states.read_tensors(checkpoint, ["ema"])
    assert two(name) == [0, 0]
    assert_same(two.result(name), two.result("straight"))


def test_the_old_state_survives_a_process_that_dies_while_weights_are_gathered(two: Runner) -> None:
    arguments = ["toy", "--on", "tiny", "--out", str(two.place / "gathering"), *two.settings]
    codes = toy.launch(2, killed_while_weights_are_gathered, arguments, two.environment)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    checkpoint = states.latest(two.place / "gathering" / "state")
    assert checkpoint is not None
    assert checkpoint.name == "000002-0"
    assert two("gathering") == [0, 0]
    assert_same(two.result("gathering"), two.result("straight"))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "settings"), [(2, SHARDED[:2]), (1, SHARDED)])
def test_a_run_goes_on_with_whole_weights(two: Runner, world: int, settings: tuple[str, ...]) -> None:
    """And one process has nobody to share with."""
    name = f"moved-to-{world}"
    assert -signal.SIGKILL in two(name, "line:5")
    other = Runner(two.environment, two.place, world, settings)
    assert other(name) == [0] * world
    assert len(other.result(name)["lines"]) == 2 * 3
    for key, tensor in two.result("straight")["tensors"].items():
        if key.startswith(("weights/", "ema/")):
            torch.testing.assert_close(other.result(name)["tensors"][key], tensor, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_whole_weights_go_on_as_shares(two: Runner) -> None:
    whole = Runner(two.environment, two.place, 1, SHARDED[:2])
    assert whole("begun-whole", "line:5") == [-signal.SIGKILL]
    assert two("begun-whole") == [0, 0]
    assert len(two.result("begun-whole")["lines"]) == 2 * 3
