"""Better than expected? By hand, with missing rewards, constant rewards, and groups that share one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.advantages import GROUP_EPSILON, advantages, group_relative

NAN = math.nan


def test_by_hand() -> None:
    # mean 2, standard deviation with n - 1: sqrt((1 + 0 + 1) / 2) = 1
    found = advantages(torch.tensor([1.0, 2.0, 3.0]), clip=10)
    assert found.tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-6)
    assert found.dtype == torch.float32


def test_missing_rewards_are_left_out_and_get_nothing() -> None:
    found = advantages(torch.tensor([1.0, NAN, 2.0, 3.0, NAN]), clip=10)
    assert found.tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3, -7.3])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_constant_rewards_are_no_better_than_expected(value: float, count: int) -> None:
    """Exactly 0: the rounding of a mean must not be divided by epsilon."""
    assert advantages(torch.full((count,), value), clip=10).eq(0).all()


def test_no_reward_at_all() -> None:
    assert advantages(torch.tensor([NAN, NAN]), clip=10).tolist() == [0.0, 0.0]


def test_one_outlier_is_cut() -> None:
    rewards = torch.zeros(1000)
    rewards[3] = 1.0
    found = advantages(rewards, clip=10)
    assert found[3] == 10.0
    assert found.max() == 10.0


def test_scale_and_shift_do_not_matter() -> None:
    rewards = torch.randn(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(advantages(rewards, 10), advantages(5 * rewards + 3, 10), rtol=1e-4, atol=1e-5)


def test_a_shared_reward_counts_once_per_group() -> None:
    """Groups with rewards 1, 2, 3, however many of their images are valid; a group without any is left out."""
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    rewards = torch.tensor([1.0, 1.0, 1.0, 2.0, NAN, NAN, 3.0, 3.0, NAN, NAN, NAN, NAN])
    found = advantages(rewards, 10, group)
    assert found.tolist() == pytest.approx([-1, -1, -1, 0, 0, 0, 1, 1, 0, 0, 0, 0], abs=1e-6)


def test_group_numbers_need_not_be_consecutive() -> None:
    rewards = torch.tensor([1.0, 1.0, 3.0, 3.0])
    wide, narrow = (
        advantages(rewards, 10, torch.tensor(group)) for group in ([5, 5, 900, 900], [0, 0, 1, 1])
    )
    assert torch.equal(wide, narrow)


def test_within_groups_by_definition() -> None:
    """Interleaved groups of several sizes, one image without a reward: numpy's mean and standard deviation of each."""
    random = np.random.default_rng(0)
    group = random.permutation(np.repeat([5, 0, 3, 9], [4, 2, 7, 3]))
    reward = random.normal(size=len(group)) * 3 + 10 * group
    reward[np.flatnonzero(group == 3)[2]] = np.nan
    found = group_relative(torch.tensor(reward), torch.tensor(group))
    assert found.dtype == torch.float32
    for i, one in enumerate(group):
        others = reward[(group == one) & ~np.isnan(reward)]
        expected = (reward[i] - others.mean()) / (others.std(ddof=1) + GROUP_EPSILON)
        assert found[i].item() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_within_groups_nothing_to_compare_with() -> None:
    """One valid image, no spread, no valid image."""
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    reward = torch.tensor([0.1, 0.1, 0.1, 7.0, NAN, NAN, NAN, NAN])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, NAN, NAN, NAN, NAN])
    assert torch.equal(group_relative(reward, group).nan_to_num(nan=99), expected.nan_to_num(nan=99))
