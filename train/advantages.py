"""Better than expected? Eq 10, over the whole batch of a task on all processes, or within the images of each prompt."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = (
    1e-7  # released code; Eq 10 prints sqrt(sigma^2 + eps), which at this size is the same but near sigma 0
)
GROUP_EPSILON = 1e-4
"""Of a standard deviation within a group (Flow-GRPO's code)."""


def normalise(reward_B: Tensor, epsilon: float = EPSILON) -> Tensor:
    """(r - mean) / (std + epsilon) over the finite rewards, as the paper's release has it; NaN where the reward is NaN.

    The standard deviation is torch's, with n - 1. Equal rewards, or fewer than two, are no better than expected: exactly 0, since
    all are first taken relative to one of them, so that rounding of the mean is not divided by epsilon.
    """
    valid_B = reward_B.isfinite()
    valid = reward_B[valid_B].double()
    advantage_B = torch.full_like(reward_B, torch.nan, dtype=torch.float64)
    if len(valid) < 2:
        advantage_B[valid_B] = 0.0
    else:
        relative = valid - valid[0]
        advantage_B[valid_B] = (relative - relative.mean()) / (relative.std() + epsilon)
    return advantage_B.float()


def group_relative(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """(r - mean of its group) / (std of its group + 1e-4), as GRPO has it (DeepSeekMath, arXiv 2402.03300, sec. 4.1.2).

    The epsilon, Flow-GRPO's, is large enough that rewards which differ by rounding are not made into advantages.

    Args:
        reward_B: rewards of the whole batch, gathered from all processes; NaN = none.
        group_B: group number of each image: images of one prompt.

    Returns:
        float32 [B]: NaN where there is no reward; exactly 0 in a group with one valid image or without spread.
    """
    relative_B = torch.full_like(reward_B, torch.nan, dtype=torch.float32)
    for group in group_B.unique():
        mine_B = group_B == group
        relative_B[mine_B] = normalise(reward_B[mine_B], GROUP_EPSILON)
    return relative_B


def silent_share(relative_B: Tensor, group_B: Tensor) -> float:
    """Share of the groups with a reward that say nothing, as all of theirs are equal; 0 where there is none."""
    rewarded = group_B[relative_B.isfinite()].unique()
    speaking = group_B[relative_B.nan_to_num(nan=0.0) != 0].unique()
    return 1 - len(speaking) / len(rewarded) if len(rewarded) else 0.0


def advantages(reward_B: Tensor, clip: float, group_B: Tensor | None = None) -> Tensor:
    """Advantage of every image: normalised over the batch, cut at +-clip, 0 where there is no reward.

    Args:
        reward_B: rewards of the whole batch, gathered from all processes; NaN = none.
        clip: bound on the advantage (released code: 10).
        group_B: group number of each image where a group shares one reward: then each group counts once, however many of
            its images are valid. None where every image has a reward of its own.

    Returns:
        advantage_B float32.
    """
    if group_B is None:
        advantage_B = normalise(reward_B)
    else:
        _, group_B = group_B.unique(return_inverse=True)
        advantage_B = normalise(_of_groups(reward_B, group_B))[group_B]
        advantage_B = advantage_B.where(reward_B.isfinite(), torch.nan)
    return advantage_B.nan_to_num(nan=0.0).clamp(-clip, clip)


def _of_groups(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """The reward that the valid images of each group share; NaN for a group without any."""
    reward_P = torch.full((int(group_B.max()) + 1,), torch.nan, dtype=reward_B.dtype)
    valid_B = reward_B.isfinite()
    reward_P[group_B[valid_B]] = reward_B[valid_B]
    return reward_P
