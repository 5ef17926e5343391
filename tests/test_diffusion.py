"""The transition against diffusers, the log-probability against torch, and images that do not depend on their batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import nn

from evals import conditioning, decoder
from evals.conditioning import Conditioning, PromptEncoder
from evals.diffusion import (
    Painter,
    Sampling,
    Schedule,
    add_noise,
    denoising_target,
    derive_seed,
    gaussian_kl,
    log_prob,
    noise,
    predict,
    sample,
    transition,
)
from tests import toy

LATENT = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
# scheduler/scheduler_config.json of the models on the hub, as written there apart from version and unrelated keys
SD15 = {
    **LATENT,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}  # PNDMScheduler, no prediction_type
SD2_BASE = {**SD15, "prediction_type": "epsilon"}  # stabilityai/stable-diffusion-2-base, PNDMScheduler
SD2_V = {**SD15, "prediction_type": "v_prediction"}  # stabilityai/stable-diffusion-2, DDIMScheduler
SDXL = {
    **SD2_BASE,
    "timestep_spacing": "leading",
    "sample_max_value": 1.0,
}  # sdxl-base-1.0, EulerDiscreteScheduler
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd2-base": SD2_BASE,
    "sd2-v": SD2_V,
    "sdxl": SDXL,
    "alpha-to-one": {**SD2_BASE, "set_alpha_to_one": True},
    "trailing": {**SD2_V, "timestep_spacing": "trailing"},
    "linspace": {**SD2_BASE, "timestep_spacing": "linspace"},
    "zero-terminal-snr": {**SD2_V, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "pixel": {**SD15, "clip_sample": True, "clip_sample_range": 1.5, "prediction_type": "sample"},
    "no-offset": {**SD15, "steps_offset": 0, "set_alpha_to_one": True},
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ transition


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_transition_is_that_of_diffusers_at_every_step(name: str, eta: float, steps: int) -> None:
    scheduler = DDIMScheduler(**CONFIGS[name])
    schedule = Schedule.of(scheduler, steps)
    scheduler.set_timesteps(steps)
    if (
        name == "zero-terminal-snr"
    ):  # where 1 - alpha - sigma^2 is 0, diffusers takes the root of its rounding error
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    assert schedule.timesteps == tuple(int(t) for t in scheduler.timesteps)
    for step, timestep in enumerate(schedule.timesteps):
        x, output, z = (randn(2, 4, 4, 4, seed=3 * step + k) for k in range(3))
        mean, sigma = transition(schedule, x, output, step, eta)
        theirs = scheduler.step(output, timestep, x, eta=eta, variance_noise=z).prev_sample
        assert mean.dtype == torch.float32
        assert mean.isfinite().all()
        if theirs.isnan().any():  # and that error may be negative
            assert (name, step) == ("zero-terminal-snr", 0)
            continue
        torch.testing.assert_close(mean + sigma * z, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 10, 25, 50])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_that_has_a_density_is_finite(name: str, steps: int) -> None:
    schedule = Schedule.of(DDIMScheduler(**CONFIGS[name]), steps)
    stochastic = schedule.stochastic_steps(eta=1.0)
    assert set(range(steps - 1)) <= set(stochastic)
    for step in stochastic:
        x, output = randn(2, 4, 4, 4, seed=step), randn(2, 4, 4, 4, seed=step + 99)
        mean, sigma = transition(schedule, x, output, step, eta=1.0)
        assert log_prob(mean + sigma * randn(2, 4, 4, 4), mean, sigma).isfinite().all()
        assert 0 < schedule.gradient_scale(step, 1.0) < math.inf


def test_last_step_of_stable_diffusion_has_a_density_and_of_alpha_to_one_has_none() -> None:
    assert Schedule.of(DDIMScheduler(**SD15), 50).sigma(49, 1.0) == pytest.approx(
        0.0206, abs=1e-4
    )  # pitfalls, 3.1
    schedule = Schedule.of(DDIMScheduler(**CONFIGS["alpha-to-one"]), 50)
    assert schedule.sigma(49, 1.0) == 0.0
    with pytest.raises(ValueError, match="ends without noise"):
        schedule.gradient_scale(49, 1.0)


@pytest.mark.parametrize(
    "scheduler",
    [
        PNDMScheduler(**LATENT, set_alpha_to_one=False, steps_offset=1, skip_prk_steps=True),
        EulerDiscreteScheduler(**LATENT, timestep_spacing="leading", steps_offset=1),
        DDPMScheduler(**LATENT, clip_sample=False, steps_offset=1),
    ],
)
def test_schedulers_of_other_classes_are_read_without_ddims_defaults(scheduler: Any) -> None:
    schedule = Schedule.of(scheduler, 50)
    assert schedule == Schedule.of(DDIMScheduler(**SD15), 50)
    assert schedule.clip_range is None


def test_schedules_that_have_no_gaussian_transition_are_refused() -> None:
    with pytest.raises(ValueError, match="thresholding"):
        Schedule.of(DDIMScheduler(**SD15, thresholding=True), 10)
    with pytest.raises(ValueError, match="zero signal"):
        Schedule.of(DDIMScheduler(**LATENT, rescale_betas_zero_snr=True, timestep_spacing="trailing"), 10)
    with pytest.raises(ValueError, match="1000 timesteps"):
        Schedule.of(DDIMScheduler(**SD15), 1001)


@pytest.mark.parametrize("name", ["sd2-base", "sd2-v"])
@pytest.mark.parametrize("step", [0, 5, 9])
def test_gradient_scale_is_the_derivative_of_the_mean_over_sigma(name: str, step: int) -> None:
    schedule = Schedule.of(DDIMScheduler(**CONFIGS[name]), 10)
    x, output = randn(1, 1, 1, 1), randn(1, 1, 1, 1, seed=1).requires_grad_()
    mean, sigma = transition(schedule, x, output, step, eta=1.0)
    (slope,) = torch.autograd.grad(mean.sum(), output)
    assert schedule.gradient_scale(step, 1.0) == pytest.approx(abs(slope.item()) / sigma, rel=1e-5)


@pytest.mark.parametrize(("name", "step"), [("sd2-base", 8), ("sd2-v", 8), ("trailing", 9)])
def test_one_step_dwarfs_the_others_in_gradient_scale(name: str, step: int) -> None:
    """Timesteps 901 ... 101, 1 end in two small steps, and the first of them is the steep one; 999 ... 199, 99 in one."""
    schedule = Schedule.of(DDIMScheduler(**CONFIGS[name]), 10)
    scales = [schedule.gradient_scale(i, 1.0) for i in range(10)]
    assert scales.index(max(scales)) == step
    assert max(scales) > 6 * sorted(scales)[-2]


@pytest.mark.parametrize("name", ["sd2-base", "sd2-v"])
def test_noising_and_target_are_those_of_diffusers(name: str) -> None:
    scheduler = DDIMScheduler(**CONFIGS[name])
    schedule = Schedule.of(scheduler, 10)
    x0, z, timestep = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1), torch.tensor([0, 400, 999])
    torch.testing.assert_close(add_noise(schedule, x0, z, timestep), scheduler.add_noise(x0, z, timestep))
    theirs = z if name == "sd2-base" else scheduler.get_velocity(x0, z, timestep)
    torch.testing.assert_close(denoising_target(schedule, x0, z, timestep), theirs)


# -------------------------------------------------------------------------------------------------------- log-probability


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sigma", [0.02, 1.0])
def test_log_prob_is_that_of_torch(sigma: float, reduction: Any) -> None:
    mean = randn(3, 4, 5, 6)
    x = mean + sigma * randn(3, 4, 5, 6, seed=1)
    theirs = torch.distributions.Normal(mean.double(), sigma).log_prob(x.double()).flatten(1)
    expected = theirs.mean(1) if reduction == "mean" else theirs.sum(1)
    torch.testing.assert_close(log_prob(x, mean, sigma, reduction).double(), expected, rtol=1e-4, atol=1e-4)


def test_kl_is_that_of_torch_summed_over_dimensions() -> None:
    p, q = randn(3, 4, 5, 6), randn(3, 4, 5, 6, seed=1)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(p, 0.3), normal(q, 0.3)).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_kl(p, q, 0.3), theirs)
    assert gaussian_kl(p, p, 0.3).eq(0).all()


def test_eta_zero_is_deterministic_and_refuses_a_log_prob(tiny_pipeline: Any) -> None:
    painter = Painter.of(tiny_pipeline, Sampling(steps=3, eta=0.0, guidance=None, micro_batch=2))
    first, second = (painter.draw(["a", "b"], [0, 1], seed=0).latents_BCHW for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"sampling\.eta is 0"):
        painter.draw(["a"], [0], seed=0, keep=[1])
    with pytest.raises(ValueError, match="above 0"):
        log_prob(first, second, 0.0)


# ----------------------------------------------------------------------------------------------------------------- noise


def test_noise_is_a_function_of_seed_text_and_index() -> None:
    one = noise(0, "a red circle", 3, (4, 4, 4), 5)
    assert one.shape == (6, 4, 4, 4)
    assert torch.equal(one, noise(0, "a red circle", 3, (4, 4, 4), 5))
    others = [noise(1, "a red circle", 3, (4, 4, 4), 5), noise(0, "a red star", 3, (4, 4, 4), 5)]
    others.append(noise(0, "a red circle", 4, (4, 4, 4), 5))
    assert not any(torch.equal(one, other) for other in others)
    assert torch.equal(
        one[0], noise(0, "a red circle", 3, (4, 4, 4), 0)[0]
    )  # same start at any number of steps


def test_noise_is_pinned() -> None:
    """Pictures drawn from a seed must stay the same from one version of this project to the next."""
    assert derive_seed(0, "a red circle", 3) == 108953685415212954
    start, transition_noise = noise(0, "a red circle", 3, (1, 2, 2), 1).flatten(1).tolist()
    assert start == pytest.approx([0.0576039, 0.7503916, -0.9239340, 1.8552836], abs=1e-6)
    assert transition_noise == pytest.approx([0.6649297, -0.1185813, 1.8316385, -0.9071785], abs=1e-6)


def test_seeds_do_not_run_into_each_other() -> None:
    assert (
        len(
            {
                derive_seed("a", "b"),
                derive_seed("ab"),
                derive_seed('a", "b'),
                derive_seed("1"),
                derive_seed(1),
            }
        )
        == 5
    )


def test_noise_is_standard_normal() -> None:
    values = torch.cat([noise(0, "text", i, (4, 8, 8), 9).flatten() for i in range(20)])
    assert abs(values.mean().item()) < 4 / math.sqrt(len(values))
    assert values.std().item() == pytest.approx(1.0, abs=0.02)


# --------------------------------------------------------------------------------------------------------------- sampler


def test_image_is_identical_in_any_batch_and_order(tiny_pipeline: Any) -> None:
    painter = Painter.of(tiny_pipeline, Sampling(steps=3, eta=1.0, guidance=2.0, micro_batch=4))
    texts = ["red", "blue", "star", "nurse", "pilot", "a", "of"]
    indices = [0, 1, 2, 0, 1, 2, 5]
    together = painter.paint(texts, indices, seed=7)
    assert together.shape == (7, 3, 8, 8)
    assert together.dtype == torch.float32
    assert 0 <= together.min() < together.max() <= 1
    order = [3, 6, 0, 5, 1, 4, 2]
    shuffled = painter.paint([texts[i] for i in order], [indices[i] for i in order], seed=7)
    assert torch.equal(shuffled, together[order])
    for i in (0, 6):
        assert torch.equal(painter.paint([texts[i]], [indices[i]], seed=7)[0], together[i])
    halves = [
        painter.paint(texts[rows], indices[rows], seed=7) for rows in (slice(0, 4), slice(4, 7))
    ]  # as two ranks would
    assert torch.equal(torch.cat(halves), together)


def test_micro_batch_size_changes_nothing_beyond_rounding(tiny_pipeline: Any) -> None:
    def images(micro_batch: int) -> torch.Tensor:
        sampling = Sampling(steps=3, eta=1.0, guidance=2.0, micro_batch=micro_batch)
        return Painter.of(tiny_pipeline, sampling).paint(["red", "blue", "star"], [0, 1, 2], seed=7)

    for micro_batch in (2, 3, 8):
        torch.testing.assert_close(images(micro_batch), images(1), rtol=0, atol=1e-4)


def test_drawing_is_that_of_the_diffusers_pipeline(tiny_pipeline: Any) -> None:
    """The same picture as `StableDiffusionPipeline.__call__`: guidance, prompt embedding, schedule, decoding."""
    texts = ["a red circle", "nurse"]
    latents = torch.stack([noise(0, text, 1, (4, 4, 4), 0)[0] for text in texts])
    tiny_pipeline.set_progress_bar_config(disable=True)
    theirs = tiny_pipeline(
        texts, num_inference_steps=5, guidance_scale=3.0, eta=0.0, latents=latents, output_type="pt"
    ).images
    sampling = Sampling(steps=5, eta=0.0, guidance=3.0, micro_batch=2)
    ours = Painter.of(tiny_pipeline, sampling).paint(texts, [1, 1], seed=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_trajectory_keeps_what_was_drawn(tiny_pipeline: Any) -> None:
    """The log-probability is that of the stored value under the stored mean, and consecutive steps join up."""
    painter = Painter.of(tiny_pipeline, Sampling(steps=4, eta=1.0, guidance=None, micro_batch=2))
    kept = painter.draw(["red", "blue", "star"], [0, 0, 0], seed=1, keep=[3, 0, 1, 2])
    assert kept.steps == (0, 1, 2, 3)
    for before, after in pairwise(range(4)):
        assert torch.equal(kept.next_BTCHW[:, before], kept.x_BTCHW[:, after])
    assert torch.equal(kept.next_BTCHW[:, 3], kept.latents_BCHW)
    for step in range(4):
        sigma = painter.schedule.sigma(step, 1.0)
        again = log_prob(kept.next_BTCHW[:, step], kept.mean_BTCHW[:, step], sigma)
        assert torch.equal(again, kept.logp_BT[:, step])
        z = (kept.next_BTCHW[:, step] - kept.mean_BTCHW[:, step]) / sigma
        drawn = torch.stack([noise(1, text, 0, (4, 4, 4), 4)[1 + step] for text in ("red", "blue", "star")])
        torch.testing.assert_close(z, drawn, rtol=0, atol=1e-3)


def test_keeping_steps_does_not_change_the_picture(tiny_pipeline: Any) -> None:
    painter = Painter.of(tiny_pipeline, Sampling(steps=4, eta=1.0, guidance=2.0, micro_batch=2))
    assert torch.equal(
        painter.draw(["red"], [0], seed=1).latents_BCHW,
        painter.draw(["red"], [0], seed=1, keep=[2]).latents_BCHW,
    )


class CountingDenoiser(nn.Module):
    """Answers the text's mean, and counts the images it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(
        self, x: torch.Tensor, _t: Any, encoder_hidden_states: torch.Tensor, return_dict: bool
    ) -> Any:
        assert not return_dict
        self.images += len(x)
        return (x + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1),)


def test_guidance_combines_both_branches_in_one_call() -> None:
    x = randn(2, 4, 2, 2)
    cond, uncond = Conditioning(torch.full((2, 3, 5), 2.0)), Conditioning(torch.full((1, 3, 5), 1.0))
    guided, plain = CountingDenoiser(), CountingDenoiser()
    torch.testing.assert_close(predict(guided, x, 5, cond, uncond, 7.0), x + 1.0 + 7.0 * (2.0 - 1.0))
    torch.testing.assert_close(predict(plain, x, 5, cond, None, 1.0), x + 2.0)
    assert torch.equal(predict(plain, x, 5, cond, None, None), predict(plain, x, 5, cond, uncond, 1.0))
    assert (guided.images, plain.images) == (4, 6)


@pytest.mark.parametrize(("guidance", "branches"), [(None, 1), (1.0, 1), (7.0, 2), (0.5, 2)])
def test_branches_are_the_evaluations_of_one_latent(guidance: float | None, branches: int) -> None:
    denoiser, empty = CountingDenoiser(), Conditioning(torch.zeros(1, 3, 5))
    predict(denoiser, randn(3, 4, 2, 2), 5, Conditioning(torch.zeros(3, 3, 5)), empty, guidance)
    assert denoiser.images == 3 * Sampling(guidance=guidance).branches == 3 * branches


def test_unconditional_branch_is_part_of_the_policy() -> None:
    weight = torch.ones((), requires_grad=True)

    class Scaled(nn.Module):
        def forward(
            self, x: torch.Tensor, _t: Any, encoder_hidden_states: torch.Tensor, return_dict: bool
        ) -> Any:
            return (x * weight * encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1),)

    cond, uncond = Conditioning(torch.full((1, 1, 1), 2.0)), Conditioning(torch.full((1, 1, 1), 5.0))
    output = predict(Scaled(), torch.ones(1, 1, 1, 1), 0, cond, uncond, 3.0)
    (slope,) = torch.autograd.grad(output.sum(), weight)
    assert slope.item() == pytest.approx(5.0 + 3.0 * (2.0 - 5.0))  # a detached branch would leave 6


def test_prompts_are_encoded_once_and_as_by_diffusers(tiny_pipeline: Any) -> None:
    encoder = Painter.of(tiny_pipeline, Sampling(steps=1)).encoder
    theirs, _ = tiny_pipeline.encode_prompt(["a red circle", "nurse"], "cpu", 1, False)
    torch.testing.assert_close(encoder(["a red circle", "nurse"]).text_BLD, theirs)
    encoder.towers = []
    assert encoder(["nurse"]).text_BLD.shape == (1, 12, 8)  # from the cache


@pytest.mark.parametrize("build", [toy.build_tiny_pipeline, toy.build_tiny_xl])
def test_texts_are_read_as_many_at_once_as_suits_the_device_and_depend_on_none_beside_them(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build()
    alone = PromptEncoder.of(pipe)(list("abcdefg"))
    monkeypatch.setitem(conditioning.READ_AT_ONCE, "cpu", 4)
    sizes: list[int] = []
    for _, tower in PromptEncoder.of(pipe).towers:
        tower.register_forward_pre_hook(
            lambda _, args, given: sizes.append(len((*args, *given.values())[0])), with_kwargs=True
        )
    encoder = PromptEncoder.of(pipe)
    together = encoder(["a", "b", "a", *"cdefg"])
    assert set(sizes) == {4}
    assert len(sizes) == 2 * len(encoder.towers)  # seven texts in two calls, each of four
    other = PromptEncoder.of(pipe)(["g", "z"])
    for one, many, some in zip(alone.columns(), together.columns(), other.columns(), strict=True):
        torch.testing.assert_close(many[[0, 1, 3, 4, 5, 6, 7]], one, rtol=0, atol=1e-6)
        assert torch.equal(many[2], many[0])
        assert torch.equal(many[7], some[0])  # g by others, in another place


def test_embedding_cache_is_bounded(tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Painter.of(tiny_pipeline, Sampling(steps=1)).encoder
    monkeypatch.setattr("evals.conditioning.EMBEDDING_CACHE_BYTES", 3 * 12 * 8 * 4)
    encoder(list("abcdefgh"))
    assert list(encoder._cache) == ["f", "g", "h"]


def test_decoding_is_batch_size_independent(tiny_pipeline: Any) -> None:
    latents = randn(5, 4, 4, 4)
    assert torch.equal(
        decoder.decode(tiny_pipeline.vae, latents, 2)[4:], decoder.decode(tiny_pipeline.vae, latents[4:], 2)
    )


def test_decoder_holds_as_many_as_it_is_told_and_paints_the_same(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's decoder takes far more memory for a picture than its denoiser for a latent."""
    texts, indices, decode = list("abcde"), range(5), tiny_pipeline.vae.decode
    held: list[int] = []

    def watched(z: torch.Tensor, **options: Any) -> Any:
        held.append(len(z))
        return decode(z, **options)

    monkeypatch.setattr(tiny_pipeline.vae, "decode", watched)
    sampling = Sampling(steps=2, guidance=None, micro_batch=4)
    images = []
    for decode_batch, sizes in ((None, {4}), (1, {1}), (2, {2})):
        held.clear()
        painter = Painter.of(tiny_pipeline, replace(sampling, decode_batch=decode_batch))
        images.append(painter.paint(texts, indices, seed=1))
        assert set(held) == sizes
        torch.testing.assert_close(images[-1], images[0], rtol=0, atol=1e-6)
    assert repr(replace(sampling, decode_batch=1)) == repr(sampling)  # pictures that are kept stay


def test_no_more_pictures_are_decoded_at_a_time_than_fit(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures, fewer at a time; one where not even that fits, and in bf16 as many as asked, as its rounding depends on it."""
    latents = torch.randn(5, *Painter.of(tiny_pipeline, Sampling(steps=2)).latent_shape)
    whole = decoder.decode(tiny_pipeline.vae, latents, 4)
    each = decoder.bytes_of_a_picture(tiny_pipeline.vae, *latents.shape[2:])
    held, decode = list[int](), tiny_pipeline.vae.decode
    monkeypatch.setattr(
        tiny_pipeline.vae, "decode", lambda z, **options: (held.append(len(z)), decode(z, **options))[1]
    )
    for memory, precision, size in (
        (2.5 * each / decoder.SHARE, "fp32", 2),
        (0.1 * each, "fp32", 1),
        (9.5 * each / decoder.SHARE, "fp32", 4),
        (0.1 * each, "bf16", 4),
    ):
        monkeypatch.setattr(decoder, "memory_of", lambda _, memory=memory: memory)
        held.clear()
        images = decoder.decode(tiny_pipeline.vae, latents, 4, precision)
        assert set(held) == {size}
        assert images.shape == whole.shape
        if precision == "fp32":
            torch.testing.assert_close(images, whole, rtol=0, atol=1e-6)


def test_a_decoder_in_bf16_paints_nearly_the_same_and_keeps_its_weights(tiny_pipeline: Any) -> None:
    exact, rounded = (Sampling(steps=2, guidance=None, decoder_precision=each) for each in ("fp32", "bf16"))
    latents = Painter.of(tiny_pipeline, exact).draw(list("abc"), range(3), seed=1).latents_BCHW
    pictures = [Painter.of(tiny_pipeline, sampling).decode(latents) for sampling in (exact, rounded)]
    assert pictures[1].dtype == torch.float32
    assert not torch.equal(*pictures)
    torch.testing.assert_close(*pictures, rtol=0, atol=0.02)
    assert {weight.dtype for weight in tiny_pipeline.vae.parameters()} == {torch.float32}


def test_pictures_are_known_by_their_decoders_precision_where_it_was_chosen() -> None:
    usual = Sampling(steps=2)
    assert repr(usual) == "Sampling(steps=2, eta=1.0, guidance=7.0, micro_batch=16, precision='fp32')"
    assert (
        repr(replace(usual, decoder_precision="tf32", decode_batch=2))
        == repr(usual)[:-1] + ", decoder_precision='tf32')"
    )
    of_bf16 = ", decode_batch=2, decoder_precision='bf16')"  # it rounds by grey levels, in another way for each size of batch
    assert repr(replace(usual, decoder_precision="bf16", decode_batch=2)) == repr(usual)[:-1] + of_bf16


def test_tf32_is_the_decoders_alone_and_refused_without_a_gpu(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    class Watched:
        config, parameters = tiny_pipeline.vae.config, tiny_pipeline.vae.parameters

        def decode(self, z: torch.Tensor, return_dict: bool) -> Any:
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return tiny_pipeline.vae.decode(z, return_dict=return_dict)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for precision in ("fp32", "tf32", "bf16"):
        decoder.decode(Watched(), randn(1, 4, 4, 4), 1, precision)
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert seen == [(False, False), (True, True), (False, False)]
    with pytest.raises(ValueError, match="but this process computes on the CPU: use fp32 or bf16"):
        Painter.of(tiny_pipeline, Sampling(decoder_precision="tf32"))


def test_denoiser_is_called_with_full_micro_batches_only() -> None:
    denoiser = CountingDenoiser()
    schedule = Schedule.of(DDIMScheduler(**SD15), 2)
    sampling = Sampling(steps=2, guidance=None, micro_batch=4)
    drawn = sample(
        denoiser,
        schedule,
        Conditioning(torch.zeros(5, 3, 5)),
        None,
        lambda rows: randn(5, 3, 1, 2, 2)[rows],
        sampling,
    )
    assert drawn.latents_BCHW.shape == (5, 1, 2, 2)
    assert denoiser.images == 2 * 2 * 4


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 0},
        {"eta": 1.5},
        {"guidance": 0.0},
        {"guidance": math.nan},
        {"micro_batch": 0},
        {"decode_batch": 0},
        {"decoder_precision": "fp16"},
    ],
)
def test_impossible_sampling_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"sampling.{next(iter(field))}"):
        Sampling(**field)
