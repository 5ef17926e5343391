"""The loop on a tiny pipeline: the identity before the first update, the gradient, the order of things, and that it learns."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evals import diffusion
from evals.arithmetic import padded
from evals.checkpoints import ROOT, load_pipeline
from evals.decoder import decode
from evals.diffusion import Painter, Sampling, log_prob, predict, transition
from tests import toy
from train import gates
from train.config import Experiment, Pretraining, Reward, Task, Update, as_json
from train.data import CachedPairs, draw_steps, image_indices, noise_seed, positions, pretraining_source
from train.gates import GateBroken
from train.loop import Stopped, order_of_tasks, pretraining_step, train
from train.methods import _policy_gradient
from train.methods._policy_gradient import PolicyGradient, policy_gradient
from train.run import Run
from train.start import hand_over, new_accelerator, prepare

pytestmark = pytest.mark.usefixtures("toy_scorers")

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> MakeRun:
    """A run of the toy experiment, with changes, in a folder of its own."""
    made = 0

    def make(seed: int = 0, base: Path = tiny_pipeline_dir, **changes: Any) -> Run:
        nonlocal made
        made += 1
        experiment = toy.toy_experiment(base, toy_prompts, **changes)
        return prepare(experiment, "toy", seed, tmp_path / f"run{made}", new_accelerator())

    return make


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def gradients(run: Run) -> dict[str, Tensor]:
    found = {
        name: weight.grad.clone() for name, weight in run.policy.weights.items() if weight.grad is not None
    }
    run.policy.optimiser.zero_grad(set_to_none=True)
    return found


UPDATE = toy.toy_experiment("", "").update
SAMPLING = toy.toy_experiment("", "").sampling


# -------------------------------------------------------------------------------------------------------- identity gates


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("guidance", [None, 3.0])
def test_ratio_is_one_and_kl_zero_before_the_first_update_at_every_step(
    make_run: MakeRun,
    toy_prompts: Path,
    tmp_path: Path,
    prediction_type: str,
    precision: Any,
    guidance: float | None,
) -> None:
    toy.build_tiny_pipeline(prediction_type=prediction_type).save_pretrained(tmp_path / "base")
    sampling = replace(SAMPLING, precision=precision, guidance=guidance, steps=6)
    # no task whose scores may all be NaN: how bright these pictures are depends on how the machine rounds
    redness = toy.toy_experiment("", toy_prompts).tasks[0]
    tasks = (redness, replace(redness, name="again"))
    run = make_run(base=tmp_path / "base", sampling=sampling, tasks=tasks, iterations=2)
    train(run)
    identity = run.progress.gates["identity"]
    assert len(identity["steps"]) == 6
    assert identity["updates"] == 6 + 2 * 2  # every step at the start, then once per task and iteration
    assert identity["exact"]
    for worst in identity["steps"].values():
        assert worst == dict.fromkeys(("ratio_max_dev", "kl_max", "ratio_allowed", "kl_allowed"), 0.0)
    assert all(line["first_ratio_max_dev"] == line["first_kl_max"] == 0.0 for line in lines(run))
    assert any(line["ratio_max_dev"] > 0 for line in lines(run))


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_identity_holds_at_unequal_micro_batches(make_run: MakeRun, micro_batch: int) -> None:
    run = make_run(update=replace(UPDATE, micro_batch=micro_batch), iterations=2)
    train(run)
    for worst in run.progress.gates["identity"]["steps"].values():
        assert worst["ratio_max_dev"] <= worst["ratio_allowed"] < 1e-4
        assert worst["ratio_max_dev"] <= 1e-5


def test_missing_rows_are_copies_of_the_last() -> None:
    """Rows of zeros are far from what is ever drawn: the ratio of their summed log-probability overflows, and 0 times it is NaN."""
    assert padded(lambda x: x, 4, torch.tensor([[1.0], [2.0]])).tolist() == [[1.0], [2.0], [2.0], [2.0]]


def test_identity_holds_for_the_summed_log_probability(make_run: MakeRun) -> None:
    run = make_run(update=replace(UPDATE, reduction="sum", clip=0.1, micro_batch=8), iterations=1)
    train(run)
    identity, averaged = run.progress.gates["identity"], replace(run.rounding, reduction="mean")
    for step, worst in zip(run.drawable, identity["steps"].values(), strict=True):
        # 64 dimensions, and 1 + 64 x for (1 + x)^64
        assert worst["ratio_allowed"] == pytest.approx(64 * averaged.ratio_error(step), rel=0.01)


def test_a_rollout_that_rounds_what_it_stores_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ddpo-pytorch, TRL: log-probability of the float32 value, then the latent is stored in half precision."""
    run = make_run()
    draw = run.policy.painter.draw

    def rounding(*arguments: Any, **options: Any) -> Any:
        drawn = draw(*arguments, **options)
        return replace(
            drawn, x_BTCHW=drawn.x_BTCHW.bfloat16().float(), next_BTCHW=drawn.next_BTCHW.bfloat16().float()
        )

    monkeypatch.setattr(run.policy.painter, "draw", rounding)
    with pytest.raises(Stopped, match=r"ratio is off 1 by .* rollout and update are not the same function"):
        train(run)
    assert lines(run) == []  # nothing was updated


def test_a_policy_that_moved_between_rollout_and_update_is_stopped(make_run: MakeRun) -> None:
    """The release synchronises its sampler before the pretraining step, so its first ratio is not 1."""
    run = make_run()
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    with torch.no_grad():
        next(iter(run.policy.weights.values())).mul_(1.01)
    with pytest.raises(GateBroken, match="KL"):
        run.experiment.method.update(run, batch, on_policy=True)


def test_a_transition_that_is_not_diffusers_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "transition", lambda *a: (1.001 * transition(*a)[0], transition(*a)[1]))
    with pytest.raises(GateBroken, match="the transition differs from diffusers' DDIMScheduler by"):
        make_run()


def test_a_log_probability_that_is_no_normal_density_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "log_prob", lambda *a: log_prob(*a) + 0.01)
    with pytest.raises(GateBroken, match=r"its log-probability from torch's normal distribution by 0\.01"):
        make_run()


def test_noise_that_depends_on_the_batch_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One generator for all images, one after the other."""
    run, generator = make_run(iterations=1), torch.Generator().manual_seed(0)

    def shared(seed: int, text: str, index: int, shape: Any, steps: int) -> Tensor:
        return torch.randn(1 + steps, *shape, generator=generator)

    monkeypatch.setattr(diffusion, "noise", shared)
    wanted = "the noise of an image drawn alone differs from that of the same one drawn in a batch by"
    with pytest.raises(Stopped, match=wanted):
        train(run)
    assert run.progress.gates["noise"]["holds"] is False


def test_an_image_that_depends_on_its_batch_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser that looks at the mean of its batch, in rollout and update alike."""
    run = make_run(iterations=1)
    forward = run.policy.unet.forward

    def mixed(x: Tensor, *arguments: Any, **options: Any) -> Any:
        (output,) = forward(x, *arguments, **options)
        return (output + 0.01 * output.mean(0, keepdim=True),)

    monkeypatch.setattr(run.policy.unet, "forward", mixed)
    with pytest.raises(Stopped, match="an image drawn alone differs from the same one drawn in a batch by"):
        train(run)
    assert run.progress.gates["image"]["holds"] is False


def test_a_loss_that_depends_on_the_micro_batch_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of each micro-batch, whatever its size, instead of the batch's."""
    run = make_run(iterations=1)

    def averaged(call: Any, rows: int, *columns: Tensor) -> Any:
        loss, found = padded(call, rows, *columns)
        return loss / len(columns[0]), found

    monkeypatch.setattr(_policy_gradient, "padded", averaged)
    with pytest.raises(Stopped, match="the gradient of a batch differs from that of its halves by"):
        train(run)
    assert run.progress.gates["gradient"]["holds"] is False


def test_run_card_reports_the_gates(make_run: MakeRun) -> None:
    run = make_run(iterations=1)
    train(run)
    hand_over(run, "toy-toy-0")
    card = json.loads((run.out / "run.json").read_text())
    assert card["gates"]["transition"]["transition_max_error"] < 1e-4
    assert card["gates"]["identity"]["updates"] == 4 + 2
    assert {name: gate["holds"] for name, gate in card["gates"].items()} == dict.fromkeys(
        ("transition", "noise", "identity", "image", "gradient"), True
    )
    assert card["gates"]["image"]["max_difference"] == 0.0
    assert card["gates"]["gradient"]["max_difference"] < 1e-3  # another order of the same terms
    assert (card["name"], card["model"], card["seed"]) == ("toy-toy-0", "toy", 0)
    assert card["rewards"] == ["redness", "tone"]
    assert card["scorer_versions"] == {"redness": "00000000", "tone": "00000001"}
    assert card["experiment"] == as_json(run.experiment)
    assert card["cost"]["images"] == 16
    # 16 images x (4 sampled + 2 trained steps) x 2 branches
    assert card["cost"]["denoiser_evaluations"] == 16 * 6 * 2
    assert {
        "commit",
        "versions",
        "hardware",
        "prompt_sets",
        "base",
        "sampling",
        "finished",
        "seed",
        "model",
    } <= card.keys()


# -------------------------------------------------------------------------------------------------------------- gradient


def test_gradient_at_ratio_one_is_reinforce_through_the_denoiser(make_run: MakeRun) -> None:
    run = make_run()
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    step = batch.order[0]
    policy_gradient(run, batch, step, weight=1.0)
    ours = gradients(run)

    painter, kept = run.policy.painter, batch.trajectory.steps.index(step)
    x, action, _, _ = batch.trajectory.part(slice(None), kept)
    timestep, guidance = painter.schedule.timesteps[step], run.experiment.sampling.guidance
    output = predict(
        run.policy.unet, x, timestep, painter.encoder(batch.texts), painter.unconditional(), guidance
    )
    mean, sigma = transition(painter.schedule, x, output, step, 1.0)
    (-(batch.advantage_B * log_prob(action, mean, sigma)).mean()).backward()
    theirs = gradients(run)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_gradient_does_not_depend_on_the_micro_batch(make_run: MakeRun, micro_batch: int) -> None:
    found = []
    for size in (8, micro_batch):
        run = make_run(update=replace(UPDATE, micro_batch=size))
        batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
        policy_gradient(run, batch, batch.order[0], weight=1.0)
        found.append(gradients(run))
    for name, gradient in found[0].items():
        # of a weight's whole gradient: its smallest entries are sums that nearly cancel
        assert (found[1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name


def test_masked_images_change_neither_gradient_nor_mean(make_run: MakeRun) -> None:
    """A batch with half of its images masked has the gradient of the other half alone."""
    run = make_run()
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    advantage_B = batch.advantage_B.clone()
    advantage_B[4:] = 0.0
    policy_gradient(run, replace(batch, advantage_B=advantage_B, valid=4), batch.order[0], 1.0)
    masked = gradients(run)
    first = slice(0, 4)
    drawn = batch.trajectory
    half = replace(
        drawn,
        x_BTCHW=drawn.x_BTCHW[first],
        next_BTCHW=drawn.next_BTCHW[first],
        mean_BTCHW=drawn.mean_BTCHW[first],
        logp_BT=drawn.logp_BT[first],
    )
    policy_gradient(
        run,
        replace(batch, trajectory=half, texts=batch.texts[:4], advantage_B=advantage_B[:4], valid=4),
        batch.order[0],
        1.0,
    )
    for name, gradient in gradients(run).items():
        torch.testing.assert_close(masked[name], gradient)


def test_memory_does_not_grow_with_the_trained_steps(make_run: MakeRun) -> None:
    """Peak of what autograd keeps alive: the same for one trained step and for four, and for one micro-batch and two."""

    class Held:
        live = peak = 0

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            Held.live += tensor.numel()
            Held.peak = max(Held.peak, Held.live)

        def __del__(self) -> None:
            Held.live -= self.tensor.numel()

    def peak(trained_steps: int, batch: int) -> int:
        task = replace(toy.toy_experiment("", "").tasks[0], batch=batch, prompts=str(prompts))
        run = make_run(tasks=(task,), update=replace(UPDATE, trained_steps=trained_steps), iterations=1)
        drawn = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
        gc.collect()
        Held.live = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            run.experiment.method.update(run, drawn, on_policy=True)
        return Held.peak

    prompts = make_run().experiment.tasks[0].prompts
    assert peak(1, 4) == peak(4, 4) == peak(4, 8) > 0


# ------------------------------------------------------------------------------------------------------ order of things


def test_each_task_is_sampled_right_before_its_update_or_all_at_first(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    inner_collect, inner_update = PolicyGradient.collect, PolicyGradient.update

    def watched_collect(self: PolicyGradient, run: Run, task: Task, iteration: int) -> Any:
        happened.append(f"sample {task.name}")
        return inner_collect(self, run, task, iteration)

    def watched_update(self: PolicyGradient, run: Run, batch: Any, on_policy: bool) -> Any:
        happened.append(f"update {on_policy}")
        return inner_update(self, run, batch, on_policy)

    monkeypatch.setattr(PolicyGradient, "collect", watched_collect)
    monkeypatch.setattr(PolicyGradient, "update", watched_update)
    train(make_run(iterations=1))
    assert happened == ["sample redness", "update True", "sample tone", "update True"]
    happened.clear()
    train(make_run(iterations=1, update=replace(UPDATE, theta_old="iteration")))
    assert happened == ["sample redness", "sample tone", "update True", "update False"]


def test_tasks_can_rotate(tiny_pipeline_dir: Path, toy_prompts: Path) -> None:
    experiment = toy.toy_experiment(tiny_pipeline_dir, toy_prompts, task_order="rotated")
    orders = [[task.name for task in order_of_tasks(experiment, iteration)] for iteration in range(3)]
    assert orders == [["redness", "tone"], ["tone", "redness"], ["redness", "tone"]]


def test_metrics_have_a_line_per_iteration_and_task(make_run: MakeRun) -> None:
    run = make_run(iterations=2)
    train(run)
    found = lines(run)
    assert [(line["iteration"], line["task"]) for line in found] == [
        (0, "redness"),
        (0, "tone"),
        (1, "redness"),
        (1, "tone"),
    ]
    assert [line["images"] for line in found] == [8, 16, 24, 32]
    for line in found:
        assert len(line["grad_norm"]) == len(line["kl_by_step"]) == 2
        assert all(norm > 0 for norm in line["grad_norm"].values())
        assert line["kl"] >= 0
    assert found[0]["monitors"].keys() == {"tone"}
    assert found[1]["reward_n"] <= 2  # groups
    assert -0.87 <= found[1]["reward_mean"] <= 0


def test_skipped_and_deterministic_steps_are_never_drawn(make_run: MakeRun) -> None:
    run = make_run(update=replace(UPDATE, skip_last=2))
    assert run.drawable == (0, 1)
    drawn = {
        run.experiment.method.collect(run, run.experiment.tasks[0], iteration).order for iteration in range(4)
    }
    assert {step for order in drawn for step in order} == {0, 1}


def test_same_seed_twice_is_bit_equal_and_another_is_not(make_run: MakeRun) -> None:
    weights = []
    for seed in (0, 0, 1):
        run = make_run(seed=seed, iterations=2)
        train(run)
        weights.append(torch.cat([weight.detach().flatten() for weight in run.policy.weights.values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_global_generators_are_left_alone(make_run: MakeRun) -> None:
    run = make_run(iterations=1)
    state = torch.get_rng_state()
    train(run)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_base_is_handed_over_as_it_is(make_run: MakeRun, tiny_pipeline_dir: Path) -> None:
    run = make_run(tasks=(), iterations=0, update=Update())
    train(run)
    hand_over(run, "base-toy-0")
    card = json.loads((run.out / "run.json").read_text())
    assert card["rewards"] == []
    assert card["cost"]["images"] == card["cost"]["denoiser_evaluations"] == 0
    for part in ("unet", "vae"):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        handed_over, base = load_file(run.out / weights), load_file(tiny_pipeline_dir / weights)
        assert all(torch.equal(tensor, base[name]) for name, tensor in handed_over.items())


# ------------------------------------------------------------------------------------------------------ what is asked when


def test_every_prompt_is_asked_once_before_any_is_asked_twice() -> None:
    drawn = positions(7, 0, 21, "prompts", 0, "task")
    for start in (0, 7, 14):
        assert sorted(drawn[start : start + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert drawn[5:12] == positions(7, 5, 7, "prompts", 0, "task")  # a batch may begin anywhere
    assert drawn != positions(7, 0, 21, "prompts", 1, "task")


def test_prompt_plan_is_pinned() -> None:
    """A resumed run of an older version must go on with the same prompts."""
    assert positions(7, 0, 7, "prompts", 0, "task") == [1, 0, 2, 4, 3, 5, 6]


def test_noise_of_a_prompt_is_new_in_every_iteration_and_task(make_run: MakeRun) -> None:
    experiment = make_run().experiment
    redness, tone = experiment.tasks
    used = [index for iteration in range(5) for index in image_indices(redness, iteration)]
    assert len(set(used)) == len(used)
    assert noise_seed(redness, 0) != noise_seed(tone, 0)
    assert noise_seed(redness, 0) != noise_seed(redness, 1)


def test_drawn_steps_are_uniform_without_replacement(make_run: MakeRun) -> None:
    task = make_run().experiment.tasks[0]
    drawn = [draw_steps((0, 2, 5, 6), 2, 0, task, iteration) for iteration in range(400)]
    assert all(len(set(steps)) == 2 for steps in drawn)
    for step in (0, 2, 5, 6):
        assert sum(step in steps for steps in drawn) == pytest.approx(200, abs=50)
        assert sum(step == steps[0] for steps in drawn) == pytest.approx(100, abs=40)


# ------------------------------------------------------------------------------------------------------- pretraining step


def test_pairs_of_the_miniature_are_latents_that_decode_to_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ROOT / "evals" / "miniature" / "weights" / "pipeline"
    if not base.is_dir():
        pytest.skip("the miniature's weights are not here")
    monkeypatch.setattr("train.data.MINIATURE_PAIRS", 4)
    painter = Painter.of(load_pipeline(str(base)), Sampling(steps=2, micro_batch=4))
    source = pretraining_source(Pretraining("miniature"), painter, seed=0)
    latents, captions = source.batch(0, 4, rank=0, world=1)
    assert latents.shape == (4, *painter.latent_shape)
    assert latents.std().item() == pytest.approx(1.0, abs=0.4)
    assert len(captions) == 4
    halves = [source.batch(0, 4, rank, world=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half[0] for half in halves]), latents)
    assert halves[0][1] + halves[1][1] == captions
    assert decode(painter.vae, latents, 4).std() > 0.05


def test_pretraining_step_is_the_denoising_loss_and_has_a_step_of_its_own(make_run: MakeRun) -> None:
    pairs = CachedPairs(
        torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(0)), ["red"] * 16, seed=0
    )
    run = make_run(iterations=3)
    run.experiment = replace(
        run.experiment, pretraining=Pretraining(source="unused", batch=8), tasks=run.experiment.tasks[:1]
    )
    run.source = pairs
    train(run)
    found = lines(run)
    assert all(0 < line["pretrain_loss"] < 10 and line["pretrain_grad_norm"] > 0 for line in found)
    steps = {int(state["step"]) for state in run.policy.optimiser.state.values()}
    assert steps == {3 * (2 + 1)} == {run.experiment.optimiser_steps}


def test_pretraining_alone_lowers_its_loss(make_run: MakeRun) -> None:
    pairs = CachedPairs(torch.zeros(8, 4, 4, 4), ["red"] * 8, seed=0)
    run = make_run(update=replace(UPDATE, lr=1e-2))
    run.experiment = replace(run.experiment, pretraining=Pretraining(source="unused", batch=8))
    run.source = pairs
    losses = [pretraining_step(run, iteration)["pretrain_loss"] for iteration in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_beta_scales_the_pretraining_gradient(make_run: MakeRun) -> None:
    norms = []
    for beta in (1.0, 3.0):
        run = make_run()
        run.experiment = replace(run.experiment, pretraining=Pretraining(source="unused", batch=8, beta=beta))
        run.source = CachedPairs(torch.zeros(8, 4, 4, 4), ["red"] * 8, seed=0)
        norms.append(pretraining_step(run, 0)["pretrain_grad_norm"])
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
def test_redness_rises(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    """Stable-baselines' identity test: whoever cannot learn red cannot learn anything."""
    task = Task("redness", str(toy_prompts), (Reward("redness"),), batch=32)
    experiment = Experiment(
        base=str(tiny_pipeline_dir),
        tasks=(task,),
        iterations=25,
        sampling=Sampling(steps=5, eta=1.0, guidance=None, micro_batch=32),
        update=Update(
            lr=3e-3, clip=0.05, trained_steps=3, skip_last=2, step_weight="balanced", micro_batch=32
        ),
        save_every=100,
    )
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    train(run)
    rewards = [line["reward_mean"] for line in lines(run)]
    noise = sum(line["reward_std"] for line in lines(run)[:5]) / 5 / (5 * 32) ** 0.5
    assert sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5 > 8 * noise
