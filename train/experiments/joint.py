"""All three at once (paper, sec. 3.3 and 4.4): the tasks of the three experiments, taking turns in every iteration.

make train-joint
"""

from __future__ import annotations

from dataclasses import replace

from train.config import Experiment
from train.experiments.compositionality import TASK as COMPOSITIONALITY
from train.experiments.fairness import TASK as FAIRNESS
from train.experiments.imagereward import MINIATURE
from train.experiments.imagereward import TASK as PREFERENCE

MODELS: dict[str, Experiment] = {
    "miniature": replace(
        MINIATURE,
        # fairness alone takes twice the portraits at 1e-4, lest their clothes drift; here preference looks at clothes as well.
        # The other two take what they need for the gain that they have alone. Preference is compared with the whole batch, as in the paper:
        # four images of a prompt have not been tried in a joint run.
        tasks=(
            replace(PREFERENCE, batch=192),
            replace(COMPOSITIONALITY, batch=192),
            replace(FAIRNESS, batch=96),
        ),
        iterations=50,
    ),
}
