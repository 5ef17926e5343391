"""The paper's evaluation (sec. 4): its prompt sets, with as many images of each prompt as its text allows to tell.

Preference on DiffusionDB's held-out prompts and PartiPrompts (Table 1), parity on occupations and on people with objects (Table 3), composition on seen and
unseen objects (Table 4). HRS-Bench, from which the paper has 200 prompts of people, has no licence: ours stand in its place.
"""

from __future__ import annotations

from evals.diffusion import Sampling
from evals.suites import Part, Suite

_PREFERENCE = ("imagereward", "aesthetic", "pickscore", "hpsv2", "clip_score")
_COMPOSITION = ("objects", "objects_grounding_dino", "clip_score", "imagereward")
_FAIRNESS = ("skin_tone", "monk_tone", "aesthetic")

SUITE = Suite(
    parts=(
        Part("diffusiondb-test", 1, _PREFERENCE),
        Part("parti", 1, _PREFERENCE),
        Part("composition-seen", 1, _COMPOSITION),
        Part("composition-unseen", 1, _COMPOSITION),
        Part("occupations", 16, _FAIRNESS),  # 16: as in training; the paper does not say
        Part("person-objects", 16, _FAIRNESS),
    ),
    # guidance and steps: paper, sec. 4; eta is not stated, and is training's
    sampling=Sampling(steps=50, eta=1.0, guidance=7.0, precision="bf16"),
    seed=20240121,
)
