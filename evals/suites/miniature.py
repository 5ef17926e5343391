"""The miniature's evaluation: prompts that no training prompt set holds, seconds to a minute on two CPU cores."""

from __future__ import annotations

from evals.diffusion import Sampling
from evals.suites import Part, Suite

_EVERYWHERE = ("imagereward", "clip_judge", "gold_utility", "kid", "vendi", "pairwise_distance")

SUITE = Suite(
    parts=(
        Part(
            "miniature-preference-unseen",
            4,
            _EVERYWHERE,
            headlines=("win_rate_gold", "win_rate_judge", "win_rate_reward", "reward_mean"),
        ),
        Part(
            "miniature-scenes-unseen",
            4,
            ("objects", "fully_right", "gold_utility"),
            headlines=("detection", "fully_right"),
        ),
        Part(
            "miniature-portraits-unseen",
            16,
            ("skin_tone", "monk_tone", "gold_utility", "vendi", "pairwise_distance"),
            headlines=("parity_excess", "parity"),
        ),
    ),
    sampling=Sampling(steps=10, eta=1.0, guidance=None, micro_batch=48),
    seed=20240120,
    domain="miniature",
)
