"""What rounding may do: bounds that are derived, held to what is measured, and broken by what is no rounding."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from evals.arithmetic import Precision, micro_batches, padded
from evals.checkpoints import ROOT, load_pipeline
from evals.conditioning import Conditioning
from evals.diffusion import Painter, Sampling, Schedule, gaussian_kl, log_prob, predict, transition
from evals.signals import STOPS
from tests import toy
from tests.test_diffusion import SD2_BASE, randn
from tests.test_resume import Runner, assert_same
from train.command import run as trainer
from train.gates import (
    Diverged,
    GateBroken,
    Rounding,
    check_identity,
    largest_mean_error,
    log_ratio_error,
    mean_error,
    output_error,
)
from train.loop import Stopped, train
from train.loss_scale import LossScale, first_loss_scale
from train.methods import _policy_gradient
from train.methods._policy_gradient import policy_gradient
from train.run import Run, accumulated
from train.start import new_accelerator, prepare

MakeRun = Callable[..., Run]
UPDATE = toy.toy_experiment("", "").update
SAMPLING = toy.toy_experiment("", "").sampling
SCHEDULE = Schedule.of(DDIMScheduler(**SD2_BASE), 50)
STABLE_DIFFUSION = Rounding(
    SCHEDULE,
    Sampling(steps=50, guidance=7.0),
    "mean",
    clip=1e-4,
    dims=4 * 64 * 64,
    longest_sum=2560 * 9,
    same_kernels=False,
    on_cpu=False,
)


def of(precision: Precision, rounding: Rounding = STABLE_DIFFUSION, **changes: Any) -> Rounding:
    return replace(rounding, sampling=replace(rounding.sampling, precision=precision), **changes)


@pytest.fixture
def make_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, toy_scorers: None) -> MakeRun:
    """A run of the toy experiment, with changes, in a folder of its own."""
    made = 0

    def make(seed: int = 0, base: Path = tiny_pipeline_dir, **changes: Any) -> Run:
        nonlocal made
        made += 1
        experiment = toy.toy_experiment(base, toy_prompts, **changes)
        return prepare(experiment, "toy", seed, tmp_path / f"run{made}", new_accelerator())

    return make


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """The command line handles signals from then on."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------------- equations


@pytest.mark.parametrize("k", [0.003, 0.03, 0.3])
def test_error_of_the_log_ratio_is_that_of_a_mean_that_is_off(k: float) -> None:
    """By simulation: a fixed error d of the mean, then the noise, then the averaged log-densities of torch."""
    dims, images, sigma = 1024, 2000, 0.1
    d = randn(dims).double()
    d *= k * sigma / d.square().mean().sqrt()
    z = torch.randn(images, dims, generator=torch.Generator().manual_seed(1)).double()
    normal, moved = torch.distributions.Normal(0.0, sigma), torch.distributions.Normal(d, sigma)
    log_ratio = (moved.log_prob(sigma * z) - normal.log_prob(sigma * z)).mean(1)
    assert log_ratio.mean().item() == pytest.approx(-k * k / 2, abs=4 * k / math.sqrt(dims * images))
    assert log_ratio.std().item() == pytest.approx(k / math.sqrt(dims), rel=0.05)
    bound = log_ratio_error(k, dims, sigma)
    assert bound / 3 < log_ratio.abs().max().item() < bound


@pytest.mark.parametrize("allowed", [1e-5, 1e-3, 0.1])
def test_largest_mean_error_is_the_inverse(allowed: float) -> None:
    assert log_ratio_error(largest_mean_error(allowed, 512, 0.1), 512, 0.1) == pytest.approx(allowed)
    assert largest_mean_error(1e-9, 512, 0.1) == 0.0  # less than rounding the log-densities takes


def test_guidance_adds_the_errors_of_its_branches() -> None:
    """w cond - (w - 1) uncond, each off by one standard deviation."""
    errors = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    simulated = (7.0 * errors[0] - 6.0 * errors[1]).std().item()
    guided, plain = (
        mean_error(SCHEDULE, 25, Sampling(precision="bf16", guidance=w), 144) for w in (7.0, None)
    )
    assert guided / plain == pytest.approx(simulated, rel=0.01)  # in bf16 the mean's own rounding is nothing


def test_a_summed_log_probability_is_off_by_so_many_averages() -> None:
    averaged, summed = of("fp32"), of("fp32", reduction="sum")
    for step in (0, 25, 48):
        expected = STABLE_DIFFUSION.dims * math.log1p(averaged.ratio_error(step))
        assert math.log1p(summed.ratio_error(step)) == pytest.approx(expected)


def test_the_tolerance_is_never_wider_than_half_of_the_clip() -> None:
    for precision in ("fp32", "bf16", "fp16"):
        for step in range(50):
            rounding = of(precision)
            allowed = rounding.tolerance(step)
            assert 0 < allowed.ratio <= rounding.clip / 2
            k = math.sqrt(2 * allowed.kl / rounding.dims)
            sigma = SCHEDULE.sigma(step, 1.0)
            assert log_ratio_error(k, rounding.dims, sigma) <= math.log1p(rounding.clip / 2) * (1 + 1e-9)
            assert k <= mean_error(SCHEDULE, step, rounding.sampling, rounding.longest_sum)


# -------------------------------------------------------------------------------------------------- bounds, as measured


def pipeline_of(name: str) -> Any:
    if name == "miniature":
        base = ROOT / "evals" / "miniature" / "weights" / "pipeline"
        if not base.is_dir():
            pytest.skip("the miniature's weights are not here")
        return load_pipeline(str(base))
    build = {"xl": toy.build_tiny_xl, "v": lambda: toy.build_tiny_pipeline(prediction_type="v_prediction")}
    return build.get(name, toy.build_tiny_pipeline)()


@torch.no_grad()
def measured(
    pipeline: Any, drawn_with: Sampling, recomputed: Sampling, images: int = 5
) -> list[tuple[float, float, float, float]]:
    """For every step: the worst image's k and |ratio - 1| between a rollout and its recomputation, and the bounds on both."""
    painter = Painter.of(pipeline, drawn_with)
    texts = [toy.TEXTS[i % len(toy.TEXTS)] for i in range(images)]
    keep = painter.schedule.stochastic_steps(1.0)
    drawn, uncond = painter.draw(texts, range(images), 1, keep=keep), painter.unconditional()
    dims = drawn.latents_BCHW[0].numel()
    longest = max(p[0].numel() for p in pipeline.unet.parameters() if p.dim() > 1)
    coarser = max(drawn_with, recomputed, key=lambda s: output_error(s.precision, longest))
    rounding = Rounding(painter.schedule, coarser, "mean", 1e9, dims, longest, False, True)
    found = []
    for kept, step in enumerate(keep):
        kl, ratio = [], []
        for rows in micro_batches(images, recomputed.micro_batch):
            x, after, old_mean, old_logp = drawn.part(rows, kept)

            def again(x: Tensor, *cond: Tensor, at: int = painter.schedule.timesteps[step]) -> Tensor:
                told = Conditioning(*cond)
                return predict(pipeline.unet, x, at, told, uncond, recomputed.guidance, recomputed.precision)

            columns = painter.encoder(texts[rows]).columns()
            output = padded(again, recomputed.micro_batch, x, *columns)[: len(x)]
            mean, sigma = transition(painter.schedule, x, output, step, 1.0)
            kl.append(gaussian_kl(mean, old_mean, sigma))
            ratio.append((log_prob(after, mean, sigma) - old_logp).double().expm1().abs())
        k = math.sqrt(2 * float(torch.cat(kl).max()) / dims)
        bound = mean_error(painter.schedule, step, coarser, longest)
        found.append((k, bound, float(torch.cat(ratio).max()), rounding.ratio_error(step)))
    return found


SEEN_TO_DIFFER = {  # micro-batches of rollout and update whose kernels sum in another order, in float32 on this and other CPUs
    None: (4, 1),
    7.0: (8, 5),
}


@pytest.mark.parametrize("guidance", [None, 7.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["epsilon", "v", "xl", "miniature"])
def test_bounds_hold_and_are_not_far_above_what_is_measured(
    name: str, precision: Precision, guidance: float | None
) -> None:
    """In float32 between two sizes of micro-batch, in the others between float32 and them, which is the most that kernels can differ."""
    first, second = SEEN_TO_DIFFER[guidance] if precision == "fp32" else (4, 4)
    sampling = Sampling(steps=5, guidance=guidance, micro_batch=first)
    found = measured(pipeline_of(name), sampling, replace(sampling, micro_batch=second, precision=precision))
    assert all(k <= bound and ratio <= allowed for k, bound, ratio, allowed in found)
    nearest = max(k / bound for k, bound, _, _ in found)
    if precision == "fp32" and nearest == 0.0:
        pytest.skip("this CPU's kernels sum in the same order whatever the size of the batch")
    assert nearest > 1 / 15


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["epsilon", "miniature"])
def test_bounds_hold_between_micro_batches(name: str, precision: Precision, micro_batch: int) -> None:
    sampling = Sampling(steps=4, guidance=3.0, micro_batch=4, precision=precision)
    found = measured(pipeline_of(name), sampling, replace(sampling, micro_batch=micro_batch))
    assert all(k <= bound and ratio <= allowed for k, bound, ratio, allowed in found)


# ------------------------------------------------------------------------------------------------------- gate in the run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_gate_records_what_is_measured_and_allowed(
    make_run: MakeRun, precision: Precision, micro_batch: int
) -> None:
    """Exact where batches are of one size; between two sizes within the bound, and with a clip that a bound in this precision can hold."""
    run = make_run(
        sampling=replace(SAMPLING, precision=precision),
        update=replace(UPDATE, micro_batch=micro_batch, clip=1.0, skip_last=1),
        iterations=1,
    )
    train(run)
    identity = run.progress.gates["identity"]
    assert identity["precision"] == precision
    assert identity["exact"] == (micro_batch == 4)
    assert identity["holds"]
    for worst in identity["steps"].values():
        assert (worst["ratio_allowed"] > 0) == (worst["kl_allowed"] > 0) == (micro_batch == 1)
        assert worst["ratio_max_dev"] <= worst["ratio_allowed"]
        assert worst["kl_max"] <= worst["kl_allowed"]
    json.dumps(run.progress.gates)


def in_bf16(*arguments: Any) -> Tensor:
    return predict(*arguments[:6], "bf16")


def a_timestep_later(unet: Any, x: Tensor, timestep: int, *rest: Any) -> Tensor:
    return predict(unet, x, timestep + 1, *rest)


@pytest.mark.parametrize("planted", [in_bf16, a_timestep_later])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_an_update_that_is_another_function_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, planted: Any, micro_batch: int
) -> None:
    """Pinterest's release: rollout in float32, update in bf16. And a timestep that is off by one."""
    run = make_run(update=replace(UPDATE, micro_batch=micro_batch), iterations=1)
    monkeypatch.setattr(_policy_gradient, "predict", planted)
    with pytest.raises(Stopped, match=r"not the same function \(rounding does not do that\)"):
        train(run)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_rollout_of_another_precision_is_stopped_where_nothing_rounds_differently(
    make_run: MakeRun, precision: Precision
) -> None:
    run = make_run(sampling=replace(SAMPLING, precision=precision), iterations=1)
    run.policy.painter.sampling = replace(SAMPLING, precision="fp32")
    with pytest.raises(Stopped, match="not the same function"):
        train(run)


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("what", ["x_BTCHW", "next_BTCHW"])
def test_a_latent_that_is_rounded_after_its_log_probability_is_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, micro_batch: int, what: str
) -> None:
    """ddpo-pytorch, TRL, DanceGRPO."""
    run = make_run(update=replace(UPDATE, micro_batch=micro_batch), iterations=1)
    draw = run.policy.painter.draw

    def rounding(*arguments: Any, **options: Any) -> Any:
        drawn = draw(*arguments, **options)
        return replace(drawn, **{what: getattr(drawn, what).bfloat16().float()})

    monkeypatch.setattr(run.policy.painter, "draw", rounding)
    with pytest.raises(Stopped, match=r"not the same function \(rounding does not do that\)"):
        train(run)


def test_a_deviation_above_half_of_the_clip_names_what_would_hold() -> None:
    rounding = of("bf16")
    with pytest.raises(GateBroken, match=r"allowed 5e-05.*if it is rounding.*sampling.precision fp32.*equal"):
        check_identity({}, 25, 6e-5, 1e-3, rounding)
    gates: dict[str, Any] = {}
    check_identity(gates, 25, 4e-5, 1e-3, rounding)
    assert gates["identity"]["holds"]
    with pytest.raises(GateBroken, match="rounding does not do that"):
        check_identity({}, 25, 1e-5, 0.0, of("fp32"))


# ------------------------------------------------------------------------------------------------------ said before a run


def test_a_precision_that_cannot_hold_the_clip_is_named_with_what_can() -> None:
    steps = range(50)
    assert of("fp32").note(steps) == ""
    note = of("bf16").note(steps)
    assert note.startswith("sampling.precision bf16 cannot hold update.clip 0.0001 at sampling.guidance 7: ")
    assert "timestep 21" in note  # the steepest, see test_diffusion
    assert "what can: sampling.precision fp32, equal sampling.micro_batch and update.micro_batch" in note
    assert of("bf16", same_kernels=True).note(steps) == ""


def test_what_is_said_to_hold_does() -> None:
    steps = range(48)
    rounding = of("fp16", clip=2e-3)
    ways = rounding.ways_out(steps)
    weaker = next(way for way in ways if way.startswith("sampling.guidance up to"))
    guidance = float(weaker.rpartition(" ")[2])
    assert 1.0 < guidance < 7.0

    def with_guidance(w: float) -> Rounding:
        return replace(rounding, sampling=replace(rounding.sampling, guidance=w))

    assert not rounding.holds(steps)
    assert with_guidance(guidance).holds(steps)
    assert not with_guidance(guidance + 0.1).holds(steps)
    assert of("fp32", clip=2e-3).holds(steps)
    clip = float(ways[-1].rpartition(" ")[2])
    assert replace(rounding, clip=1.05 * clip).holds(steps)
    assert not replace(rounding, clip=0.9 * clip).holds(steps)


def test_the_run_says_so_before_it_trains(
    tiny_pipeline_dir: Path,
    toy_prompts: Path,
    tmp_path: Path,
    toy_scorers: None,
    capsys: pytest.CaptureFixture[str],
    signals_as_before: None,
) -> None:
    coarse = toy.toy_experiment(
        tiny_pipeline_dir,
        toy_prompts,
        sampling=replace(SAMPLING, precision="bf16"),
        update=replace(UPDATE, micro_batch=2),
        iterations=0,
    )
    assert trainer(coarse, "toy-tiny-0", "tiny", 0, tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "note: sampling.precision bf16 cannot hold update.clip 0.01 at sampling.guidance 2" in said


# ------------------------------------------------------------------------------------------------------- fp16's gradients


def gradient(run: Run, precision_scale: float | None = None) -> Tensor:
    """Of the first task's batch at its first step, all weights in one; `precision_scale` replaces the scale that the loss begins with."""
    if precision_scale is not None:
        assert run.policy.loss_scale is not None
        run.policy.loss_scale.value = precision_scale
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    accumulated(run, partial(policy_gradient, run, batch, batch.order[0], 1.0))
    found = torch.cat([w.grad.flatten() for w in run.policy.weights.values() if w.grad is not None])
    run.policy.forget_gradients()
    return found


def off(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def test_gradients_in_fp16_are_those_in_float32_thanks_to_the_scale(make_run: MakeRun) -> None:
    exact = gradient(make_run())
    half = replace(SAMPLING, precision="fp16")
    assert off(gradient(make_run(sampling=half)), exact) < 0.02
    # the scale that 128 processes of 16 images and 16,384 dimensions would need, left out
    unscaled = gradient(make_run(sampling=half), precision_scale=64 * 8 / (2048 * 16384))
    assert off(unscaled, exact) > 0.5


def test_a_gradient_that_overflows_is_taken_again(make_run: MakeRun) -> None:
    half = replace(SAMPLING, precision="fp16")
    expected = gradient(make_run(sampling=half))
    run = make_run(sampling=half)
    found = gradient(run, precision_scale=2.0**24)
    assert run.policy.loss_scale is not None
    assert run.policy.loss_scale.value < 2.0**24
    assert off(found, expected) < 1e-3


def test_gradients_that_are_no_numbers_at_any_scale_stop_the_run(make_run: MakeRun) -> None:
    run = make_run(sampling=replace(SAMPLING, precision="fp16"))
    batch = run.experiment.method.collect(run, run.experiment.tasks[0], 0)
    with torch.no_grad():
        next(iter(run.policy.weights.values())).fill_(torch.inf)
    with pytest.raises(Diverged, match="the gradients are no numbers"):
        accumulated(run, partial(policy_gradient, run, batch, batch.order[0], 1.0))


def test_scale_begins_where_a_unit_of_advantage_is_a_unit_of_gradient(make_run: MakeRun) -> None:
    """The denoiser's output in closed form: advantage, a mean over images and over dimensions, kappa_t and the noise."""
    assert first_loss_scale(dims=16384, images=2048, reduction="mean") == 2.0**25
    assert first_loss_scale(dims=16384, images=20, reduction="sum") == 16.0
    step, images, dims = 25, 64, 16384
    output = torch.zeros(images, dims, dtype=torch.float64, requires_grad=True)
    x, z = (randn(images, dims, seed=seed).double() for seed in (0, 1))
    mean, sigma = transition(SCHEDULE, x, torch.zeros_like(x), step, 1.0)
    slope = SCHEDULE.gradient_scale(step, 1.0) * sigma
    logp = log_prob((mean + sigma * z).float(), mean + slope * output, sigma)
    (logp.mean() * first_loss_scale(dims, images, "mean")).backward()
    assert output.grad is not None
    assert output.grad.std().item() == pytest.approx(SCHEDULE.gradient_scale(step, 1.0), rel=0.01)


def test_scale_grows_after_many_steps_without_an_overflow() -> None:
    scale = LossScale(8.0)
    for _ in range(LossScale.PATIENCE - 1):
        scale.kept()
    assert scale.value == 8.0
    resumed = LossScale(1.0)
    resumed.load_state(scale.state())
    resumed.kept()
    assert (resumed.value, resumed.steps) == (16.0, 0)


def test_fp16_is_resumed_bit_for_bit(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    environment = {"TOY_BASE": str(tiny_pipeline_dir), "TOY_PROMPTS": str(toy_prompts)}
    runner = Runner(environment, tmp_path, 1, ("sampling.precision=fp16", "sampling.steps=2", "iterations=2"))
    assert runner("straight") == [0]
    assert runner("killed", "line:3") == [-signal.SIGKILL]
    assert runner("killed") == [0]
    assert_same(runner.result("killed"), runner.result("straight"))
    stored = runner.result("killed")["tensors"]
    assert stored["loss_scale/steps"] > 0
    assert runner.result("killed")["lines"][-1]["loss_scale"] == stored["loss_scale/value"]


def test_a_state_without_its_scale_is_refused(make_run: MakeRun) -> None:
    run = make_run(sampling=replace(SAMPLING, precision="fp16"))
    stored = run.policy.state()
    del stored["loss_scale"]
    with pytest.raises(ValueError, match=r"no loss_scale\.safetensors"):
        run.policy.load_state(stored)


def overflow_on_the_second_process(base: str, prompts: str, out: str) -> None:
    """Write the gradient and the scale after an overflow of one process only, once."""
    import evals.scorers

    evals.scorers.load = toy.load_scorer  # type: ignore[assignment]
    experiment = toy.toy_experiment(base, prompts, sampling=replace(SAMPLING, precision="fp16"))
    run = prepare(experiment, "toy", 0, Path(out), new_accelerator())
    policy, backward, called = run.policy, run.policy.backward, [0]

    def broken(loss: Tensor) -> None:
        called[0] += 1
        backward(loss * torch.inf if run.rank == 1 and called[0] == 1 else loss)

    policy.backward = broken  # type: ignore[method-assign]
    found = gradient(run)
    assert policy.loss_scale is not None
    value = torch.tensor(policy.loss_scale.value)
    save_file({"gradient": found, "scale": value}, Path(out) / f"rank{run.rank}.safetensors")
    run.accelerator.wait_for_everyone()


def test_an_overflow_of_one_process_is_one_of_all(
    make_run: MakeRun, tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    arguments = (str(tiny_pipeline_dir), str(toy_prompts), str(tmp_path / "two"))
    assert toy.launch(2, overflow_on_the_second_process, *arguments) == [0, 0]
    first, second = (load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in (0, 1))
    alone = make_run(sampling=replace(SAMPLING, precision="fp16"))
    assert off(first["gradient"], gradient(alone)) < 0.01
    assert torch.equal(first["gradient"], second["gradient"])
    assert first["scale"] == second["scale"] == first_loss_scale(64, 4, "mean") / 2
