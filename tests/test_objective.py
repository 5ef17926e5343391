"""The clipped policy gradient: its values at the clip's edges, its gradient where the ratio is 1, the weights of steps."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from evals.diffusion import Schedule, log_prob
from tests.test_diffusion import SD15, randn
from train.objective import clipped_share, clipped_surrogate, denoising_loss, step_weights

CLIP = 0.1


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "silenced"),
    [
        (1.0, 2.0, 2.0, False),
        (1.05, 2.0, 2.1, False),
        (1.2, 2.0, 2.2, True),  # bound at (1 + eps) A
        (0.8, 2.0, 1.6, False),  # a good action that became less likely is not bounded
        (1.0, -2.0, -2.0, False),
        (0.95, -2.0, -1.9, False),
        (0.8, -2.0, -1.8, True),  # bound at (1 - eps) A
        (1.2, -2.0, -2.4, False),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_surrogate_is_eq_7(ratio: float, advantage: float, objective: float, silenced: bool) -> None:
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, found = clipped_surrogate(logp, torch.zeros(1), torch.tensor([advantage]), CLIP)
    assert -loss.item() == pytest.approx(objective, abs=1e-6)
    assert found.item() == pytest.approx(ratio)
    assert bool(clipped_share(found, torch.tensor([advantage]), CLIP)) is silenced
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert (slope.item() == 0) is (silenced or advantage == 0)


def test_surrogate_equals_ppos_other_spelling() -> None:
    logp, old, advantage = 0.2 * randn(500), 0.2 * randn(500, seed=1), randn(500, seed=2)
    ratio = (logp - old).exp()
    ppo = torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))  # the released code's
    torch.testing.assert_close(clipped_surrogate(logp, old, advantage, CLIP)[0], ppo)


def test_gradient_at_ratio_one_is_reinforce() -> None:
    """Eq 6: A times the gradient of the log-probability."""
    theta = randn(4, 3, 2, 2).requires_grad_()
    x, advantage = randn(4, 3, 2, 2, seed=1), randn(4, seed=2)
    logp = log_prob(x, theta, 0.7)
    clipped = torch.autograd.grad(clipped_surrogate(logp, logp.detach(), advantage, 1e-4)[0].sum(), theta)
    reinforce = torch.autograd.grad(-(advantage * log_prob(x, theta, 0.7)).sum(), theta)
    torch.testing.assert_close(clipped, reinforce)


def test_masked_images_have_no_gradient() -> None:
    logp = torch.zeros(2, requires_grad=True)
    loss, _ = clipped_surrogate(logp, torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0]), CLIP)
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    assert slope.tolist() == [-1.0, 0.0]


def test_balanced_weights_undo_the_gradient_scale() -> None:
    schedule = Schedule.of(DDIMScheduler(**SD15), 10)
    steps = tuple(range(9))
    weights = step_weights(schedule, steps, 1.0, balanced=True)
    assert sum(weights.values()) / len(steps) == pytest.approx(1.0)
    scaled = [weights[step] * schedule.gradient_scale(step, 1.0) for step in steps]
    assert scaled == pytest.approx([scaled[0]] * len(steps))
    assert step_weights(schedule, steps, 1.0, balanced=False) == dict.fromkeys(steps, 1.0)


def test_gradient_norms_of_the_output_are_as_predicted() -> None:
    """The norm of d logp / d output is kappa_t |noise| / D: measured against the closed form."""
    from evals.diffusion import transition

    schedule = Schedule.of(DDIMScheduler(**SD15), 10)
    for step in range(10):
        x, z = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=2)
        output = randn(1, 4, 8, 8, seed=1).requires_grad_()
        mean, sigma = transition(schedule, x, output, step, 1.0)
        action = (mean + sigma * z).detach()
        (slope,) = torch.autograd.grad(log_prob(action, mean, sigma).sum(), output)
        expected = schedule.gradient_scale(step, 1.0) * z.norm() / z.numel()
        assert slope.norm().item() == pytest.approx(expected.item(), rel=1e-2)


def test_denoising_loss_is_mean_squared_error_per_image() -> None:
    a, b = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1)
    expected = torch.stack([torch.nn.functional.mse_loss(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(denoising_loss(a, b), expected)
