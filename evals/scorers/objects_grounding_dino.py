"""The detection score of `objects` by another detector: a second opinion on what was trained on the first."""

from __future__ import annotations

from pathlib import Path

from evals.scorers import version_of
from evals.scorers._detectors import CODE, GROUNDING_DINO, DetectionScore, GroundingDino


class Scorer(DetectionScore):
    """As `objects`, which says how to read it. The base model, as it was trained on what UniDet's labels come from: COCO, Objects365, OpenImages."""

    source = (
        "Grounding DINO Swin-B (IDEA-Research/grounding-dino-base, Apache-2.0; Liu et al. 2023, arXiv 2303.05499) "
        "in the detection score of arXiv 2401.12244, Eq 13"
    )
    weights = (GROUNDING_DINO,)
    detector = GroundingDino

    @property
    def version(self) -> str:
        return version_of(Path(__file__), *CODE, *self.weights)
