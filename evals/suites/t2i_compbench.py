"""T2I-CompBench (Huang et al., NeurIPS 2023, arXiv 2307.06350): five of its eight categories, 300 validation prompts each, ten pictures of a prompt as upstream.

Those that can be done right with weights that anybody may use:

- colour, shape, texture: B-VQA, by BLIP (BSD-3-Clause).
- spatial, numeracy: upstream's rules on OWLv2 (Apache-2.0) instead of UniDet, 14 of whose files are under a non-commercial licence. Levels are others.

and those that cannot:

- non-spatial is the similarity of OpenAI's CLIP ViT-B/32, whose terms are unclear, and says little: Stable Diffusion 1.4 has .308, XL .311.
- 3D-spatial needs an estimate of depth on top of boxes that are not upstream's: one network more whose errors are taken for the checkpoint's.
- complex is the mean of the above, non-spatial among them, over free texts whose noun phrases no rule reads right; upstream gives no credit for "on top of" in 33 of them.

Each category is a prompt set, a row of the table, and resampled by itself; upstream has no number over all of them.

Guidance and steps are the paper's 7.0 and 50, as in `geneval`; upstream's script takes 30 steps at its pipeline's default guidance.
"""

from __future__ import annotations

from evals.diffusion import Sampling
from evals.suites import Part, Suite

SUITE = Suite(
    parts=(
        Part("t2i-compbench-color", 10, ("t2i_attributes",), headlines=("t2i_attributes",)),
        Part("t2i-compbench-shape", 10, ("t2i_attributes",), headlines=("t2i_attributes",)),
        Part("t2i-compbench-texture", 10, ("t2i_attributes",), headlines=("t2i_attributes",)),
        Part("t2i-compbench-spatial", 10, ("t2i_spatial",), headlines=("t2i_spatial",)),
        Part("t2i-compbench-numeracy", 10, ("t2i_numeracy",), headlines=("t2i_numeracy",)),
    ),
    # guidance and steps: paper, sec. 4; eta is not stated, and is training's
    sampling=Sampling(steps=50, eta=1.0, guidance=7.0, precision="bf16"),
    seed=20240123,
)
