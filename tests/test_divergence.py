"""The divergence from the base: zero from itself, the closed form, and the mean log-ratio of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Independent, Normal, kl_divergence

from evals.diffusion import Painter, Sampling, Schedule, log_prob, noise, predict
from evals.divergence import kl_to_base, transition_mean
from tests import toy

SAMPLING = Sampling(steps=4, eta=1.0, guidance=2.0, micro_batch=4)
TEXTS = ("red", "blue", "star", "nurse", "pilot")


def painter_of(seed: int = 0, moved: float = 0.0, sampling: Sampling = SAMPLING) -> Painter:
    """The tiny pipeline, its denoiser moved a little in a direction of its own."""
    pipeline = toy.build_tiny_pipeline()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for weight in pipeline.unet.parameters():
            weight += moved * torch.randn(weight.shape, generator=generator)
    return Painter.of(pipeline, sampling)


@pytest.fixture(scope="module")
def base() -> Painter:
    return painter_of()


@pytest.fixture(scope="module")
def tuned() -> Painter:
    return painter_of(moved=0.01)


def closed_form(painter: Painter, base: Painter, text: str, image: int, seed: int) -> float:
    """The sum over steps by diffusers' step and torch's normal distributions, one image at a time."""
    scheduler = DDIMScheduler(**toy.NOISE, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(SAMPLING.steps)
    drawn = noise(seed, text, image, painter.latent_shape, SAMPLING.steps)
    x, total = drawn[:1], 0.0
    cond, uncond = painter.encoder([text]), painter.unconditional()
    for number, timestep in enumerate(scheduler.timesteps.tolist()):
        with torch.no_grad():
            outputs = [predict(p.unet, x, timestep, cond, uncond, SAMPLING.guidance) for p in (painter, base)]
        silent = torch.zeros_like(x)
        mean, base_mean = (
            scheduler.step(output, timestep, x, eta=1.0, variance_noise=silent, return_dict=False)[0]
            for output in outputs
        )
        sigma = scheduler._get_variance(timestep, timestep - 1000 // SAMPLING.steps) ** 0.5
        one, other = (Independent(Normal(m.double(), sigma.double()), 4) for m in (mean, base_mean))
        total += float(kl_divergence(one, other))
        x = mean + sigma * drawn[1 + number : 2 + number]
    return total


def test_it_is_nothing_from_itself(base: Painter) -> None:
    assert torch.equal(kl_to_base(base, base, TEXTS, range(5), seed=1), torch.zeros(5))


def test_it_is_the_closed_form_along_its_own_pictures(base: Painter, tuned: Painter) -> None:
    found = kl_to_base(tuned, base, TEXTS, [3, 0, 0, 1, 0], seed=1)
    expected = [closed_form(tuned, base, *at, seed=1) for at in zip(TEXTS, [3, 0, 0, 1, 0], strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)
    assert min(expected) > 1e-3
    # along the base's own pictures it is another number
    back = kl_to_base(base, tuned, TEXTS, [3, 0, 0, 1, 0], seed=1)
    assert not torch.allclose(found, back, rtol=1e-3)


def test_it_is_the_mean_log_ratio_of_what_is_drawn() -> None:
    """The definition: E_p of log p - log p_base over trajectories, by Monte Carlo."""
    count, sampling = 120, replace(SAMPLING, micro_batch=40)
    base, tuned = painter_of(sampling=sampling), painter_of(moved=0.002, sampling=sampling)
    texts, images = ["red"] * count, range(count)
    steps = tuned.schedule.stochastic_steps(sampling.eta)
    drawn = tuned.draw(texts, images, 5, keep=steps, reduction="sum")
    ratio_B = torch.zeros(count)
    for kept, step in enumerate(steps):
        parts = drawn.x_BTCHW[:, kept].split(sampling.micro_batch)
        mean = torch.cat([transition_mean(base, texts[: len(x)], x, step) for x in parts])
        sigma = base.schedule.sigma(step, sampling.eta)
        ratio_B += drawn.logp_BT[:, kept] - log_prob(drawn.next_BTCHW[:, kept], mean, sigma, "sum")
    exact_B = kl_to_base(tuned, base, texts, images, 5)
    difference_B = (ratio_B - exact_B).double()
    assert abs(difference_B.mean()) < 4 * difference_B.std() / count**0.5
    assert exact_B.mean() > 10 * difference_B.std() / count**0.5  # it could have failed
    # what is exact at every step varies less than the log-ratio itself, so few images are enough
    assert exact_B.std() < 0.5 * ratio_B.std()


def test_an_image_has_the_number_that_it_has_alone(base: Painter, tuned: Painter) -> None:
    together = kl_to_base(tuned, base, TEXTS, range(5), seed=1)
    alone = torch.cat([kl_to_base(tuned, base, [text], [i], seed=1) for i, text in enumerate(TEXTS)])
    assert torch.equal(together, alone)
    assert torch.equal(kl_to_base(tuned, base, TEXTS, range(5), seed=1), together)
    assert not torch.equal(kl_to_base(tuned, base, TEXTS, range(5), seed=2), together)
    assert kl_to_base(tuned, base, [], [], seed=1).shape == (0,)


def test_a_last_step_without_noise_is_not_in_the_sum() -> None:
    scheduler = DDIMScheduler(**toy.NOISE, clip_sample=False, set_alpha_to_one=True)
    schedule = Schedule.of(scheduler, 4)
    assert schedule.sigma(3, 1.0) == 0.0
    assert schedule.stochastic_steps(1.0) == (0, 1, 2)
    ending = [replace(painter_of(moved=moved), schedule=schedule) for moved in (0.01, 0.0)]
    assert bool(torch.isfinite(kl_to_base(*ending, TEXTS, range(5), seed=1)).all())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampling": replace(SAMPLING, guidance=3.0)}, "differ in their settings of the sampler"),
        ({"schedule": Schedule.of(DDIMScheduler(), 4)}, "differ in their noise levels"),
    ],
)
def test_samplers_that_differ_are_refused(base: Painter, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kl_to_base(replace(base, **change), base, TEXTS, range(5), seed=1)


def test_without_noise_there_is_none() -> None:
    still = painter_of(sampling=replace(SAMPLING, eta=0.0))
    with pytest.raises(
        ValueError, match=r"sampling\.eta 0, without noise, where a KL divergence does not exist"
    ):
        kl_to_base(still, still, TEXTS, range(5), seed=1)
