"""What settings of training methods are chosen on: as `miniature_methods`, on prompts of which nothing is reported, with noise of their own."""

from __future__ import annotations

from dataclasses import replace

from evals.suites.miniature_methods import PORTRAITS, PREFERENCE, SCENES
from evals.suites.miniature_methods import SUITE as REPORTED

SUITE = replace(
    REPORTED,
    parts=(
        replace(PREFERENCE, prompt_set="miniature-preference-tuning"),
        replace(SCENES, prompt_set="miniature-scenes-tuning"),
        replace(PORTRAITS, prompt_set="miniature-portraits-tuning"),
    ),
    seed=20240127,
)
