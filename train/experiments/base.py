"""The base model, handed over as it is: zero steps, so that its row of the table goes the same way as every other.

make train-base
"""

from __future__ import annotations

from dataclasses import replace

from evals.diffusion import Sampling
from train.config import Experiment, Update
from train.experiments._stable_diffusion import variants

MINIATURE_PIPELINE = "evals/miniature/weights/pipeline"

# Ten steps without guidance: the miniature is trained for it, and half the cost of a guided one.
MINIATURE_SAMPLING = Sampling(steps=10, eta=1.0, guidance=None, micro_batch=48)

MODELS = {
    "miniature": Experiment(
        base=MINIATURE_PIPELINE, domain="miniature", iterations=0, sampling=MINIATURE_SAMPLING
    ),
    **{name: replace(paper, iterations=0, lora=None, update=Update()) for name, paper in variants().items()},
}
