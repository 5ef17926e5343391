"""Forward-process methods: each equation against its definition, one model in two parametrisations, and what holds for the family on a tiny pipeline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evals.diffusion import Painter, Sampling, Schedule, add_noise, denoising_target
from tests import toy
from train import experiments, methods, snapshots
from train import state as states
from train.advantages import GROUP_EPSILON, normalise
from train.config import Experiment, Reward, Task, Update, check, override
from train.denoising import noised
from train.gates import GateBroken
from train.loop import Stopped, train
from train.methods import _forward_process as family
from train.methods import awm, nft, only_heeded, raft, reward_weighted
from train.methods._forward_process import Batch, ForwardProcess, accumulate, answers_beside, noised_rows
from train.objective import denoising_loss
from train.run import Run
from train.start import new_accelerator, prepare

pytestmark = pytest.mark.usefixtures("toy_scorers")

METHODS = ("reward_weighted", "raft", "nft", "awm")
SETTINGS: dict[str, dict[str, Any]] = {
    "reward_weighted": {"updates": 2},
    "raft": {"updates": 2, "candidates": 3, "noisings": 2},
    "nft": {"updates": 2, "kl": 0.1, "old_rise": 0.1},
    "awm": {"updates": 2, "noisings": 2, "kl": 0.1},
}
"""Such that every branch is taken: the old policy, the base, several noisings, a second optimiser step."""
SAMPLING = Sampling(steps=2, eta=0.0, guidance=None, micro_batch=4)


def of_method(experiment: Experiment, name: str, settings: dict[str, Any] | None = None) -> Experiment:
    """An experiment of the tiny pipeline, trained by a method."""
    made = methods.load(name)(**(SETTINGS[name] if settings is None else settings))
    return replace(experiment, method=made, update=only_heeded(experiment.update, made))


def one_task(base: Path | str, prompts: Path | str, **changes: Any) -> Experiment:
    """Eight images of four prompts, drawn in two deterministic steps."""
    task = Task("redness", str(prompts), (Reward("redness"),), batch=8, images_per_prompt=2)
    return toy.toy_experiment(base, prompts, tasks=(task,), iterations=2, sampling=SAMPLING, **changes)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> MakeRun:
    """A run of a method, with its settings and changes of the experiment, in a folder of its own."""
    made = 0

    def make(
        name: str, settings: dict[str, Any] | None = None, base: Path = tiny_pipeline_dir, **changes: Any
    ) -> Run:
        nonlocal made
        made += 1
        experiment = replace(of_method(one_task(base, toy_prompts), name, settings), **changes)
        return prepare(experiment, "toy", 0, tmp_path / f"run{made}", new_accelerator())

    return make


def forward_process(run: Run) -> ForwardProcess:
    method = run.experiment.method
    assert isinstance(method, ForwardProcess)
    return method


def gradients(run: Run, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    """Of one optimiser step, through the path of the update."""
    method = forward_process(run)
    others = answers_beside(run, method, batch, step)
    accumulate(run, method, batch, step, others)
    found = {
        name: weight.grad.clone() for name, weight in run.policy.weights.items() if weight.grad is not None
    }
    run.policy.forget_gradients()
    return found


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- equations


def schedule_of(prediction_type: str) -> Schedule:
    return Schedule.of(toy.build_tiny_pipeline(prediction_type=prediction_type).scheduler, 10)


TIMESTEPS = torch.tensor([1, 300, 700, 999])


class Converted:
    """The same x_0, noise, noised latents and answers, as each kind of denoiser has them: written out, in double."""

    def __init__(self) -> None:
        self.schedule = schedule_of("epsilon")
        alpha = torch.tensor(self.schedule.train_alpha, dtype=torch.float64)[TIMESTEPS].view(-1, 1, 1, 1)
        self.s, self.n = alpha.sqrt(), (1 - alpha).sqrt()
        self.x0, self.eps = randn(4, 4, 4, 4, seed=1), randn(4, 4, 4, 4, seed=2)
        self.x = self.s * self.x0 + self.n * self.eps

    def outputs(self, x0: Tensor) -> dict[str, Tensor]:
        """What a denoiser of each kind answers that takes x0 for the clean latent."""
        eps = (self.x - self.s * x0) / self.n
        return {"epsilon": eps, "v_prediction": self.s * eps - self.n * x0, "sample": x0}


@pytest.mark.parametrize("mix", [0.1, 1.0])
def test_nft_is_its_definition_whatever_is_predicted(mix: float) -> None:
    """The paper's loss, of implicit velocities and the x_0 that they imply, written out; ours of outputs, in three parametrisations."""
    given = Converted()
    new, old = given.x0 + 0.5 * randn(4, 4, 4, 4, seed=3), given.x0 + 0.5 * randn(4, 4, 4, 4, seed=4)
    r = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    velocity, old_velocity = (given.outputs(x0)["v_prediction"] for x0 in (new, old))
    expected = torch.zeros(4, dtype=torch.float64)
    for share, sign in ((r, 1.0), (1 - r, -1.0)):
        implicit = old_velocity + sign * mix * (velocity - old_velocity)
        off = given.s * given.x - given.n * implicit - given.x0
        expected += share * (off**2).mean((1, 2, 3)) / off.abs().mean((1, 2, 3))
    answers, before, target = given.outputs(new), given.outputs(old), given.outputs(given.x0)
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule = replace(given.schedule, prediction_type=kind)  # type: ignore[arg-type]
        factor = nft.x0_factor(schedule, TIMESTEPS)
        good, bad = nft.implicit_policies(answers[kind], before[kind], mix)
        errors = [nft.normalised_error(o, target[kind], factor) for o in (good, bad)]
        torch.testing.assert_close(nft.contrastive_loss(r, *errors), expected)


def test_x0_factor_is_the_derivative_of_what_the_sampler_takes_for_clean() -> None:
    given = Converted()
    step = 1e-3
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule = replace(given.schedule, prediction_type=kind)  # type: ignore[arg-type]
        moved = given.outputs(given.x0 + step)[kind] - given.outputs(given.x0)[kind]
        torch.testing.assert_close(
            step / moved.abs().mean((1, 2, 3)), nft.x0_factor(schedule, TIMESTEPS), rtol=1e-8, atol=0
        )


@pytest.mark.parametrize("mix", [0.2, 1.0])
def test_nft_learns_the_papers_optimum(mix: float) -> None:
    """At one noised latent: o* = o_old + (2 / beta) a (m+ - o_old), where the old answers right and pictures weigh alike, which the divisor of the loss does not let them quite."""
    target, r = randn(50, 3), torch.rand(50, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    old = target.mean(0)
    new = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    good, bad = nft.implicit_policies(new, old, mix)
    losses = [((o - target) ** 2).mean(1) for o in (good, bad)]
    (slope,) = torch.autograd.grad(nft.contrastive_loss(r, *losses).mean(), new, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(slope[i], new, retain_graph=True)[0] for i in range(3)])
    optimum = -torch.linalg.solve(curvature, slope.detach())  # from 0, of a quadratic
    a, better = r.mean(), (r[:, None] * target).mean(0) / r.mean()
    torch.testing.assert_close(optimum, old + 2 / mix * a * (better - old))


@pytest.mark.parametrize("mix", [0.1, 1.0])
def test_nft_without_a_contrast_is_advantage_weighted_regression(mix: float) -> None:
    target, factor, clip = randn(4, 4, 4, 4), torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=torch.float64), 5.0
    advantage = torch.tensor([-7.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    output = randn(4, 4, 4, 4, seed=1).requires_grad_()
    good, bad = nft.implicit_policies(output, output.detach(), mix)
    errors = [nft.normalised_error(o, target, factor) for o in (good, bad)]
    loss = nft.contrastive_loss(nft.optimality(advantage, clip), *errors).sum() * clip / mix
    weighted = (advantage.clamp(-clip, clip) * nft.normalised_error(output, target, factor)).sum()
    found, expected = (torch.autograd.grad(x, output, retain_graph=True)[0] for x in (loss, weighted))
    torch.testing.assert_close(found, expected)


def test_optimality_is_a_probability() -> None:
    found = nft.optimality(torch.tensor([-9.0, -5.0, 0.0, 1.0, 5.0, 6.0]), 5.0)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.6, 1.0, 1.0])


def test_old_policy_is_a_copy_and_then_follows() -> None:
    """The release's recipe for OCR: 75 steps of copies, then .0075 more with each, at most .999."""
    assert [nft.old_decay(i, 75, 0.0075, 0.999) for i in (0, 74, 75)] == [0.0, 0.0, 0.0]
    assert nft.old_decay(76, 75, 0.0075, 0.999) == pytest.approx(0.0075)
    assert nft.old_decay(10_000, 75, 0.0075, 0.999) == 0.999


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_awm_of_one_model_in_two_parametrisations(power: float) -> None:
    """|v error|^2 = |eps error|^2 / s^2: what stands for a log-probability differs by a weight of timesteps alone."""
    given = Converted()
    answers, target = given.outputs(given.x0 + 0.5 * randn(4, 4, 4, 4, seed=3)), given.outputs(given.x0)
    error = {kind: ((answers[kind] - target[kind]) ** 2).mean((1, 2, 3)) for kind in answers}
    torch.testing.assert_close(error["v_prediction"], error["epsilon"] / given.s.flatten() ** 2)
    torch.testing.assert_close(error["sample"], error["epsilon"] * (given.n / given.s).flatten() ** 2)
    for kind, each in error.items():
        found = awm.log_likelihood(answers[kind], target[kind], power)
        torch.testing.assert_close(found, -((each + 1e-10) ** power - 1e-10**power) / power)
        assert awm.log_likelihood(target[kind], target[kind], power).eq(0).all()
    assert awm.noise_share(given.schedule, TIMESTEPS).tolist() == pytest.approx(given.n.flatten().tolist())


def test_targets_are_those_of_the_project() -> None:
    """The conversions above are what `evals.diffusion` gives a denoiser to predict."""
    given = Converted()
    for kind, target in given.outputs(given.x0).items():
        schedule = replace(given.schedule, prediction_type=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(add_noise(schedule, given.x0, given.eps, TIMESTEPS), given.x)
        torch.testing.assert_close(denoising_target(schedule, given.x0, given.eps, TIMESTEPS), target)


def test_weights_of_regression_by_hand() -> None:
    found = reward_weighted.unit_interval(torch.tensor([-1.0, 3.0, math.nan, 0.0]))
    assert found.tolist() == pytest.approx([0.0, 1.0, math.nan, 0.25], nan_ok=True)
    assert reward_weighted.unit_interval(torch.tensor([2.0, math.nan, 2.0])).nan_to_num(nan=9).tolist() == [
        0,
        9,
        0,
    ]


def test_accepted_are_the_best_of_every_so_many() -> None:
    """Against sorting by hand, with missing and equal rewards."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(30):
        reward = torch.randint(0, 9, (24,), generator=generator).float()
        reward[torch.rand(24, generator=generator) < 0.3] = torch.nan
        group = torch.arange(24) // (24 if trial % 2 else 8)
        expected = set()
        for one in set(group.tolist()):
            there = [i for i in range(24) if group[i] == one and not math.isnan(reward[i])]
            best = sorted(there, key=lambda i: (-float(reward[i]), i))
            expected |= set(best[: max(1, len(there) // 4)])
        signal = raft.accepted(reward, group, 4)
        assert set(signal.isfinite().nonzero()[:, 0].tolist()) == expected
        assert signal[signal.isfinite()].eq(1).all()


def test_groups_that_share_a_reward_are_accepted_whole() -> None:
    reward = torch.tensor([1.0, 1.0, 5.0, math.nan, 4.0, 4.0, 0.0, 0.0])
    found = raft.accepted_groups(reward, torch.arange(8) // 2, 2)  # two of four groups
    assert found.nan_to_num(nan=0).tolist() == [0, 0, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("draws", [1, 3, 10])
def test_timesteps_are_one_of_each_part_and_together_uniform(draws: int) -> None:
    uniform = torch.rand(4000, draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.stack([family.stratified(row, 10) for row in uniform])
    for j, column in enumerate(found.unbind(1)):
        assert int(column.min()) == j * 10 // draws and int(column.max()) == (10 * (j + 1) - 1) // draws
    share = torch.bincount(found.flatten(), minlength=10) / found.numel()
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.015)
    assert family.stratified(torch.tensor([1 - 2**-53], dtype=torch.float64), 10).tolist() == [9]


# ---------------------------------------------------------------------------------------------------------- the family


def expected_losses(run: Run, name: str, batch: Batch) -> Tensor:
    """The first step's losses of all local images with a signal, from their definitions, in one piece; the denoiser asked by diffusers' own signature."""
    method, policy = forward_process(run), run.policy
    given = noised_rows(run, method, batch, 0, slice(0, len(batch.texts) * method.noisings))
    text = policy.painter.encoder(given.texts).text_BLD
    signal = batch.signal_B.repeat_interleave(method.noisings)
    there = signal.isfinite()
    output = policy.unet(given.noisy_BCHW, given.timestep_B, encoder_hidden_states=text).sample[there]
    signal, target, timestep = signal[there], given.target_BCHW[there], given.timestep_B[there]
    error = ((output - target) ** 2).mean((1, 2, 3))
    if name == "reward_weighted":
        return signal * error
    if name == "raft":
        return error
    if name == "awm":  # ratio 1, and the base is the policy
        return signal * error
    off = noise_over_signal(run, timestep) * (output - target)
    return signal * (off**2).mean((1, 2, 3)) / off.detach().abs().mean((1, 2, 3))


def noise_over_signal(run: Run, timestep_R: Tensor) -> Tensor:
    alpha = torch.tensor(run.policy.painter.schedule.train_alpha)[timestep_R].view(-1, 1, 1, 1)
    return ((1 - alpha) / alpha).sqrt()


def moved(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Copies of them, of another policy."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: weight.detach() + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_gradient_is_that_of_the_definition_where_policy_old_and_base_differ(
    make_run: MakeRun, name: str
) -> None:
    """In the second optimiser step of an iteration, with each of the three policies of its own weights; every term in its sign and size."""
    run = make_run(
        name, SETTINGS[name] | {"kl": 0.5, "noisings": 1} | ({"mix": 0.6} if name == "nft" else {})
    )
    method, policy = forward_process(run), run.policy
    batch = method.collect(run, run.experiment.tasks[0], 0)
    size = len(batch.texts)
    base = {key: weight.detach().clone() for key, weight in policy.weights.items()}
    others = {"base": base, "old": moved(base, 1), "before": moved(base, 2)}
    if policy.old is not None:
        policy.old.average.update(others["old"])
    given = noised_rows(run, method, batch, 1, slice(0, size))
    text = policy.painter.encoder(given.texts).text_BLD

    def answer(weights: dict[str, Tensor]) -> Tensor:
        with policy.lent(weights), torch.no_grad():
            output: Tensor = policy.unet(
                given.noisy_BCHW, given.timestep_B, encoder_hidden_states=text
            ).sample
        return output

    answers = {whose: answer(weights) for whose, weights in others.items()}
    with policy.lent(others["before"]):
        kept = answers_beside(run, method, batch, 1)
    with policy.lent(moved(base, 3)):
        accumulate(run, method, batch, 1, kept)
        found = {key: w.grad.clone() for key, w in policy.weights.items() if w.grad is not None}
        policy.forget_gradients()
        output = policy.unet(given.noisy_BCHW, given.timestep_B, encoder_hidden_states=text).sample
        loss = 0.5 * ((output - answers["base"]) ** 2).mean((1, 2, 3))
        signal, target = batch.signal_B, given.target_BCHW
        if name == "nft":
            factor = noise_over_signal(run, given.timestep_B)
            clip = run.experiment.update.advantage_clip
            good = (factor * (0.4 * answers["old"] + 0.6 * output - target)).flatten(1)
            bad = (factor * (1.6 * answers["old"] - 0.6 * output - target)).flatten(1)
            r = 0.5 + 0.5 * (signal / clip).clamp(-1, 1)
            for share, error in ((r, good), (1 - r, bad)):
                loss = loss + share * (error**2).mean(1) / error.detach().abs().mean(1) * clip / 0.6
        else:
            error, before = (((o - target) ** 2).mean((1, 2, 3)) for o in (output, answers["before"]))
            ratio, clip = (before - error).exp(), run.experiment.update.clip
            bounded = ratio.clamp(1 - clip, 1 + clip)
            loss = loss - torch.minimum(ratio * signal, bounded * signal)
        expected = dict(
            zip(policy.weights, torch.autograd.grad(loss.mean(), list(policy.weights.values())), strict=True)
        )
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_is_that_of_the_definition_and_heeds_no_micro_batch(make_run: MakeRun, name: str) -> None:
    """Of the mean over images with a reward: one is masked, and its reward is not taken for 0."""
    run = make_run(name)
    batch = forward_process(run).collect(run, run.experiment.tasks[0], 0)
    if name != "raft":  # which leaves out the rest anyway
        batch.signal_B[2] = torch.nan
        batch = replace(batch, valid=int(batch.signal_B.isfinite().sum()))
    found = gradients(run, batch)
    loss = expected_losses(run, name, batch)
    loss = loss.sum() / (batch.valid * forward_process(run).noisings)
    expected = dict(
        zip(run.policy.weights, torch.autograd.grad(loss, run.policy.weights.values()), strict=True)
    )
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for micro_batch in (4, 3, 8):
        run.experiment = replace(
            run.experiment, update=replace(run.experiment.update, micro_batch=micro_batch)
        )
        for key, value in gradients(run, batch).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5 * largest)
            torch.testing.assert_close(value, found[key], rtol=1e-3, atol=1e-5 * largest)


def test_a_second_awm_step_is_clipped_against_the_policy_before_the_first(make_run: MakeRun) -> None:
    """Same noise: the ratio is 1 to the last bit in the first step and moves with the policy in the second."""
    run = make_run("awm")
    train(run)
    for line in lines(run):
        first, second = line["ratio_by_update"].values()
        assert first == 1.0 and second != 1.0
    method, batch = forward_process(run), forward_process(run).collect(run, run.experiment.tasks[0], 5)
    rows = slice(0, 4)
    first, second = (noised_rows(run, method, batch, step, rows) for step in (0, 1))
    assert torch.equal(first.noisy_BCHW, second.noisy_BCHW) and torch.equal(
        first.timestep_B, second.timestep_B
    )


@pytest.mark.parametrize("name", ["reward_weighted", "raft", "nft"])
def test_every_noising_is_another_and_belongs_to_the_image(make_run: MakeRun, name: str) -> None:
    run = make_run(name, SETTINGS[name] | {"noisings": 3})
    method = forward_process(run)
    if name == "raft":
        latents = run.policy.painter.draw(toy.TEXTS, range(7), 0).latents_BCHW
        batch = Batch(run.experiment.tasks[0], list(toy.TEXTS), list(range(7)), latents, torch.ones(7), 7, {})
    else:
        batch = method.collect(run, run.experiment.tasks[0], 0)
    all_rows = noised_rows(run, method, batch, 0, slice(0, 3 * len(batch.texts)))
    assert len(all_rows.noise_BCHW.flatten(1).unique(dim=0)) == 3 * len(batch.texts)
    again = noised_rows(run, method, batch, 1, slice(0, 3))
    assert not torch.equal(again.noise_BCHW, all_rows.noise_BCHW[:3])
    order = list(reversed(range(len(batch.texts))))
    turned = replace(
        batch,
        texts=[batch.texts[i] for i in order],
        indices=[batch.indices[i] for i in order],
        latents_BCHW=batch.latents_BCHW[order],
    )
    last = noised_rows(run, method, turned, 0, slice(3 * len(order) - 3, 3 * len(order)))
    assert torch.equal(last.noisy_BCHW, all_rows.noisy_BCHW[:3])
    third = len(run.policy.painter.schedule.train_alpha) / 3
    assert [int(t // third) for t in last.timestep_B] == [0, 1, 2]


def test_timesteps_can_be_those_of_the_sampler(make_run: MakeRun) -> None:
    run = make_run("nft", {"timesteps": "sampled", "noisings": 2})
    method, batch = forward_process(run), forward_process(run).collect(run, run.experiment.tasks[0], 0)
    found = noised_rows(run, method, batch, 0, slice(0, 16)).timestep_B
    assert found.tolist() == list(run.policy.painter.schedule.timesteps) * 8


@pytest.mark.parametrize("name", METHODS)
def test_costs_are_the_denoisers_calls(make_run: MakeRun, name: str) -> None:
    """Counted at the denoiser, with and without a gradient; every batch here is a multiple of the micro-batch."""
    changes = {"sampling": replace(SAMPLING, guidance=2.0)}
    settings = SETTINGS[name] | ({"candidates": 2} if name == "raft" else {})
    run = make_run(name, settings, **changes)
    count = {True: 0, False: 0}
    run.policy.unet.register_forward_pre_hook(
        lambda module, given: count.__setitem__(
            torch.is_grad_enabled(), count[torch.is_grad_enabled()] + len(given[0])
        )
    )
    task = run.experiment.tasks[0]
    run.experiment.method.update(run, run.experiment.method.collect(run, task, 0), True)
    asked = run.experiment.method.evaluations(run.experiment, task)
    assert (count[False], count[True]) == tuple(asked)
    assert run.experiment.method.optimiser_steps(run.experiment) == run.policy.steps_taken == 2


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_says_over_how_many_micro_batches_a_gradient_is_accumulated(
    make_run: MakeRun, name: str
) -> None:
    """The last one may be padded."""
    toy.assert_accumulated_as_planned(make_run(name))


def test_regression_draws_from_the_base_and_nft_from_the_old_policy(make_run: MakeRun) -> None:
    for name in ("reward_weighted", "nft"):
        run = make_run(name)
        task, method = run.experiment.tasks[0], forward_process(run)
        before = method.collect(run, task, 0).latents_BCHW
        with torch.no_grad():
            for weight in run.policy.weights.values():
                weight.mul_(1.1)
        assert torch.equal(method.collect(run, task, 0).latents_BCHW, before)
        assert not torch.equal(
            run.policy.painter.draw(["red"], [0], 0).latents_BCHW,
            make_run(name).policy.painter.draw(["red"], [0], 0).latents_BCHW,
        )
    raft_run = make_run("raft")
    drawn = raft_run.policy.painter.draw(["red"], [0], 0).latents_BCHW
    with forward_process(raft_run).sampler(raft_run):
        assert torch.equal(raft_run.policy.painter.draw(["red"], [0], 0).latents_BCHW, drawn)


def test_old_policy_follows_by_the_recursion(make_run: MakeRun) -> None:
    """After each task of two optimiser steps: old <- d old + (1 - d) policy with d = .1 times the steps so far, at most .5."""
    run = make_run("nft", {"updates": 2, "old_rise": 0.1, "old_most": 0.3, "kl": 0.0})
    assert run.policy.old is not None
    name = max(run.policy.weights, key=lambda key: run.policy.weights[key].numel())
    expected = run.policy.weights[name].detach().clone()
    method, task = forward_process(run), run.experiment.tasks[0]
    for iteration, decay in enumerate((0.2, 0.3)):
        report = method.update(run, method.collect(run, task, iteration), True)
        assert report["old_decay"] == pytest.approx(decay)
        expected = decay * expected + (1 - decay) * run.policy.weights[name].detach()
        torch.testing.assert_close(run.policy.old.average[name], expected)
        run.progress.iteration += 1


def test_what_is_compared_with_is_asked_of_what_draws(make_run: MakeRun) -> None:
    """Which differs from what is trained where the denoiser is compiled, and answers as that does."""
    run = make_run("nft")
    batch = forward_process(run).collect(run, run.experiment.tasks[0], 0)
    drawing, asked = run.policy.painter.unet, []

    class Compiled(torch.nn.Module):
        config = drawing.config

        def forward(self, *arguments: Any, **options: Any) -> Any:
            asked.append(torch.is_grad_enabled())
            return drawing(*arguments, **options)

    run.policy.painter.unet = Compiled()
    others = answers_beside(run, forward_process(run), batch, 0)
    assert asked == [False] * (2 * 2)  # two micro-batches each of old and base
    accumulate(run, forward_process(run), batch, 0, others)
    assert len(asked) == 4, "the gradient goes through what is trained"
    assert sorted(others) == ["base", "old"]


def test_old_policy_of_a_pool_counts_its_own_steps(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    """Two tasks whose images are one batch take one turn of two optimiser steps an iteration, not two."""
    alone = one_task(tiny_pipeline_dir, toy_prompts)
    pool = replace(alone, tasks=(*alone.tasks, replace(alone.tasks[0], name="again")), mixing="zscores")
    experiment = of_method(pool, "nft", {"updates": 2, "old_rise": 0.1, "kl": 0.0})
    run = prepare(experiment, "toy", 0, tmp_path / "run", new_accelerator())
    train(run)
    assert [line["old_decay"] for line in lines(run)] == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_a_distance_to_the_base_is_not_taken_for_nats(make_run: MakeRun, name: str) -> None:
    """A snapshot sums the `kl` that updates have recorded."""
    run = make_run(name)
    train(run)
    assert lines(run)[-1]["distance"] > 0
    assert snapshots.kl_of_updates(run.out / "metrics.jsonl") == {}


def test_contrast_is_zero_until_the_old_policy_lags(make_run: MakeRun) -> None:
    """A copy after each iteration has no contrast in its first step, to the last bit; one that lags has."""
    copied = make_run("nft", {"updates": 2, "kl": 0.0, "old_copies": 1000})
    lagging = make_run("nft", {"updates": 2, "kl": 0.0, "old_rise": 0.2})
    for run in (copied, lagging):
        train(run)
    for line in lines(copied):
        assert line["contrast_by_update"]["0"] == 0.0 < line["contrast_by_update"]["1"]
    first, second = (line["contrast_by_update"]["0"] for line in lines(lagging))
    assert first == 0.0 < second
    note = copied.experiment.method.note(copied)
    assert "copy of the policy for 1000 optimiser steps" in note
    assert lagging.experiment.method.note(lagging) == ""


@pytest.mark.parametrize("relative_to", ["batch", "group"])
def test_advantages_are_of_the_batch_or_of_the_prompt(make_run: MakeRun, relative_to: str) -> None:
    run = make_run("nft", {"relative_to": relative_to})
    found = forward_process(run).collect(run, run.experiment.tasks[0], 0).signal_B
    texts, indices, seed = asked(run)
    reward = toy.Redness()(run.policy.painter.paint(texts, indices, seed), texts)  # type: ignore[arg-type]
    expected = normalise(reward)
    if relative_to == "group":
        expected = torch.cat([normalise(pair, GROUP_EPSILON) for pair in reward.split(2)])
    torch.testing.assert_close(found, expected)


def asked(run: Run) -> tuple[list[str], list[int], int]:
    """Texts, image indices and noise seed of the first iteration."""
    from train.data import noise_seed

    task = run.experiment.tasks[0]
    return *family.all_prompts(run, task, 0), noise_seed(task, run.seed)


def test_what_raft_shares_out_are_the_best_with_their_prompts(make_run: MakeRun) -> None:
    run = make_run("raft", {"candidates": 3})
    batch = forward_process(run).collect(run, run.experiment.tasks[0], 0)
    texts, indices, seed = asked(run)
    drawn = run.policy.painter.draw(texts, indices, seed).latents_BCHW
    reward = toy.Redness()(run.policy.painter.decode(drawn), texts)  # type: ignore[arg-type]
    best = sorted(reward.topk(2).indices.tolist())
    assert batch.indices == [indices[i] for i in best] and batch.texts == [texts[i] for i in best]
    assert torch.equal(batch.latents_BCHW, drawn[best])
    assert batch.valid == 2 and batch.report["trained_on"] == 2


# ------------------------------------------------------------------------------------------------------ gates, refusals


@pytest.mark.parametrize("name", METHODS)
def test_gates_hold_and_are_recorded(make_run: MakeRun, name: str) -> None:
    run = make_run(name, update=replace(make_run(name).experiment.update, micro_batch=3))
    run.experiment.method.check_before(run)
    assert run.progress.gates["noise"]["holds"] and run.progress.gates["gradient"]["holds"]


def test_a_gradient_that_depends_on_the_micro_batch_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, losses = make_run("awm"), awm.Method.losses

    def of_their_number(self: Any, run: Run, given: Any, output: Tensor, *rest: Any) -> Any:
        loss, found = losses(self, run, given, output, *rest)
        return loss / len(output), found

    monkeypatch.setattr(awm.Method, "losses", of_their_number)
    with pytest.raises(GateBroken, match="the gradient of a batch differs from that of its halves"):
        run.experiment.method.check_before(run)


TOY = one_task("", "")
PARITY = toy.toy_experiment("", "").tasks[1]
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("raft", {"updates": 0}, {}, "method.updates is 0, but it must be at least 1"),
    ("awm", {"noisings": 0}, {}, "method.noisings is 0, but it must be at least 1"),
    ("raft", {"candidates": 1}, {}, "method.candidates is 1, but the best of at least 2 is needed"),
    (
        "raft",
        {"candidates": 1000},
        {},
        "method.candidates is 1000, of which one is accepted, but tasks.redness.batch is ",
    ),
    (
        "raft",
        {"rank": "prompt"},
        {},
        "method.rank is prompt, but tasks.redness.images_per_prompt is 2, less than method.candidates 24: draw as many, or use batch",
    ),
    (
        "raft",
        {"rank": "prompt", "candidates": 4},
        {"tasks": (replace(PARITY, credit="shared"),)},
        "with tasks.tone.credit shared they all have one reward: use leave_one_out, or batch",
    ),
    (
        "nft",
        {"relative_to": "group"},
        {"tasks": (replace(TOY.tasks[0], images_per_prompt=1),)},
        "method.relative_to is group, which compares the images of a prompt, but tasks.redness.images_per_prompt is 1: use at least 2, or batch",
    ),
    (
        "awm",
        {"relative_to": "group"},
        {"tasks": (replace(PARITY, credit="shared"),)},
        "with tasks.tone.credit shared they all have one reward",
    ),
    (
        "nft",
        {"relative_to": "group"},
        {"mixing": "gdpo", "tasks": (TOY.tasks[0], PARITY)},
        "with mixing gdpo each reward is relative to the images of its prompt already, and their sum is compared with the batch: use batch",
    ),
    ("nft", {"mix": 0.0}, {}, "method.mix is 0.0, but it must be above 0"),
    ("nft", {"old_most": 1.0}, {}, "a decay must lie in [0, 1)"),
    ("nft", {"kl": -1.0}, {}, "method.kl is -1.0, but it must be at least 0"),
    ("awm", {"kl": -1.0}, {}, "method.kl is -1.0, but it must be at least 0"),
    ("awm", {"power": 0.0}, {}, "method.power is 0.0, but it must lie in (0, 1]"),
    ("raft", {}, {"update": Update(clip=0.1)}, "update.clip is 0.1, which the method raft does not use"),
    ("nft", {}, {"update": Update(reduction="sum")}, "(it heeds update.advantage_clip)"),
    ("awm", {}, {"update": Update(trained_steps=2)}, "(it heeds update.clip, update.advantage_clip)"),
]


@pytest.mark.parametrize(("name", "settings", "changes", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(
    name: str, settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    experiment = replace(of_method(TOY, name, settings), **changes)
    with pytest.raises(ValueError) as refused:
        check(experiment, 1)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("experiment", ["imagereward", "compositionality", "fairness", "joint"])
def test_variants_can_be_run(name: str, experiment: str) -> None:
    for model, made in experiments.models(f"{experiment}_{name}").items():
        assert made.method.name == name
        check(made, 8 if model.endswith("_8gpus") else 1)


def test_variants_have_the_papers_settings() -> None:
    weighted, ranked = (
        experiments.load(f"imagereward_{name}", "sd2") for name in ("reward_weighted", "raft")
    )
    assert (weighted.update.lr, ranked.update.lr) == (1e-5, 3e-6)
    # 16 and 32 on each of 128 GPUs, of pictures as of pretraining pairs
    for experiment, batch in ((weighted, 2048), (ranked, 4096)):
        assert experiment.tasks[0].batch == batch
        trained = override(experiment, ["pretraining.source=folder"]).pretraining
        assert trained is not None and trained.batch == batch
    assert isinstance(ranked.method, raft.Method) and ranked.method.candidates == 24
    assert weighted.sampling.steps == ranked.sampling.steps == 50
    on_miniature = methods.variant(
        "reward_weighted", experiments.load("imagereward", "miniature"), "miniature"
    ).pretraining
    assert on_miniature is not None and on_miniature.beta == 0.5
    for name, batch in (("nft", 1152), ("awm", 576)):
        released = experiments.load(f"imagereward_{name}", "sd2")
        assert released.tasks[0].batch == batch and released.tasks[0].images_per_prompt == 24
        assert not released.sampling.guided and released.sampling.eta == 0.0


# -------------------------------------------------------------------------------------------------------- whole runs


def test_a_missing_pretraining_term_is_told_of() -> None:
    from types import SimpleNamespace

    for name in ("reward_weighted", "refl"):
        for given, told in ((None, f"{name} has a pretraining term"), ("something", "")):
            run: Any = SimpleNamespace(experiment=SimpleNamespace(pretraining=given))
            assert methods.load(name)().note(run).startswith(told)
            assert bool(methods.load(name)().note(run)) == bool(told)


def test_where_pretraining_is_given_its_factor_is_the_methods() -> None:
    """Table 6 has beta = .5 for reward-weighted regression; Algorithm 1's own step has none."""
    for name, beta in (("imagereward_reward_weighted", 0.5), ("imagereward", 1.0), ("imagereward_raft", 1.0)):
        given = override(experiments.load(name, "sd2"), ["pretraining.source=somewhere"])
        assert given.pretraining is not None and given.pretraining.beta == beta
        other = override(
            experiments.load(name, "sd2"), ["pretraining.source=somewhere", "pretraining.beta=2"]
        )
        assert other.pretraining is not None and other.pretraining.beta == 2.0


def test_scale_of_fp16_begins_with_what_a_step_averages(make_run: MakeRun) -> None:
    """Of eight images, 64 dimensions each: the numbers that a loss is the mean of."""
    fp16 = {"sampling": replace(SAMPLING, precision="fp16")}
    for name, settings, numbers in (
        ("reward_weighted", {}, 8),
        ("nft", {"noisings": 4}, 32),
        ("raft", {"candidates": 4, "noisings": 2}, 4),
    ):
        run = make_run(name, settings, **fp16)
        assert run.policy.loss_scale is not None and run.policy.loss_scale.value == 64.0 * numbers


@pytest.mark.parametrize("name", ["raft", "nft"])
def test_a_run_in_fp16_goes_through(make_run: MakeRun, name: str) -> None:
    run = make_run(name, sampling=replace(SAMPLING, precision="fp16"))
    train(run)
    assert len(lines(run)) == 2 and all(line["loss_scale"] > 0 for line in lines(run))


def tensors_of(run: Run) -> dict[str, Tensor]:
    return {f"{file}/{key}": t for file, ts in run.policy.state().items() for key, t in ts.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "nft")) for name in METHODS]
)
def test_stopped_and_resumed_is_bit_for_bit_the_straight_run(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, name: str
) -> None:
    experiment = replace(of_method(one_task(tiny_pipeline_dir, toy_prompts), name), iterations=4)

    def start(folder: str, **options: Any) -> Run:
        return prepare(experiment, "toy", 0, tmp_path / folder, new_accelerator(), **options)

    straight = start("straight")
    train(straight)
    asks = iter([0, 15])
    with pytest.raises(Stopped):
        train(start("stopped", stop_requested=lambda: next(asks)))
    stopped = states.latest(tmp_path / "stopped" / "state")
    assert stopped is not None and stopped.name == "000002-0"
    torch.manual_seed(123)  # another process
    resumed = start("stopped")
    train(resumed)
    expected = tensors_of(straight)
    found = tensors_of(resumed)
    assert found.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(tensor, found[key])] == []
    for ours, theirs in zip(lines(resumed), lines(straight), strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}


def all_methods_on_some_processes(base: str, prompts: str, out: str) -> None:
    """Two iterations of each method, with a reward that some images have not: metrics, and the weights of every process."""
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    for name in METHODS:
        experiment = of_method(toy.toy_experiment(base, prompts, iterations=2, sampling=SAMPLING), name)
        run = prepare(experiment, "toy", 0, Path(out) / name, new_accelerator())
        train(run)
        weights = {key: weight.detach().clone().contiguous() for key, weight in run.policy.weights.items()}
        save_file(weights, Path(out) / name / f"rank{run.rank}.safetensors")
        run.accelerator.wait_for_everyone()


@pytest.mark.slow
def test_two_processes_are_one(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path / str(world)))
        assert toy.launch(world, all_methods_on_some_processes, *arguments) == [0] * world
    for name in METHODS:
        (alone,) = (load_file(tmp_path / "1" / name / "rank0.safetensors"),)
        both = [load_file(tmp_path / "2" / name / f"rank{rank}.safetensors") for rank in (0, 1)]
        for key, weight in alone.items():
            assert torch.equal(both[0][key], both[1][key])
            # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
            torch.testing.assert_close(both[0][key], weight, rtol=0, atol=4e-4)
        metrics = [
            [
                json.loads(line)
                for line in (tmp_path / world / name / "metrics.jsonl").read_text().splitlines()
            ]
            for world in ("1", "2")
        ]
        assert any(line["invalid"] for line in metrics[0])
        for one, two in zip(*metrics, strict=True):
            for key in ("trained_on", "invalid", "images", "denoiser_evaluations", "reward_n"):
                assert one[key] == two[key], key
            for key in ("loss", "reward_mean", "advantage_max"):
                assert one[key] == pytest.approx(two[key], rel=1e-2, abs=1e-3), key
        assert metrics[0][0]["loss_by_update"]["0"] == pytest.approx(
            metrics[1][0]["loss_by_update"]["0"], rel=1e-5
        )


def redness_after(base: Path, prompts: Path, out: Path, sign: float, name: str, **settings: Any) -> Tensor:
    """Redness of pictures of the toy prompts, before training and after it with that sign of the reward: [2, B]."""
    method = methods.load(name)(**settings)
    task = Task("redness", str(prompts), (Reward("redness", weight=sign),), batch=32)
    clip = {"advantage_clip": 1.0} if "advantage_clip" in method.reads else {}
    clip |= {"clip": 0.2} if "clip" in method.reads else {}
    experiment = Experiment(
        base=str(base),
        tasks=(task,),
        iterations=12,
        sampling=Sampling(steps=4, eta=0.0, guidance=None, micro_batch=32),
        update=Update(lr=1e-3, micro_batch=32, **clip),
        method=method,
        save_every=100,
        samples_every=0,
    )
    run = prepare(experiment, "toy", 0, out, new_accelerator())
    texts = list(toy.TEXTS) * 8

    def redness() -> Tensor:
        return toy.Redness()(run.policy.painter.paint(texts, range(len(texts)), 7), texts)  # type: ignore[arg-type]

    before = redness()
    train(run)
    return torch.stack([before, redness()])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny pipeline whose denoiser has learnt to denoise Gaussian latents: one that has not drifts when it is taught its own pictures, whatever the reward."""
    made: dict[str, Path] = {}

    def make(prediction_type: str) -> Path:
        if prediction_type not in made:
            pipeline = toy.build_tiny_pipeline(prediction_type=prediction_type)
            painter = Painter.of(pipeline, SAMPLING)
            text = painter.encoder(list(toy.TEXTS)).text_BLD
            optimiser = torch.optim.AdamW(pipeline.unet.parameters(), lr=3e-3)
            generator = torch.Generator().manual_seed(0)
            for _ in range(300):
                x0, z = torch.randn(2, 32, 4, 4, 4, generator=generator)
                timestep = torch.randint(1000, (32,), generator=generator)
                given = noised(painter, x0, [""] * 32, z, timestep)
                which = torch.randint(len(text), (32,), generator=generator)
                output = pipeline.unet(given.noisy_BCHW, timestep, encoder_hidden_states=text[which]).sample
                optimiser.zero_grad()
                denoising_loss(output, given.target_BCHW).mean().backward()
                optimiser.step()
            made[prediction_type] = tmp_path_factory.mktemp("taught")
            pipeline.save_pretrained(made[prediction_type])
        return made[prediction_type]

    return make


LEARNING: dict[str, dict[str, Any]] = {
    "reward_weighted": {"updates": 4},
    "raft": {"updates": 2, "candidates": 8, "noisings": 4},
    "nft": {"updates": 2, "kl": 0.0, "space": "output"},
    "awm": {"updates": 2, "kl": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", METHODS)
def test_it_learns(
    taught: Callable[[str], Path], toy_prompts: Path, tmp_path: Path, name: str, prediction_type: str
) -> None:
    """Redder where red is wanted, less red where it is not, from the same noise."""
    base, settings = taught(prediction_type), LEARNING[name]
    up, down = (
        redness_after(base, toy_prompts, tmp_path / f"run{sign}", sign, name, **settings)
        for sign in (1.0, -1.0)
    )
    assert torch.equal(up[0], down[0])
    apart = up[1] - down[1]
    assert float(apart.mean()) > 5 * float(apart.std()) / len(apart) ** 0.5
    assert float(up[1].mean()) > float(up[0].mean()) > float(down[1].mean())
    if name != "reward_weighted":  # which stays within a factor of the base
        assert float(apart.mean()) > float(up[0].std())
