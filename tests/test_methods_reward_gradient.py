"""ReFL and DRaFT: the gradient is that of the whole definition, by diffusers' scheduler and autograd, whoever computes which part of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from evals import decoder
from evals.diffusion import Sampling, Schedule, add_noise, derive_seed, noise
from prompts import Prompt
from tests import toy
from tests.test_resume import Runner, assert_same, set_trap
from train import experiments
from train.batches import Asked
from train.config import Experiment, Pretraining, Reward, Task, check
from train.loop import Stopped, iterate, train
from train.methods import OF_SOME, _reward_gradient, draft, draft_k, refl
from train.methods._reward_gradient import RewardGradient, part, renoised, to_original
from train.run import Run
from train.start import new_accelerator, prepare

pytestmark = pytest.mark.usefixtures("toy_scorers")


class Smooth(toy.Redness):
    """Redness, with a gradient."""

    differentiable = toy.Redness.__call__


class Dark(Smooth):
    """Applies to dark pictures only."""

    def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        dark_B = images_BCHW.mean((1, 2, 3)) < 0.447
        return super().__call__(images_BCHW, prompts).where(dark_B, torch.nan)

    differentiable = __call__  # type: ignore[assignment]


class Another(Smooth):
    """Its gradient is of something else."""

    def differentiable(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 2 * self(images_BCHW, prompts)


class Flat(Smooth):
    """Has no slope anywhere."""

    def differentiable(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self(images_BCHW, prompts).detach() + 0 * images_BCHW.sum((1, 2, 3))


class Steep(Smooth):
    """Has a slope that is no number after the check."""

    calls = 0

    def differentiable(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls += 1
        value_B = self(images_BCHW, prompts)
        return value_B + (images_BCHW - images_BCHW).sum((1, 2, 3)).sqrt() if self.calls > 1 else value_B


class Breaking(Smooth):
    """Fails after the check."""

    calls = 0

    def differentiable(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of ideas")
        return self(images_BCHW, prompts)


toy.SCORERS |= {
    "smooth": Smooth,
    "dark": Dark,
    "another": Another,
    "flat": Flat,
    "steep": Steep,
    "breaking": Breaking,
}

METHODS: dict[str, RewardGradient] = {
    "refl": refl.Method(t1=1, t2=3),
    "draft": draft.Method(truncate=1, noisings=3),
    "draft-k": draft_k.Method(truncate=2),
    "draft-all": draft_k.Method(truncate=4),
    "draft-seen": draft_k.Method(truncate=2, jitter=0.05, shift=0.1),
    "draft-views": draft_k.Method(truncate=2, jitter=0.05, shift=0.1, views=3),
}


def experiment_of(
    base: Path | str, prompts: Path | str, method: RewardGradient, reward: str = "smooth", **changes: Any
) -> Experiment:
    """The toy experiment with one task of eight images."""
    task = Task("redness", str(prompts), (Reward(reward, 2.0),), batch=8, monitors=("tone",))
    plain = toy.toy_experiment(base, prompts)
    update = replace(_reward_gradient.compared_with_none(plain, method).update, max_grad_norm=None)
    return replace(plain, tasks=(task,), method=method, update=update, **changes)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> MakeRun:
    """A run of one method, with changes, in a folder of its own."""
    made = 0

    def make(method: RewardGradient, base: Path = tiny_pipeline_dir, **changes: Any) -> Run:
        nonlocal made
        made += 1
        experiment = experiment_of(base, toy_prompts, method, **changes)
        return prepare(experiment, "toy", 0, tmp_path / f"run{made}", new_accelerator())

    return make


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def updated(run: Run, iteration: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The gradient with which an iteration steps, and what it reports."""
    found: dict[str, Tensor] = {}

    def step() -> Tensor:
        found.update({n: w.grad.clone() for n, w in run.policy.weights.items() if w.grad is not None})
        run.policy.forget_gradients()
        return torch.stack([gradient.norm() for gradient in found.values()]).norm()

    run.policy.optimiser_step = step  # type: ignore[method-assign]
    method, task = run.experiment.method, run.experiment.tasks[0]
    return found, method.update(run, method.collect(run, task, iteration), True)


def defined(run: Run, iteration: int = 0) -> dict[str, Tensor]:
    """The gradient of the method's objective: diffusers' scheduler from noise to latents, decoder, reward, mean over what has a reward."""
    method, task, policy = run.experiment.method, run.experiment.tasks[0], run.policy
    assert isinstance(method, RewardGradient)
    batch = method.collect(run, task, iteration)
    sampling, asked, painter = run.experiment.sampling, batch.asked, policy.painter
    scheduler = DDIMScheduler.from_config(policy.pipeline.scheduler.config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(sampling.steps)
    unet, cond, empty = policy.unet, painter.encoder(asked.texts).text_BLD, painter.encoder([""]).text_BLD

    def stepped(x: Tensor, step: int, z: Tensor) -> Any:
        timestep, w = int(scheduler.timesteps[step]), sampling.guidance
        output = unet(x, timestep, cond).sample
        if w is not None:
            without = unet(x, timestep, empty.expand_as(cond)).sample
            output = w * output + (1 - w) * without
        return scheduler.step(output, timestep, x, eta=sampling.eta, variance_noise=z)

    def drawn(seed: int, steps: int) -> Tensor:
        pairs = zip(asked.texts, asked.indices, strict=True)
        return torch.stack([noise(seed, text, index, painter.latent_shape, steps) for text, index in pairs])

    z_BNCHW = drawn(asked.seed, batch.first if sampling.eta else 0)
    x = z_BNCHW[:, 0]
    with torch.no_grad():
        for step in range(batch.first):
            x = stepped(x, step, z_BNCHW[:, 1 + step] if sampling.eta else x).prev_sample
    rewards = []
    for repeat in range(method.repeats):
        left = sampling.steps - batch.first
        if isinstance(method, refl.Method):
            latents = stepped(x, batch.first, x).pred_original_sample
        else:
            steps = left if sampling.eta else 0
            late = drawn(derive_seed("late steps", asked.seed, repeat), steps)
            if repeat:
                only_z = drawn(derive_seed("late steps", asked.seed, repeat), 0)[:, 0]
                a = float(scheduler.alphas_cumprod[scheduler.timesteps[batch.first]])
                kept = a / float(scheduler.final_alpha_cumprod)
                x = kept**0.5 * sampled + (1 - kept) ** 0.5 * only_z  # noqa: F821  of the first repeat
            latents = x
            for i in range(left):
                z = late[:, 1 + i] if sampling.eta else x
                latents = stepped(latents, batch.first + i, z).prev_sample
            if not repeat:
                sampled = latents.detach()  # noqa: F841
        picture = policy.pipeline.vae.decode(latents / policy.pipeline.vae.config.scaling_factor).sample
        images = (picture / 2 + 0.5).clamp(0, 1)
        views = [
            2.0
            * run.scorers[task.rewards[0].scorer](
                method.seen(asked, repeat, 0, images, slice(0, len(images)), view), asked.prompts
            )
            for view in range(method.views)
        ]
        rewards.append(torch.stack(views).mean(0))
    reward_M = torch.cat(rewards)
    valid_M = reward_M[reward_M.isfinite()]
    loss = 1e-3 * (method.offset - valid_M).relu() if isinstance(method, refl.Method) else -valid_M
    loss.mean().backward()
    found = {n: w.grad.clone() for n, w in policy.weights.items() if w.grad is not None}
    policy.forget_gradients()
    return found


def assert_same_gradient(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-3) -> None:
    """Weight by weight, relative to the whole gradient's size."""
    assert ours.keys() == theirs.keys()
    size = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    assert size > 0
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm() / size) < rtol, name


# -------------------------------------------------------------------------------------------------------------- gradient


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("prediction_type", "sampling"),
    [("epsilon", {}), ("v_prediction", {"guidance": None, "eta": 0.0})],
    ids=["guided", "deterministic"],
)
def test_the_gradient_is_that_of_the_whole_definition(
    make_run: MakeRun, tmp_path: Path, name: str, prediction_type: str, sampling: dict[str, Any]
) -> None:
    toy.build_tiny_pipeline(prediction_type=prediction_type).save_pretrained(tmp_path / "base")
    plain = toy.toy_experiment("", "").sampling
    run = make_run(METHODS[name], base=tmp_path / "base", sampling=replace(plain, **sampling))
    theirs = defined(run)
    ours, report = updated(run)
    assert_same_gradient(ours, theirs)
    assert report["silent"] == 0.0
    assert next(iter(report["grad_norm"].values())) > 0


@pytest.mark.parametrize("name", ["refl", "draft"])
def test_the_gradient_depends_on_no_size_of_part(make_run: MakeRun, name: str) -> None:
    """Nor on whether activations are kept: micro-batch, pictures decoded at a time, checkpointing."""
    run = make_run(METHODS[name])
    wanted, _ = updated(run)
    plain, of_decoder = run.experiment, run.policy.pipeline.vae.decoder
    for micro_batch, decode_batch, checkpointing in ((8, 3, False), (3, 2, True)):
        update = replace(plain.update, micro_batch=micro_batch, gradient_checkpointing=checkpointing)
        sampling = replace(plain.sampling, decode_batch=decode_batch)
        run.experiment = replace(plain, update=update, sampling=sampling)
        found, _ = updated(run)
        assert of_decoder.gradient_checkpointing is checkpointing
        assert_same_gradient(found, wanted)


def test_a_gradient_goes_through_as_many_pictures_at_a_time_as_fit(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(METHODS["draft"])
    wanted, _ = updated(run)
    vae, latents = run.policy.painter.vae, run.policy.painter.latent_shape
    each = decoder.bytes_of_a_picture(vae, *latents[1:], "everything")
    monkeypatch.setattr(decoder, "memory_of", lambda _: 2.5 * each / decoder.SHARE)
    held = list[int]()
    monkeypatch.setattr(
        _reward_gradient,
        "pixels",
        lambda vae, z, precision: (held.append(len(z)), decoder.pixels(vae, z, precision))[1],
    )
    found, _ = updated(run)
    assert max(held) == 2
    assert_same_gradient(found, wanted)


def test_a_gradient_goes_through_a_decoder_in_bf16_too(make_run: MakeRun) -> None:
    """Nearly the same one, whether or not activations are computed again on the way back."""
    run = make_run(METHODS["draft"])
    wanted, _ = updated(run)
    plain = run.experiment
    sampling = replace(plain.sampling, decoder_precision="bf16")
    update = replace(plain.update, gradient_checkpointing=True)
    run.experiment = replace(plain, sampling=sampling)
    found, _ = updated(run)
    run.experiment = replace(plain, sampling=sampling, update=update)
    again, _ = updated(run)
    assert_same_gradient(again, found)
    one, other = (torch.cat([part.flatten() for part in gradient.values()]) for gradient in (found, wanted))
    assert 0 < (one - other).norm() < 0.1 * other.norm()


def test_a_gradient_through_a_decoder_in_tf32_is_refused(make_run: MakeRun) -> None:
    run = make_run(METHODS["refl"])
    sampling = replace(run.experiment.sampling, decoder_precision="tf32")
    with pytest.raises(ValueError, match="but the method refl takes a gradient through the decoder"):
        check(replace(run.experiment, sampling=sampling), 1)


@pytest.mark.parametrize("name", ["refl", "draft"])
def test_images_without_a_reward_are_masked(make_run: MakeRun, name: str) -> None:
    """The mean is over those that have one, and a NaN reaches no weight."""
    run = make_run(METHODS[name], reward="dark")
    theirs = defined(run)
    ours, report = updated(run)
    assert 0 < report["invalid"] < 8
    assert report["reward_n"] == 8 - report["invalid"]
    assert_same_gradient(ours, theirs)


def test_two_terms_are_added(make_run: MakeRun) -> None:
    run = make_run(METHODS["refl"])
    wanted, _ = updated(run)
    task = run.experiment.tasks[0]
    both = replace(task, rewards=(Reward("smooth", 0.5), Reward("smooth", 1.5)))
    run.experiment = replace(run.experiment, tasks=(both,))
    found, _ = updated(run)
    assert_same_gradient(found, wanted)


def test_above_the_offset_nothing_is_learnt_and_it_is_said(make_run: MakeRun) -> None:
    run = make_run(refl.Method(t1=1, t2=3, offset=-5.0))
    found, report = updated(run)
    assert report["silent"] == 1.0
    assert report["loss"] == 0.0
    assert not any(gradient.any() for gradient in found.values())


def test_a_missing_pretraining_term_is_told(make_run: MakeRun) -> None:
    run = make_run(METHODS["refl"])
    assert "pretraining.source is not given" in run.experiment.method.note(run)
    run.experiment = replace(run.experiment, pretraining=Pretraining(source="unused"))
    assert run.experiment.method.note(run) == ""


def test_phi_is_the_releases() -> None:
    reward_B = torch.tensor([-1.0, 1.9, 2.1, torch.nan], requires_grad=True)
    phi_B = refl.phi(reward_B, 2.0)
    torch.testing.assert_close(phi_B, torch.tensor([3.0, 0.1, 0.0, torch.nan]), equal_nan=True)
    (slope_B,) = torch.autograd.grad(phi_B[:3].sum(), reward_B)
    assert slope_B.tolist() == [-1.0, -1.0, 0.0, 0.0]


def test_noising_again_is_the_forward_process() -> None:
    """With a last alpha-bar of 1 it is q(x_t | x_0), and otherwise what leads from the one to the other."""
    schedule = Schedule.of(toy.build_tiny_pipeline().scheduler, 4)
    x0, z, z0 = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    after, at = part(schedule, slice(3, None)), torch.tensor([schedule.timesteps[3]] * 2)
    torch.testing.assert_close(renoised(to_original(after), x0, z), add_noise(schedule, x0, z, at))
    a, a_0 = after.alpha[0], after.alpha_prev[0]
    assert a < a_0 < 1
    x = a_0**0.5 * x0 + (1 - a_0) ** 0.5 * z0
    found = renoised(after, x, z) - a**0.5 * x0
    # what is left is noise of variance 1 - a, of two independent parts
    parts = (a / a_0 * (1 - a_0)) ** 0.5 * z0 + (1 - a / a_0) ** 0.5 * z
    torch.testing.assert_close(found, parts)
    assert a / a_0 * (1 - a_0) + (1 - a / a_0) == pytest.approx(1 - a)


# ------------------------------------------------------------------------------------------------------ the whole of it


@pytest.mark.parametrize("name", METHODS)
def test_the_plan_says_over_how_many_micro_batches_a_gradient_is_accumulated(
    make_run: MakeRun, name: str
) -> None:
    """The last one may be padded."""
    toy.assert_accumulated_as_planned(make_run(METHODS[name]))


@pytest.mark.parametrize("name", METHODS)
def test_every_evaluation_is_counted(make_run: MakeRun, name: str) -> None:
    """Those of the denoiser that are made, also where the late step is drawn; the mean over its choices is the plan's."""
    run = make_run(METHODS[name])
    made = 0

    def count(_module: Any, arguments: tuple[Tensor, ...], _output: Any) -> None:
        nonlocal made
        made += len(arguments[0])

    run.policy.unet.register_forward_hook(count)
    for iteration in range(4):
        iterate(run, iteration)
        assert run.progress.denoiser_evaluations == made
    firsts = {next(iter(line["grad_norm"])) for line in lines(run)}
    assert len(firsts) > 1 if name == "refl" else len(firsts) == 1
    if name != "refl":
        plan = run.experiment.method.evaluations(run.experiment, run.experiment.tasks[0])
        assert 4 * sum(plan) == made
    for line in lines(run):
        assert set(line["monitors"]) == {"tone"}
        assert line["rewards"].keys() == {"smooth"}
        assert line["reward_n"] == 8


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in METHODS), ("refl", "bf16"), ("draft", "fp16"), ("draft-all", "fp16")],
)
def test_what_is_held_before_training(make_run: MakeRun, name: str, precision: Any) -> None:
    sampling = replace(toy.toy_experiment("", "").sampling, precision=precision)
    run = make_run(METHODS[name], iterations=1, sampling=sampling)
    train(run)
    gates = run.progress.gates
    assert {part: gates[part]["holds"] for part in ("noise", "reward", "gradient")} == dict.fromkeys(
        ("noise", "reward", "gradient"), True
    )
    assert gates["reward"]["max_difference"] == 0.0


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (
            "another",
            "the reward that is differentiated differs from the scorer's, relative to the largest or 1, by",
        ),
        ("flat", "the reward of task redness has no gradient at the first 4 pictures"),
        ("steep", "the reward of task redness has a gradient that is no number, at prompt p"),
        ("breaking", "scorer breaking failed with RuntimeError: out of ideas"),
        ("all_nan_smooth", r"answered NaN \(not applicable\) for all 8 images"),
    ],
)
def test_a_reward_that_cannot_be_used_stops_the_run_before_an_update(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, reward: str, told: str
) -> None:
    class Nan(Smooth):
        def __call__(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return super().__call__(images_BCHW, prompts) * torch.nan

        differentiable = __call__  # type: ignore[assignment]

    monkeypatch.setitem(toy.SCORERS, "all_nan_smooth", Nan)
    run = make_run(METHODS["draft"], reward=reward)
    before = {name: weight.detach().clone() for name, weight in run.policy.weights.items()}
    with pytest.raises(Stopped, match=told):
        train(run)
    assert lines(run) == []
    assert all(torch.equal(weight, before[name]) for name, weight in run.policy.weights.items())


def test_noise_belongs_to_the_image(make_run: MakeRun) -> None:
    """Of an image alone, of another iteration, of another noising."""
    run = make_run(METHODS["draft"])
    task, method = run.experiment.tasks[0], run.experiment.method
    one, other = method.collect(run, task, 0), method.collect(run, task, 1)
    late = _reward_gradient.late_noise(run, one, slice(0, 8), 1, 2)
    alone = _reward_gradient.late_noise(run, one, slice(5, 6), 1, 2)
    assert torch.equal(late[5:6], alone)
    different = [
        late,
        _reward_gradient.late_noise(run, one, slice(0, 8), 2, 2),
        _reward_gradient.late_noise(run, other, slice(0, 8), 1, 2),
    ]
    flat = torch.cat([each[:, 1:].flatten() for each in different])
    assert len(flat.unique()) == len(flat)


# -------------------------------------------------------------------------------------------------------------- refusals


def changed(experiment: Experiment, field: str, value: Any) -> Experiment:
    """With a field of the update, the task, the sampler or the method, or two tasks that are mixed."""
    if field == "mixing":
        first = experiment.tasks[0]
        return replace(experiment, mixing=value, tasks=(first, replace(first, name="again")))
    owner = {"update": experiment.update, "sampling": experiment.sampling, "method": experiment.method}
    head, _, name = field.partition(".")
    if head in owner:
        return replace(experiment, **{head: replace(owner[head], **{name: value})})
    return replace(experiment, tasks=(replace(experiment.tasks[0], **{name: value}),))


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        (
            "refl",
            "tasks.shaping",
            "parity",
            "tasks.redness.shaping is parity, .* needs pointwise; ppo trains",
        ),
        ("draft", "tasks.baseline", "group", "tasks.redness.baseline is group, .* leave it at batch"),
        (
            "draft",
            "tasks.rewards",
            (Reward("tone"),),
            "tasks.redness.rewards has tone, .* needs one of aesthetic, .*imagereward, .* ppo trains on any",
        ),
        ("refl", "update.clip", 0.5, r"update.clip is 0.5, which the method refl does not use"),
        ("refl", "update.theta_old", "iteration", "update.theta_old is iteration, which the method refl"),
        ("draft", "mixing", "zscores", "mixing is zscores, .* takes one task at a time"),
        ("refl", "method.t1", 4, "method.t1 is 4 and method.t2 is 3, .* 1 <= t1 <= t2 <= 4"),
        ("refl", "method.t2", 5, "counted from the end of 4 steps"),
        ("refl", "method.weight", 0.0, "method.weight is 0.0"),
        ("draft", "method.truncate", 5, "method.truncate is 5, but only 1 to 4 of 4 steps"),
        ("draft", "method.truncate", 2, "method.noisings is 3 and method.truncate is 2"),
        ("draft", "method.noisings", 0, "method.noisings is 0"),
        ("draft-k", "method.jitter", -0.1, "method.jitter is -0.1"),
        ("draft-all", "method.shift", 0.5, r"method.shift is 0.5, .* in \[0, 0.5\)"),
        ("draft-all", "method.views", 0, r"method.views is 0, but it must be at least 1"),
        (
            "draft-all",
            "method.views",
            2,
            r"method.views is 2, but without method.jitter or method.shift all are ",
        ),
    ],
)
def test_what_it_cannot_train_is_refused_before_anything_loads(
    toy_prompts: Path, name: str, field: str, value: Any, told: str
) -> None:
    task_changes = {"images_per_prompt": 2} if field in ("tasks.shaping", "tasks.baseline") else {}
    experiment = experiment_of("nowhere", toy_prompts, METHODS[name])
    experiment = replace(experiment, tasks=(replace(experiment.tasks[0], **task_changes),))
    check(experiment, 1)
    with pytest.raises(ValueError, match=told) as refused:
        check(changed(experiment, field, value), 1)
    assert "\n" not in str(refused.value)


def test_what_the_reward_is_shown_belongs_to_the_picture() -> None:
    """The same whatever it is shown with, moved by whole pixels with its edges repeated, noised within [0, 1]; and its gradient comes back to where it was."""
    images_BCHW = torch.rand((4, 3, 20, 20), generator=torch.Generator().manual_seed(0))
    asked = Asked([Prompt(f"p{i}", f"text {i % 2}") for i in range(6)], list(range(6)), 5, slice(0, 6))
    method = draft_k.Method(jitter=0.1, shift=0.1)
    together = method.seen(asked, 0, 2, images_BCHW, slice(0, 4), 0)
    alone = method.seen(asked, 0, 4, images_BCHW[3:], slice(1, 2), 0)
    assert torch.equal(together[3:], alone)
    assert not torch.equal(together, method.seen(asked, 1, 2, images_BCHW, slice(0, 4), 0))
    assert not torch.equal(together, method.seen(asked, 0, 2, images_BCHW, slice(0, 4), 1))
    assert together.min() >= 0
    assert together.max() <= 1
    assert draft_k.Method().seen(asked, 0, 2, images_BCHW, slice(0, 4), 0) is images_BCHW

    image_CHW = images_BCHW[0].requires_grad_()
    found = set()
    for seed in range(60):
        moved = draft_k.disturbed(image_CHW, 0.0, 0.1, seed)
        padded = torch.nn.functional.pad(image_CHW[None], (2, 2, 2, 2), mode="replicate")[0]
        at = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(padded[:, y : y + 20, x : x + 20], moved)
        ]
        assert len(at) == 1
        found |= {*at}
    assert len(found) > 15
    (gradient,) = torch.autograd.grad(moved.sum(), image_CHW)
    assert float(gradient.sum()) == pytest.approx(moved.numel())
    noised = draft_k.disturbed(torch.full((3, 64, 64), 0.5), 0.1, 0.0, 1)
    assert float(noised.std()) == pytest.approx(0.1, rel=0.05)


def test_draft_k_goes_through_all_steps_of_the_miniature_and_ten_of_stable_diffusion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the real scorers
    models = experiments.models("imagereward_draft_k")
    for model, experiment in models.items():
        check(experiment, 1)
        method, steps = experiment.method, experiment.sampling.steps
        assert isinstance(method, draft_k.Method)
        assert (method.length, method.repeats) == (steps if model == "miniature" else 10, 1)
        # the sampler's steps and no more: none is taken twice
        assert sum(method.evaluations(experiment, experiment.tasks[0])) == (
            experiment.tasks[0].batch * steps * experiment.sampling.branches
        )


@pytest.mark.parametrize("method", ["refl", "draft"])
def test_variants_have_the_papers_settings(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 6; and whatever only policy gradients heed is as it is where nothing is set."""
    monkeypatch.undo()  # the real scorers
    models = experiments.models(f"imagereward_{method}")
    for model, experiment in models.items():
        check(experiment, 1)
        assert all(
            getattr(experiment.update, field) == getattr(type(experiment.update)(), field)
            for field in OF_SOME
        ), model
    sd2 = models["sd2"]
    check(sd2, 128)
    assert sd2.tasks[0].batch == {"refl": 12, "draft": 3}[method] * 128
    assert sd2.update.lr == {"refl": 1e-5, "draft": 5e-5}[method]
    # adapters have a rate of their own, Table 6's for DRaFT
    assert (models["sd2_1gpu"].update.lr, models["sd2_1gpu"].lora is not None) == (5e-5, True)
    assert sd2.sampling.steps == {"refl": 40, "draft": 50}[method]
    if method == "refl":
        assert isinstance(sd2.method, refl.Method)
        assert (sd2.method.t1, sd2.method.t2, sd2.method.weight) == (1, 10, 1e-3)
        assert sd2.method.firsts(40) == tuple(range(30, 40))  # the release's
        assert sd2.lora is None
    else:
        assert isinstance(sd2.method, draft.Method)
        assert sd2.method.truncate == 1
        assert sd2.lora is not None
        assert sd2.lora.rank == 32
    for name, told in (
        ("fairness", "shaping is parity"),
        ("joint", "rewards has objects, which has no gradient"),
    ):
        with pytest.raises(ValueError, match=told):
            check(experiments.load(f"{name}_{method}", "miniature"), 1)


# ------------------------------------------------------------------------------------- resuming, processes, and learning


def _train(arguments: list[str], environment: dict[str, str], trap: str, name: str) -> None:
    """The command line with a method, in a process that a trap may end."""
    import os

    from train import experiments as of_train
    from train.__main__ import main as trainer

    os.environ.update(environment)
    if trap:
        set_trap(trap)
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    made = experiment_of(os.environ["TOY_BASE"], os.environ["TOY_PROMPTS"], METHODS[name])
    of_train.load = lambda experiment, model: made
    trainer(arguments)


@pytest.mark.parametrize("name", ["refl", "draft"])
def test_kill_and_resume_is_bit_for_bit_the_straight_run(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, name: str
) -> None:
    environment = {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}
    runner = Runner(environment, tmp_path, 1, ())
    for folder, trap, code in (("straight", "", 0), ("killed", "line:3", -9), ("killed", "", 0)):
        arguments = ["toy", "--on", "tiny", "--out", str(tmp_path / folder), *runner.settings]
        assert toy.launch(1, _train, arguments, environment, trap, name) == [code]
    assert_same(runner.result("killed"), runner.result("straight"))


def _two_iterations(base: str, prompts: str, out: str, name: str, reward: str, sharding: Any) -> None:
    """Train, and record the gradient of the first batch and the weights of every process."""
    import evals.scorers
    from train.policy import whole

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    experiment = experiment_of(base, prompts, METHODS[name], reward, iterations=2)
    experiment = replace(experiment, update=replace(experiment.update, sharding=sharding))
    run = prepare(experiment, "toy", 0, Path(out), new_accelerator(sharding))
    record = {}
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    assert isinstance(run.experiment.method, RewardGradient)
    run.experiment.method.accumulate(run, batch)
    for key, weight in run.policy.weights.items():
        assert weight.grad is not None
        record[f"gradient.{key}"] = whole(weight.grad).clone()
    run.policy.forget_gradients()
    train(run)
    record |= {f"weights.{key}": whole(weight.detach()) for key, weight in run.policy.weights.items()}
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in record.items()},
        Path(out) / f"rank{run.rank}.safetensors",
    )
    run.accelerator.wait_for_everyone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reward", "sharding"),
    [
        ("refl", "dark", "none"),
        ("draft", "dark", "none"),
        ("draft", "dark", "fsdp2"),
        ("draft-k", "smooth", "none"),
        ("draft-all", "smooth", "none"),
    ],
)
def test_two_processes_are_one(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, name: str, reward: str, sharding: str
) -> None:
    """With unequal numbers of masked images on them."""
    found: dict[int, list[dict[str, Tensor]]] = {}
    metrics = {}
    for world in (1, 2):
        out = tmp_path / str(world)
        shared = sharding if world > 1 else "none"
        arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(out), name, reward, shared)
        assert toy.launch(world, _two_iterations, *arguments) == [0] * world
        found[world] = [load_file(out / f"rank{rank}.safetensors") for rank in range(world)]
        metrics[world] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (alone,) = found[1]
    for key, tensor in alone.items():
        for record in found[2]:
            assert torch.equal(record[key], found[2][0][key])
            # AdamW turns the rounding of a vanishing gradient into a step of its own size: lr 1e-3
            tolerance = (
                {"rtol": 1e-3, "atol": 1e-6} if key.startswith("gradient") else {"rtol": 0.0, "atol": 2e-4}
            )
            torch.testing.assert_close(record[key], tensor, **tolerance)
    for ours, theirs in zip(metrics[2], metrics[1], strict=True):
        for key in ("reward_n", "invalid", "images", "denoiser_evaluations"):
            assert ours[key] == theirs[key]
        assert ours["reward_mean"] == pytest.approx(theirs["reward_mean"], abs=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def _one_fails(base: str, prompts: str, out: str) -> None:
    """The reward of the second process breaks after the check."""
    import os
    import sys

    import evals.scorers
    from train.command import run as trainer

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    if os.environ["RANK"] == "1":
        toy.SCORERS["smooth"] = Breaking
    sys.exit(trainer(experiment_of(base, prompts, METHODS["refl"]), "toy-tiny-0", "tiny", 0, Path(out)))


@pytest.mark.slow
def test_a_reward_that_fails_on_one_of_two_processes_stops_both(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path / "run"))
    assert toy.launch(2, _one_fails, *arguments) == [1, 1]


@pytest.mark.parametrize("name", ["refl", "draft"])
def test_redness_rises(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, name: str) -> None:
    experiment = experiment_of(
        tiny_pipeline_dir,
        toy_prompts,
        METHODS[name],
        sampling=Sampling(steps=4, eta=1.0, guidance=None, micro_batch=16),
        iterations=15,
        save_every=100,
    )
    update = replace(experiment.update, lr=3e-3, micro_batch=16)
    task = replace(experiment.tasks[0], batch=16)
    run = prepare(
        replace(experiment, update=update, tasks=(task,)), "toy", 0, tmp_path / "run", new_accelerator()
    )
    train(run)
    rewards, spreads = ([line[key] for line in lines(run)] for key in ("reward_mean", "reward_std"))
    noise_of_mean = sum(spreads[:3]) / 3 / (3 * 16) ** 0.5
    assert sum(rewards[-3:]) / 3 - sum(rewards[:3]) / 3 > 8 * noise_of_mean
