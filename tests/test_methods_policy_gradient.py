"""The relatives of the paper's policy gradient: each equation against its definition, and each method on a tiny pipeline."""

from __future__ import annotations

import json
import math
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from evals.diffusion import Sampling, Schedule, gaussian_kl, log_prob, noise, transition
from tests import toy
from train import experiments, methods
from train.advantages import group_relative, normalise, silent_share
from train.batches import Judged, ask
from train.config import Experiment, Lora, Reward, Task, Update, check, override
from train.loop import Stopped, train
from train.methods import ddpo, grpo, kl_region, ppo, ratio_norm, window
from train.methods._policy_gradient import Batch, policy_gradient
from train.mixing import added, mixed, turns
from train.objective import clipped_surrogate
from train.rewards import Shaped
from train.run import Run
from train.start import new_accelerator, prepare

NAN = math.nan

RELATIVES: dict[str, Any] = {
    "ddpo": ddpo.Method(buffer_size=6, min_count=3),
    "grpo": grpo.Method(kl=0.5),
    "ratio_norm": ratio_norm.Method(),
    "kl_region": kl_region.Method(max_kl=1e-3),
    "window": window.Method(within=0.8),
}
MakeRun = Callable[..., Run]


def of_method(base: Path | str, prompts: Path | str, name: str, **changes: Any) -> Experiment:
    """The toy experiment, trained by a relative."""
    experiment = toy.toy_experiment(base, prompts, **changes)
    tasks = tuple(replace(task, baseline="batch") for task in experiment.tasks)
    update = experiment.update
    if name == "kl_region":
        update = replace(update, clip=Update().clip)
    return replace(
        experiment, tasks=tasks, update=update, method=RELATIVES.get(name, ppo.Method()), samples_every=0
    )


@pytest.fixture
def make_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, toy_scorers: None) -> MakeRun:
    """A run of the toy experiment by a relative, with changes, in a folder of its own."""
    made = 0

    def make(name: str, base: Path = tiny_pipeline_dir, out: str = "", **changes: Any) -> Run:
        nonlocal made
        made += 1
        experiment = replace(of_method(base, toy_prompts, name), **changes)
        check(experiment, 1)
        return prepare(experiment, "toy", 0, tmp_path / (out or f"run{made}"), new_accelerator())

    return make


def lines(run: Run) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def gradients(run: Run) -> dict[str, Tensor]:
    found = {name: w.grad.clone() for name, w in run.policy.weights.items() if w.grad is not None}
    run.policy.forget_gradients()
    return found


def collected(run: Run, task: int = 0, iteration: int = 0) -> Any:
    return run.experiment.method.collect(run, run.experiment.tasks[task], iteration)


def moved(run: Run) -> None:
    """A policy that is no longer the one that drew."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in run.policy.weights.values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


# ------------------------------------------------------------------------------------------------------------- equations


def test_group_relative_is_the_definition_in_every_group() -> None:
    reward = torch.randn(24, generator=torch.Generator().manual_seed(0))
    reward[3] = reward[16] = reward[17] = NAN
    group_B = torch.arange(24) // 4
    relative = group_relative(reward, group_B)
    for start in range(0, 24, 4):
        group = reward[start : start + 4].double().numpy()
        valid = group[~np.isnan(group)]
        expected = (group - valid.mean()) / (valid.std(ddof=1) + 1e-4)
        assert relative[start : start + 4].tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert silent_share(relative, group_B) == 0.0


def test_groups_without_spread_say_nothing_and_are_counted() -> None:
    """All equal, one reward alone, none at all, equal but for rounding, and one group that says something."""
    equal, alone, none = [0.1] * 3, [NAN, 0.7, NAN], [NAN] * 3
    rounded, telling = [0.3, 0.3 + 3e-8, 0.3], [0.0, 0.0, 1.0]
    group_B = torch.arange(15) // 3
    relative = group_relative(torch.tensor([*equal, *alone, *none, *rounded, *telling]), group_B)
    found = relative.nan_to_num(nan=0.0)
    assert found[:9].eq(0).all()
    assert found[9:12].abs().max() < 1e-3
    assert found[12:].tolist() == pytest.approx([-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5], rel=1e-3)
    assert silent_share(relative, group_B) == 2 / 4
    assert silent_share(torch.full((3,), NAN), torch.zeros(3)) == 0.0


@pytest.mark.parametrize("name", ["grpo", "ratio_norm", "kl_region", "window"])
def test_two_rewards_that_agree_count_for_two_with_gdpo(name: str) -> None:
    """Its second step is over the batch: by each prompt's own deviation the sum would be what GRPO makes of it (arXiv 2601.05242, figure 2)."""
    experiment = of_method("", "", name, mixing="gdpo")
    (pool,) = turns(experiment)
    group_B, one, both = torch.arange(6) // 2, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    rewards = torch.stack(
        [torch.tensor([0.0, 1.0] * 2 + [NAN] * 2), torch.cat([0 * one, one, NAN * both])], 1
    )
    credit_B = added(mixed(rewards, torch.ones(2), group_B, "gdpo"))
    judged = Judged({}, Shaped(credit_B, None, credit_B), group_B, 2)
    run: Any = SimpleNamespace(experiment=experiment)
    found = RELATIVES[name].compared(run, pool, 0, judged)
    assert found.advantage_B.tolist() == pytest.approx(normalise(credit_B).nan_to_num(nan=0.0).tolist())
    assert float(found.advantage_B[3]) == pytest.approx(2 * float(found.advantage_B[1]))
    assert found.report == {"zero_std": 0.0}


def test_remembered_rewards_are_the_last_of_each_prompt() -> None:
    """Against a deque, over iterations in which prompts come once, twice and not at all, and some rewards are missing."""
    generator = np.random.default_rng(0)
    memory: dict[str, Any] = {}
    expected: dict[str, deque[list[float]]] = {}
    for iteration in range(12):
        names = [f"p{i}" for i in generator.integers(0, 4, 6)]
        rewards = torch.tensor(generator.normal(size=6), dtype=torch.float32)
        rewards[generator.integers(0, 6)] = NAN
        before = json.dumps(memory)
        after = ddpo.remembered(memory, names, rewards, iteration, 5)
        assert json.dumps(memory) == before, "what it was given is left alone"
        for name, reward in zip(names, rewards.tolist(), strict=True):
            if not math.isnan(reward):
                expected.setdefault(name, deque(maxlen=5)).append([iteration, reward])
        memory = json.loads(json.dumps(after))  # as a checkpoint holds it
        assert memory == {name: list(buffer) for name, buffer in expected.items()}


def test_standardised_by_the_prompts_own_rewards() -> None:
    others = [0.5, 1.5, 4.0, 4.0]
    found = ddpo.standardised(torch.tensor(3.0), others)
    assert float(found) == pytest.approx((3.0 - np.mean(others)) / (np.std(others) + 1e-6), rel=1e-6)
    assert ddpo.standardised(torch.tensor(0.1), [float(np.float32(0.1))] * 7).abs() < 1e-6
    assert ddpo.standardised(torch.tensor(NAN), others).isnan()


def actions(sigma: float, count: int, dims: int = 64, apart: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Actions of an old policy, its means, and those of another that is `apart` sigma away in every dimension."""
    generator = torch.Generator().manual_seed(0)
    old, z, direction = torch.randn(3, count, 4, 4, dims // 16, generator=generator)
    return old + sigma * z, old + apart * sigma * direction.sign(), old


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_normalised_ratio_is_eq_8(reduction: Any, sigma: float) -> None:
    after, mean, old = (tensor.double() for tensor in actions(sigma, 8))
    log_w = log_prob(after, mean, sigma, reduction) - log_prob(after, old, sigma, reduction)
    kl = kl_divergence(Normal(mean, sigma), Normal(old, sigma)).flatten(1)
    of_kl = kl.mean(1) if reduction == "mean" else kl.sum(1)
    found = ratio_norm.normalised_log_ratio(after, mean, old, sigma, reduction)
    torch.testing.assert_close(found, sigma * (log_w.double() + of_kl), rtol=1e-3, atol=1e-5)
    assert ratio_norm.normalised_log_ratio(after, old, old, sigma, reduction).eq(0).all()


def test_normalised_ratio_has_mean_one_where_the_ratio_has_less() -> None:
    sigma, dims, apart, count = 0.5, 64, 0.3, 20000
    after, mean, old = actions(sigma, count, dims, apart)
    plain = log_prob(after, mean, sigma) - log_prob(after, old, sigma)
    found = ratio_norm.normalised_log_ratio(after, mean, old, sigma, "mean")
    error = sigma * apart * sigma / math.sqrt(dims * count)
    assert abs(float(found.mean())) < 4 * error
    assert float(found.std()) == pytest.approx(sigma * apart * sigma / math.sqrt(dims) / sigma, rel=0.05)
    assert float(plain.mean()) == pytest.approx(-(apart**2) / 2, rel=0.05)


def schedule_of(prediction_type: str, steps: int = 8) -> Schedule:
    scheduler = DDIMScheduler(
        **toy.NOISE, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False
    )
    return Schedule.of(scheduler, steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_balanced_gradients_of_the_normalised_ratio_have_one_scale(prediction_type: str) -> None:
    """Autograd through the transition: the gradient in the denoiser's output is the same at every step for the same z."""
    schedule, steps = schedule_of(prediction_type), range(8)
    weights = ratio_norm.balance(schedule, steps, 1.0)
    assert sum(weights.values()) / len(weights) == pytest.approx(1.0)
    x, old_output, z = torch.randn(3, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found, signs = [], []
    for step in steps:
        old, sigma = transition(schedule, x, old_output, step, 1.0)
        output = old_output.clone().requires_grad_()
        mean, _ = transition(schedule, x, output, step, 1.0)
        ratio = ratio_norm.normalised_log_ratio(old + sigma * z, mean, old, sigma, "mean")
        (gradient,) = torch.autograd.grad(ratio.sum(), output)
        signs.append(float((gradient * z).sum().sign()))
        found.append(weights[step] * gradient * signs[-1])
    assert len(set(signs)) == 1, "a better prediction is one in the same direction at all steps"
    for gradient in found:
        torch.testing.assert_close(gradient, found[0], rtol=1e-3, atol=1e-6)


def test_normalised_ratio_is_the_same_for_noise_and_v_prediction() -> None:
    """One model in both forms, v = (eps - sqrt(1 - a) x) / sqrt(a), before and after it has changed; and c_v = sqrt(a) c_eps."""
    of_noise, of_v = schedule_of("epsilon"), schedule_of("v_prediction")
    x, old_noise, change, z = torch.randn(4, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in range(8):
        a = of_noise.alpha[step]

        def v_of(eps: Tensor, a: float = a) -> Tensor:
            return (eps - math.sqrt(1 - a) * x) / math.sqrt(a)

        ratios = []
        for schedule, of in ((of_noise, lambda eps: eps), (of_v, v_of)):
            old, sigma = transition(schedule, x, of(old_noise), step, 1.0)
            mean, _ = transition(schedule, x, of(old_noise + 0.1 * change), step, 1.0)
            ratios.append(ratio_norm.normalised_log_ratio(old + sigma * z, mean, old, sigma, "mean"))
        torch.testing.assert_close(ratios[0], ratios[1], rtol=1e-3, atol=1e-6)
        assert of_v.gradient_scale(step, 1.0) == pytest.approx(
            math.sqrt(a) * of_noise.gradient_scale(step, 1.0)
        )


def test_masked_surrogate_by_brute_force() -> None:
    cases = [(moved, a, kl) for moved in (-0.3, 0.0, 0.2) for a in (-1.5, 0.0, 2.0) for kl in (0.4, 0.6)]
    logp, advantage, kl = (torch.tensor(values) for values in zip(*cases, strict=True))
    logp.requires_grad_()
    loss, outside = kl_region.masked_surrogate(logp, torch.zeros(len(cases)), advantage, kl, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    for i, (moved_by, a, k) in enumerate(cases):
        w = math.exp(moved_by)
        away = k > 0.5 and ((w > 1 and a > 0) or (w < 1 and a < 0))
        assert bool(outside[i]) == away
        assert loss[i].item() == pytest.approx(0.0 if away else -w * a)
        assert gradient[i].item() == pytest.approx(0.0 if away else -w * a)
    assert outside.any()


def test_a_masked_ratio_may_overflow() -> None:
    logp = torch.tensor([500.0], requires_grad=True)
    loss, _ = kl_region.masked_surrogate(logp, torch.zeros(1), torch.ones(1), torch.ones(1), 0.5)
    assert torch.autograd.grad(loss.sum(), logp)[0].tolist() == [0.0]


@pytest.mark.parametrize(("reduction", "per"), [("mean", 64), ("sum", 1)])
def test_kl_to_the_base_has_the_gradient_of_the_definition(reduction: Any, per: int) -> None:
    _, mean, base = actions(0.4, 3)
    ours, theirs = mean.clone().requires_grad_(), mean.clone().requires_grad_()
    loss = grpo.per_log_probability(gaussian_kl(ours, base, 0.4), 64, reduction)
    loss.sum().backward()
    (kl_divergence(Normal(theirs, 0.4), Normal(base, 0.4)).sum() / per).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


# ---------------------------------------------------------------------------------------------------- a window of noise


def test_noise_in_all_steps_is_the_sampler_and_in_none_is_eta_0(make_run: MakeRun) -> None:
    painter = make_run("window").policy.painter
    texts, images = ["red", "blue"], [0, 5]
    usual = painter.draw(texts, images, 7)
    assert torch.equal(painter.draw(texts, images, 7, noisy=range(4)).latents_BCHW, usual.latents_BCHW)
    still = replace(painter, sampling=replace(painter.sampling, eta=0.0)).draw(texts, images, 7)
    assert torch.equal(painter.draw(texts, images, 7, noisy=()).latents_BCHW, still.latents_BCHW)
    with pytest.raises(AssertionError, match="no density"):
        painter.draw(texts, images, 7, keep=[3], noisy=[0, 1])


def test_steps_of_the_window_alone_have_noise(make_run: MakeRun) -> None:
    """Against diffusers' scheduler, step by step, with eta 1 in the window and 0 elsewhere."""
    run = make_run("window", sampling=replace(of_method("", "", "window").sampling, guidance=None))
    painter, inside = run.policy.painter, (1, 2)
    drawn = painter.draw(["red"], [0], 7, keep=inside, noisy=inside)
    scheduler = DDIMScheduler.from_config(run.policy.pipeline.scheduler.config)
    scheduler.set_timesteps(4)
    noise_NCHW, text = noise(7, "red", 0, painter.latent_shape, 4), painter.encoder(["red"]).text_BLD
    latent = noise_NCHW[:1]
    for step, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = run.policy.unet(latent, timestep, encoder_hidden_states=text).sample
        eta, before = float(step in inside), latent
        z = noise_NCHW[1 + step : 2 + step]
        latent = scheduler.step(
            output, timestep, before, eta=eta, variance_noise=z if eta else None
        ).prev_sample
        if step in inside:
            kept = inside.index(step)
            torch.testing.assert_close(drawn.x_BTCHW[:, kept], before, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(drawn.next_BTCHW[:, kept], latent, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drawn.latents_BCHW, latent, rtol=1e-3, atol=1e-4)


def test_the_window_is_drawn_from_seed_task_and_iteration(make_run: MakeRun) -> None:
    run = make_run("window")
    method, (redness, tone) = run.experiment.method, run.experiment.tasks
    assert isinstance(method, window.Method)
    drawn = [method.order(run, redness, iteration) for iteration in range(60)]
    assert drawn == [method.order(run, redness, iteration) for iteration in range(60)]
    assert drawn != [method.order(run, tone, iteration) for iteration in range(60)]
    assert {tuple(steps) for steps in drawn} == {(0, 1), (1, 2)}  # the first .8 of 4 steps are 3
    assert 15 < sum(steps == [0, 1] for steps in drawn) < 45
    batch = collected(run)
    assert batch.trajectory.steps == batch.order == tuple(method.order(run, redness, 0))


def test_what_is_collected_has_noise_in_the_window_alone(make_run: MakeRun) -> None:
    run = make_run("window")
    batch, painter = collected(run), run.policy.painter
    asked = ask(run, run.experiment.tasks[0], 0)
    inside = painter.draw(asked.texts, asked.indices, asked.seed, keep=batch.order, noisy=batch.order)
    everywhere = painter.draw(asked.texts, asked.indices, asked.seed, keep=batch.order)
    assert torch.equal(batch.trajectory.latents_BCHW, inside.latents_BCHW)
    assert not torch.equal(batch.trajectory.latents_BCHW, everywhere.latents_BCHW)


def test_an_update_balances_steps_as_eq_12_says(make_run: MakeRun) -> None:
    """The gradient with which each optimiser step is made is that of the step's loss by 1/|c_t|, over the mean of those that can be drawn."""
    run = make_run("ratio_norm")
    batch, schedule = collected(run), run.policy.painter.schedule
    found: list[dict[str, Tensor]] = []

    def step() -> Tensor:
        found.append(gradients(run))
        return torch.zeros(())

    run.policy.optimiser_step = step  # type: ignore[method-assign]
    run.experiment.method.update(run, batch, on_policy=True)
    inverse = {t: 1 / (schedule.gradient_scale(t, 1.0) * schedule.sigma(t, 1.0)) for t in run.drawable}
    weights = [inverse[t] * len(inverse) / sum(inverse.values()) for t in batch.order]
    assert weights[0] != pytest.approx(weights[1], rel=0.1)
    for t, weight, ours in zip(batch.order, weights, found, strict=True):
        policy_gradient(run, batch, t, 1.0)
        for name, gradient in gradients(run).items():
            torch.testing.assert_close(ours[name], weight * gradient, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- all of them


# two of them remember or compare with more than the family does
@pytest.mark.parametrize(
    "name",
    [
        "ddpo",
        "grpo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ratio_norm", "kl_region", "window")),
    ],
)
def test_a_stopped_run_goes_on_to_the_last_bit(make_run: MakeRun, name: str, tmp_path: Path) -> None:
    """Weights, metrics and memory; and the identity before every first update."""
    straight = make_run(name, iterations=3)
    train(straight)
    assert straight.progress.gates["identity"]["exact"] and straight.progress.gates["identity"]["holds"]
    found = lines(straight)
    assert [line["first_kl_max"] for line in found] == [0.0] * 6
    stops = 0
    while True:
        asked = signal.SIGTERM if stops < 2 else 0
        again = prepare(
            straight.experiment,
            "toy",
            0,
            tmp_path / "stopped",
            new_accelerator(),
            stop_requested=lambda asked=asked: asked,
        )
        try:
            train(again)
            break
        except Stopped:
            stops += 1
    assert stops == 2, "in the middle of an iteration, and between two"
    assert lines(again) == found
    assert again.progress.memory == straight.progress.memory
    for weight, kept in straight.policy.weights.items():
        assert torch.equal(again.policy.weights[weight], kept)


@pytest.mark.parametrize("name", RELATIVES)
def test_gradient_does_not_depend_on_the_micro_batch(make_run: MakeRun, name: str) -> None:
    found = []
    for size in (8, 3):
        run = make_run(name, update=replace(of_method("", "", name).update, micro_batch=size))
        batch = as_updated(run, collected(run))
        moved(run)
        policy_gradient(run, batch, batch.order[0], weight=1.0)
        found.append(gradients(run))
    assert sum(float(gradient.norm()) for gradient in found[0].values()) > 0
    for name_, gradient in found[0].items():
        torch.testing.assert_close(found[1][name_], gradient, rtol=2e-3, atol=1e-5)


def as_updated(run: Run, batch: Batch) -> Batch:
    """The batch as `update` works on it."""
    if isinstance(run.experiment.method, grpo.Method):
        return replace(batch, base_mean_BTCHW=grpo.base_means(run, batch))
    return batch


@pytest.mark.parametrize("name", RELATIVES)
def test_masked_images_change_nothing(make_run: MakeRun, name: str) -> None:
    """A batch of which half is masked has the gradient of the other half alone."""
    run = make_run(name)
    batch = as_updated(run, collected(run))
    moved(run)
    advantage_B, valid_B = batch.advantage_B.clone(), batch.valid_B.clone()
    advantage_B[4:], valid_B[4:] = 0.0, False
    policy_gradient(
        run, replace(batch, advantage_B=advantage_B, valid_B=valid_B, valid=4), batch.order[0], 1.0
    )
    masked, drawn, first = gradients(run), batch.trajectory, slice(0, 4)
    half = replace(
        drawn,
        **{part: getattr(drawn, part)[first] for part in ("x_BTCHW", "next_BTCHW", "mean_BTCHW", "logp_BT")},
    )
    base = None if batch.base_mean_BTCHW is None else batch.base_mean_BTCHW[first]
    alone = replace(
        batch,
        trajectory=half,
        texts=batch.texts[:4],
        advantage_B=advantage_B[:4],
        valid_B=valid_B[:4],
        valid=4,
        base_mean_BTCHW=base,
    )
    policy_gradient(run, alone, batch.order[0], 1.0)
    for weight, gradient in gradients(run).items():
        torch.testing.assert_close(masked[weight], gradient)


@pytest.mark.parametrize("name", ["ppo", *RELATIVES])
def test_evaluations_are_counted_as_they_are_made(make_run: MakeRun, name: str) -> None:
    run = make_run(name)
    made = {False: 0, True: 0}
    run.policy.unet.register_forward_hook(
        lambda _, arguments, __: made.__setitem__(
            torch.is_grad_enabled(), made[torch.is_grad_enabled()] + len(arguments[0])
        )
    )
    task = run.experiment.tasks[0]
    run.experiment.method.update(run, collected(run), on_policy=True)
    assert tuple(run.experiment.method.evaluations(run.experiment, task)) == (made[False], made[True])
    assert made[True] == 8 * 2 * 2  # images, trained steps, branches


@pytest.mark.parametrize("name", ["ppo", *RELATIVES])
def test_the_plan_says_over_how_many_micro_batches_a_gradient_is_accumulated(
    make_run: MakeRun, name: str
) -> None:
    """The last one may be padded."""
    toy.assert_accumulated_as_planned(make_run(name))


@pytest.mark.parametrize("name", RELATIVES)
def test_it_lowers_its_loss_as_the_definition_says(make_run: MakeRun, name: str) -> None:
    """The gradient of the first step, on-policy: that of -A w with the method's weight, whatever bounds the update."""
    run, usual = make_run(name), make_run("ppo")
    batch = as_updated(run, collected(run))
    step = batch.order[0]
    policy_gradient(run, batch, step, 1.0)
    policy_gradient(usual, batch, step, 1.0)
    sigma = run.policy.painter.schedule.sigma(step, 1.0)
    scale = sigma if name == "ratio_norm" else 1.0  # d log w' = sigma d log w
    theirs = gradients(usual)
    for weight, gradient in gradients(run).items():
        torch.testing.assert_close(gradient, scale * theirs[weight], rtol=1e-3, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- each alone


def test_ddpo_compares_with_the_prompts_own_past(make_run: MakeRun) -> None:
    """Against ddpo-pytorch's rule by hand, in the scores that the run itself has recorded."""
    run = make_run("ddpo", iterations=6)
    train(run)
    memory, found = run.progress.memory, [line for line in lines(run) if line["task"] == "redness"]
    assert memory.keys() == {"redness", "tone"}
    assert all(name.startswith("p") for name in memory["redness"])
    assert all(len(buffer) <= 6 for buffer in memory["redness"].values())
    assert (
        found[0]["statistics_own"] == 0.0 and found[0]["statistics_age"] is None
    )  # two rewards, three wanted
    assert found[-1]["statistics_own"] == 1.0
    assert 0 < found[-1]["statistics_age"] < found[-1]["statistics_age_max"] <= 5

    batch = collected(run, iteration=6)
    now = batch.memory["redness"]
    assert run.progress.memory["redness"] != now, "nothing is remembered before the batch has been used"
    for image, text in enumerate(batch.texts):
        rewards = [reward for _, reward in now[f"p{toy.TEXTS.index(text)}"]]
        mine = rewards[-2:][image % 2]  # two images of a prompt, neighbours
        expected = (mine - np.mean(rewards)) / (np.std(rewards) + 1e-6)
        assert float(batch.advantage_B[image]) == pytest.approx(expected, rel=1e-4)
    run.experiment.method.update(run, batch, on_policy=True)
    assert run.progress.memory["redness"] == now


def test_ddpo_says_where_prompts_come_too_seldom(make_run: MakeRun) -> None:
    run = make_run("ddpo", method=ddpo.Method())
    # four iterations of 8 images of seven prompts
    assert "draws fewer images of a prompt of task redness (4.6), tone (4.6)" in run.experiment.method.note(
        run
    )
    assert make_run("ddpo").experiment.method.note(run) == ""


def test_groups_are_compared_within_and_silent_ones_counted(make_run: MakeRun) -> None:
    run = make_run("grpo")
    for task, size in ((0, 2), (1, 4)):
        batch = collected(run, task)
        sums = batch.advantage_B.view(-1, size).sum(1)
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-5)
        assert 0.0 <= batch.report["zero_std"] <= 1.0
    # of two images: half of what is between them, by 1/sqrt 2 of it and the epsilon
    assert 0.4 < float(collected(run, 0).advantage_B.abs().min()) < 1 / math.sqrt(2)


@pytest.mark.parametrize("name", ["grpo", "ratio_norm", "kl_region", "window"])
def test_groups_of_one_are_refused(toy_prompts: Path, name: str) -> None:
    experiment = of_method("", toy_prompts, name)
    alone = replace(experiment, tasks=(replace(experiment.tasks[0], images_per_prompt=1),))
    with pytest.raises(
        ValueError,
        match=rf"^tasks\.redness\.images_per_prompt is 1, but the method {name} compares .*: use at least 2, or the method ppo$",
    ):
        check(alone, 1)


@pytest.mark.parametrize("name", ["grpo", "ratio_norm", "kl_region", "window"])
def test_a_reward_that_a_group_shares_is_refused(toy_prompts: Path, name: str) -> None:
    experiment = of_method("", toy_prompts, name)
    shared = override(experiment, ["credit=shared", "unusable=masked"])
    with pytest.raises(
        ValueError, match=rf"^tasks\.tone\.credit is shared, .* the method {name} tells them apart"
    ):
        check(shared, 1)


@pytest.mark.parametrize("name", ["grpo", "ddpo"])
def test_a_reward_that_turns_out_to_be_shared_stops_the_run(
    make_run: MakeRun, toy_prompts: Path, name: str
) -> None:
    """It trained to its end on advantages of 0: which scorer shares its value only its answers tell."""
    (task, *_) = of_method("", toy_prompts, name).tasks
    shared = (replace(task, rewards=(Reward("shared_by_prompt"),)),)
    run = make_run(name, tasks=shared)
    told = f"scorer shared_by_prompt gave all images of each prompt of task redness one value, but the method is {name}, .*use .*the method ppo"
    with pytest.raises(Stopped, match=told):
        train(run)
    run = make_run(name, tasks=(replace(task, rewards=(Reward("of_prompt"),)),))
    train(run)  # of the same scope, and of each image by itself


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2.0)])
def test_the_base_is_what_it_was_and_the_kl_to_it_grows_from_0(make_run: MakeRun, lora: Lora | None) -> None:
    run = make_run("grpo", lora=lora)
    batch = collected(run)
    assert torch.equal(grpo.base_means(run, batch), batch.trajectory.mean_BTCHW), "not yet trained"
    live = {name: weight.detach().clone() for name, weight in run.policy.weights.items()}
    moved(run)
    after = {name: weight.detach().clone() for name, weight in run.policy.weights.items()}
    assert torch.equal(grpo.base_means(run, batch), batch.trajectory.mean_BTCHW)
    assert all(torch.equal(run.policy.weights[name], kept) for name, kept in after.items())
    assert any(not torch.equal(live[name], kept) for name, kept in after.items())
    fresh = make_run("grpo", tasks=run.experiment.tasks[:1], iterations=2, lora=lora)
    train(fresh)
    found = [line for line in lines(fresh) if line["task"] == "redness"]
    assert next(iter(found[0]["kl_base_by_step"].values())) == 0.0
    assert 0 < found[0]["kl_base"] < found[-1]["kl_base"]


def test_the_kl_holds_the_policy_near_the_base(make_run: MakeRun, toy_prompts: Path) -> None:
    last = {}
    for kl in (0.0, 300.0):
        tasks = of_method("", toy_prompts, "grpo").tasks[:1]
        run = make_run("grpo", tasks=tasks, method=grpo.Method(kl=kl), iterations=4)
        train(run)
        base = run.policy.reference
        assert base is not None
        last[kl] = math.sqrt(
            sum(
                float((weight.detach() - base[name]).norm() ** 2)
                for name, weight in run.policy.weights.items()
            )
        )
        if not kl:
            assert all(line["kl_base"] == 0.0 for line in lines(run)), "not taken, as it is not asked for"
    assert last[300.0] < last[0.0]


def test_gradient_of_grpo_is_that_of_its_definition(make_run: MakeRun) -> None:
    """Eq 7 and the exact KL through the denoiser, by torch's distributions, for a policy that has moved."""
    run = make_run("grpo")
    batch = as_updated(run, collected(run))
    moved(run)
    step, painter = batch.order[1], run.policy.painter
    kept = batch.trajectory.steps.index(step)
    policy_gradient(run, batch, step, 1.0)
    ours = gradients(run)
    x, after, _, old_logp = batch.trajectory.part(slice(None), kept)
    assert batch.base_mean_BTCHW is not None
    base_mean, cond, empty = (
        batch.base_mean_BTCHW[:, kept],
        painter.encoder(batch.texts),
        painter.unconditional(),
    )
    assert empty is not None
    timestep, w = painter.schedule.timesteps[step], run.experiment.sampling.guidance
    assert w is not None
    both = [
        run.policy.unet(x, timestep, encoder_hidden_states=text.expand(8, -1, -1)).sample
        for text in (empty.text_BLD, cond.text_BLD)
    ]
    mean, sigma = transition(painter.schedule, x, both[0] + w * (both[1] - both[0]), step, 1.0)
    now, base = Normal(mean, sigma), Normal(base_mean, sigma)
    surrogate, _ = clipped_surrogate(
        now.log_prob(after).flatten(1).mean(1), old_logp, batch.advantage_B, run.experiment.update.clip
    )
    (surrogate + 0.5 * kl_divergence(now, base).flatten(1).mean(1)).mean().backward()
    for name, gradient in gradients(run).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-3, atol=2e-5)


def test_the_region_bounds_what_an_update_does(make_run: MakeRun, toy_prompts: Path) -> None:
    experiment = of_method("", toy_prompts, "kl_region")
    kl = []
    for method in (kl_region.Method(max_kl=1e-3), kl_region.Method(max_kl=1e9)):
        run = make_run(
            "kl_region",
            tasks=experiment.tasks[:1],
            update=replace(experiment.update, lr=3e-3, trained_steps=4),
            method=method,
            iterations=2,
        )
        train(run)
        silenced, moved_by = (sum(line[key] for line in lines(run)) for key in ("clipped", "kl"))
        assert (silenced > 0) == (method.max_kl < 1)
        kl.append(moved_by)
    assert 0 < kl[0] < kl[1]


def test_a_region_that_rounding_hides_is_widened_by_its_own_field(
    make_run: MakeRun, toy_prompts: Path
) -> None:
    run = make_run(
        "kl_region", tasks=of_method("", toy_prompts, "kl_region").tasks[:1], method=kl_region.Method()
    )
    within = kl_region.Method(max_kl=0.5).rounding(run)
    told = [way for way in within.ways_out(run.drawable) if "max_kl" in way]
    assert len(told) == 1
    assert not any("update.clip" in way for way in within.ways_out(run.drawable))
    assert within.wider(within.clip) == "method.max_kl from 0.5"


def test_a_window_has_the_steps_that_its_share_says() -> None:
    assert 0.29 * 100 < 29
    assert [window.Method(within=share).room(100) for share in (0.29, 0.28, 1.0)] == [29, 28, 100]


# ---------------------------------------------------------------------------------------------------------------- refusals

SHARED = ["tasks.tone.credit=shared", "tasks.redness.images_per_prompt=2"]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "grpo",
            ["tasks.redness.images_per_prompt=1"],
            ["tasks.redness.images_per_prompt is 1", "at least 2", "ppo"],
        ),
        ("grpo", SHARED, ["tasks.tone.credit is shared", "leave_one_out", "ppo"]),
        ("grpo", ["method.kl=-1"], ["method.kl is -1", "at least 0"]),
        ("grpo", ["tasks.redness.baseline=group"], ["tasks.redness.baseline is group", "use batch"]),
        ("ddpo", SHARED, ["tasks.tone.credit is shared", "leave_one_out", "ppo"]),
        ("ddpo", ["tasks.redness.baseline=group"], ["tasks.redness.baseline is group", "use batch"]),
        ("ddpo", ["method.min_count=7"], ["method.min_count is 7", "method.buffer_size", "6"]),
        (
            "ratio_norm",
            ["update.step_weight=balanced"],
            ["update.step_weight is balanced", "ratio_norm does not use"],
        ),
        ("kl_region", ["update.clip=1e-3"], ["update.clip is 0.001", "kl_region does not use"]),
        ("kl_region", ["method.max_kl=0"], ["method.max_kl is 0", "above 0"]),
        ("window", ["method.within=1.5"], ["method.within is 1.5", "(0, 1]"]),
        ("window", ["method.within=0.3"], ["update.trained_steps is 2", "first 1 of 4", "method.within"]),
        ("window", ["sampling.eta=0"], ["sampling.eta is 0"]),
    ],
)
def test_what_cannot_be_trained_is_refused(name: str, settings: list[str], words: list[str]) -> None:
    experiment = override(of_method("base", "prompts", name), settings)
    with pytest.raises(ValueError) as refusal:
        check(experiment, 1)
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_window_needs_noise_in_this_models_schedule(make_run: MakeRun) -> None:
    """With five of six steps left out, a window of one is the first step, and there is none of two; `check` cannot know which steps have noise."""
    run = make_run("window", method=window.Method(within=0.5))
    method, update = run.experiment.method, replace(run.experiment.update, skip_last=3, trained_steps=1)
    assert isinstance(method, window.Method)
    run.experiment = replace(run.experiment, update=update)
    assert method.windows(run) == [[0]]
    run.experiment = replace(
        run.experiment,
        update=replace(update, skip_last=0, trained_steps=1),
        sampling=replace(run.experiment.sampling, eta=0.0),
    )
    with pytest.raises(ValueError, match=r"update\.trained_steps is 1, but only 0 steps"):
        method.check_model(run)


@pytest.mark.parametrize("name", RELATIVES)
def test_every_experiment_has_a_variant_that_can_be_trained(name: str) -> None:
    """On the miniature, on one GPU, on eight and on the paper's 128."""
    for experiment in experiments.names():
        if experiment == "base":
            continue
        for model, changed in experiments.models(f"{experiment}_{name}").items():
            processes = 128 if model in ("sd15", "sd2", "sdxl") else 8 if model.endswith("8gpus") else 1
            if changed.mixing != "tasks" and not changed.method.pools:
                with pytest.raises(ValueError, match="takes one task at a time"):
                    check(changed, processes)
                continue
            check(changed, processes)
            assert changed.method.name == name
            before = experiments.load(experiment, model)
            untuned = methods.variant(name, before, model)
            assert [task.batch for task in untuned.tasks] == [task.batch for task in before.tasks]
            assert [task.rewards for task in changed.tasks] == [task.rewards for task in before.tasks]


def test_the_papers_method_is_as_it_was() -> None:
    experiment = experiments.load("imagereward", "miniature")
    assert methods.variant("ppo", experiment, "miniature") == experiment


# ---------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_redness_rises(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, toy_scorers: None, name: str
) -> None:
    """As tests/test_loop.py has it for the paper's method."""
    task = Task("redness", str(toy_prompts), (Reward("redness"),), batch=32, images_per_prompt=4)
    update = Update(lr=3e-3, clip=0.05, trained_steps=3, skip_last=2, step_weight="balanced", micro_batch=32)
    method = {
        "ddpo": ddpo.Method(),
        "grpo": grpo.Method(kl=0.01),
        "kl_region": kl_region.Method(max_kl=1.0),
        "window": window.Method(within=0.8),
    }.get(name, RELATIVES[name])
    if name == "kl_region":
        update = replace(update, clip=Update().clip)
    if name == "ratio_norm":
        update = replace(update, step_weight="none", clip=0.02)
    experiment = Experiment(
        base=str(tiny_pipeline_dir),
        tasks=(task,),
        iterations=25,
        sampling=Sampling(steps=5, eta=1.0, guidance=None, micro_batch=32),
        update=update,
        method=method,
        save_every=100,
    )
    check(experiment, 1)
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    train(run)
    rewards = [line["reward_mean"] for line in lines(run)]
    noise = sum(line["reward_std"] for line in lines(run)[:5]) / 5 / (5 * 32) ** 0.5
    assert sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5 > 8 * noise


# --------------------------------------------------------------------------------------------------------------- processes


def gradient_and_two_iterations(base: str, prompts: str, out: str, name: str) -> None:
    """Record the gradient of a first update, and the weights after two iterations; one file per process."""
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    experiment = of_method(base, prompts, name, iterations=2)
    run = prepare(experiment, "toy", 0, Path(out), new_accelerator())
    record: dict[str, Tensor] = {}
    for number, task in enumerate(experiment.tasks):
        batch = as_updated(run, collected(run, number))
        record[f"{task.name}.advantage"] = batch.advantage_B
        policy_gradient(run, batch, batch.order[0], weight=1.0)
        record |= {f"{task.name}.gradient.{key}": gradient for key, gradient in gradients(run).items()}
    train(run)
    record |= {f"weights.{key}": weight.detach() for key, weight in run.policy.weights.items()}
    save_file(
        {key: value.clone().contiguous() for key, value in record.items()},
        Path(out) / f"rank{run.rank}.safetensors",
    )
    (Path(out) / f"memory{run.rank}.json").write_text(json.dumps(run.progress.memory))
    run.accelerator.wait_for_everyone()


@pytest.mark.slow
@pytest.mark.parametrize("name", RELATIVES)
def test_two_processes_are_one(name: str, tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), name)
        assert toy.launch(world, gradient_and_two_iterations, *arguments) == [0] * world
    alone = load_file(tmp_path / "1" / "rank0.safetensors")
    several = [load_file(tmp_path / "2" / f"rank{rank}.safetensors") for rank in (0, 1)]
    for key, value in alone.items():
        if key.endswith(".advantage"):
            assert torch.equal(torch.cat([record[key] for record in several]), value)
            continue
        assert torch.equal(several[0][key], several[1][key])
        # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
        tolerance = (
            {"rtol": 0.0, "atol": 2e-4} if key.startswith("weights.") else {"rtol": 1e-3, "atol": 1e-6}
        )
        torch.testing.assert_close(several[0][key], value, **tolerance)
    memories = [json.loads((tmp_path / "2" / f"memory{rank}.json").read_text()) for rank in (0, 1)]
    assert memories[0] == memories[1]
    if name == "ddpo":
        first = json.loads((tmp_path / "1" / "memory0.json").read_text())
        assert first.keys() == memories[0].keys() and first["redness"].keys() == memories[0]["redness"].keys()
