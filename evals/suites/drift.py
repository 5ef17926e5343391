"""How far a checkpoint has gone from its base, and what variety it has lost: both on the same prompts, from the same noise.

PartiPrompts, four pictures of each, are general and none of them is trained on here; DiffusionDB's held-out ones, one of each, are of the kind that preference is trained on. The distances
are between the pictures of the checkpoint and of the base over a whole prompt set, and say nothing of quality: `clip_score` and `aesthetic` stand
beside them. FID is none of them: it is biased by the number of pictures, and a set of photographs to hold it to differs from these prompts whatever was trained. Variety is that of the pictures of one prompt, and only compared at equal numbers.
"""

from __future__ import annotations

from evals.diffusion import Sampling
from evals.suites import Part, Suite, first_tag

_DISTANCE = ("kid", "cmmd")
_VARIETY = ("vendi", "vendi_clip", "lpips")
_QUALITY = ("clip_score", "aesthetic")
_FAR = ("drift", "drift_cmmd")
_VARIED = ("diversity_vendi", "diversity_vendi_clip", "diversity_lpips")

SUITE = Suite(
    parts=(
        Part(
            "parti",
            4,
            (*_DISTANCE, *_VARIETY, *_QUALITY),
            headlines=(*_FAR, *_VARIED),
            stratum=first_tag,
        ),
        Part("diffusiondb-test", 1, (*_DISTANCE, *_QUALITY), headlines=_FAR),
        Part("occupations", 16, (*_DISTANCE, *_VARIETY), headlines=_VARIED),
    ),
    # guidance and steps: paper, sec. 4; eta is not stated, and is training's
    sampling=Sampling(steps=50, eta=1.0, guidance=7.0, precision="bf16"),
    seed=20240124,
)
