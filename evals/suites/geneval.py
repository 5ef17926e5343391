"""GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): its 553 prompts in six tasks, four pictures of each.

**Guidance** is 7.0, the paper's, at which checkpoints are trained here, not upstream's 9.0: what is asked is what training changed, and that is seen where it was
trained. Published numbers could not be met at 9.0 either: the detector has other weights (`evals/scorers/geneval.py`), and upstream draws every prompt from one seed.
50 steps are both's. A guidance of its own is a line in a suite of one's own.

Its headlines are the published table: the plain mean over the six tasks, and each of them. Prompts are resampled inside their task, whose number of prompts is fixed.

`objects` is another detector on the same pictures, with no rule but that what is named is there: a gain that only one of them sees is no gain.
"""

from __future__ import annotations

from evals.diffusion import Sampling
from evals.metrics._geneval import TASKS, task_of
from evals.suites import Part, Suite

SUITE = Suite(
    parts=(
        Part(
            "geneval",
            4,
            ("geneval", "objects"),
            headlines=("geneval", *(f"geneval_{task}" for task in TASKS)),
            stratum=task_of,
        ),
    ),
    # guidance and steps: paper, sec. 4; eta is not stated, and is training's
    sampling=Sampling(steps=50, eta=1.0, guidance=7.0, precision="bf16"),
    seed=20240122,
)
