"""What `bench.methods` scores the snapshots of a training method on: `miniature` with fewer pictures, as each run is scored ten times.

A run is scored on the one prompt set that its reward is about, and there on everything: what it was trained on, what it was not, truth, variety and
distance from the base. Two pictures of a prompt are enough for a win rate, as more prompts say more than more pictures; of portraits
16 are one observation of parity, so there are no fewer.
"""

from __future__ import annotations

from dataclasses import replace

from evals.suites import Part
from evals.suites.miniature import SUITE as MINIATURE

_EVERYWHERE = ("gold_utility", "kid", "vendi")
PREFERENCE = Part(
    "miniature-preference-unseen",
    2,
    ("imagereward", "clip_judge", *_EVERYWHERE),
    headlines=("gold_quality", "win_rate_judge", "reward_mean", "win_rate_gold"),
)
SCENES = Part(
    "miniature-scenes-unseen",
    2,
    ("objects", "fully_right", "clip_judge", *_EVERYWHERE),
    headlines=("fully_right", "win_rate_judge", "detection"),
)
PORTRAITS = Part(
    "miniature-portraits-unseen",
    16,
    ("skin_tone", "monk_tone", *_EVERYWHERE),
    headlines=("gold_quality", "parity_excess_regrouped", "parity_excess"),
)

SUITE = replace(MINIATURE, parts=(PREFERENCE, SCENES, PORTRAITS), seed=20240126)
