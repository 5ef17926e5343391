"""All three at once (paper, sec. 3.3 and 4.4): the tasks of the three experiments, taking turns in every iteration.

make train-joint
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment
from train.experiments import compositionality, fairness, imagereward
from train.experiments._stable_diffusion import variants

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        imagereward.MINIATURE,
        # fairness alone takes twice the portraits at 1e-4, lest their clothes drift; here preference looks at clothes as well.
        # The other two take what they need for the gain that they have alone. Preference is compared with the whole batch, as in the paper:
        # four images of a prompt have not been tried in a joint run.
        tasks=(
            replace(imagereward.MINIATURE_TASK, batch=192),
            replace(compositionality.MINIATURE_TASK, batch=192),
            replace(fairness.MINIATURE_TASK, batch=96),
        ),
        iterations=50,
    ),
    # The paper does not say how a batch is divided among tasks: each has here what it has alone.
    **variants(imagereward.TASK, compositionality.TASK, fairness.TASK),
}
