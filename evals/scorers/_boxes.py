"""OWLv2 asked for boxes, which the paper's score does without, and what the scorers of T2I-CompBench on it share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image, nms

from evals import t2i_compbench
from evals.geneval import Detection
from evals.scorers import Scope
from evals.scorers._detectors import CODE, OWLV2, Owlv2
from evals.weights import Weights
from prompts import Prompt

SUPPRESSED = 0.5
"""IoU with a more confident box of the same name from which a box is dropped: every patch has a box, and detectors with a fixed list of classes do it themselves."""

BOXES = (Path(__file__), Path(str(t2i_compbench.__file__)), *CODE)
"""What the scores of these scorers depend on, for `evals.scorers.version_of`."""


class Owlv2Boxes(Owlv2):
    """Boxes of the names that a picture is asked about; each box has the one name that fits it best, as in the library's post-processing."""

    def see(self, images_BCHW: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, list[Detection]]]:
        """For each image, each of its names to its boxes above the threshold, the most confident first.

        Args:
            images_BCHW: float32 RGB in [0, 1].
            names: of each image, plain ones, each once.
        """
        found = []
        size = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        for start in range(0, len(names), self.batch):
            few = slice(start, start + self.batch)
            features_BhwD = self.model.image_embedder(self.preprocess(images_BCHW[few].to(self.device)))[0]
            features_BPD = features_BhwD.flatten(1, 2)
            boxes_BP4 = box_convert(self.model.box_predictor(features_BPD, features_BhwD), "cxcywh", "xyxy")
            for features_PD, boxes_P4, named in zip(features_BPD, boxes_BP4, names[few], strict=True):
                queries_ND = torch.stack([self._embed(name) for name in named])
                logits_PN = self.model.class_predictor(features_PD[None], queries_ND[None])[0][0]
                # of the square that the picture was padded to
                inside_P4 = clip_boxes_to_image(boxes_P4 * max(size), size)
                found.append(self._of_each(named, logits_PN, inside_P4))
        return found

    def _of_each(
        self, names: Sequence[str], logits_PN: Tensor, boxes_P4: Tensor
    ) -> dict[str, list[Detection]]:
        confidence_P, label_P = logits_PN.sigmoid().max(1)
        found = {}
        for number, name in enumerate(names):
            chosen = ((label_P == number) & (confidence_P > self.threshold)).nonzero().flatten()
            kept = chosen[nms(boxes_P4[chosen], confidence_P[chosen], SUPPRESSED)]
            pairs = zip(boxes_P4[kept].tolist(), confidence_P[kept].tolist(), strict=True)
            found[name] = [Detection((x0, y0, x1, y1), confidence) for (x0, y0, x1, y1), confidence in pairs]
        return found


class BoxScorer:
    """A score of boxes by a rule that `names_of` and `judge` state."""

    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool | None = True
    scope: Scope = "image"
    weights: tuple[Weights, ...] = (OWLV2,)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @cached_property
    def detector(self) -> Owlv2Boxes:
        return Owlv2Boxes(self.weights[0], self.device)

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        value_B = torch.full((len(prompts),), torch.nan)
        names = {i: list(dict.fromkeys(named)) for i, p in enumerate(prompts) if (named := self.names_of(p))}
        if names:
            longer_side = max(images_BCHW.shape[-2:])
            for (i, _), found in zip(
                names.items(), self.detector.see(images_BCHW[list(names)], list(names.values())), strict=True
            ):
                value_B[i] = self.judge(prompts[i], found, longer_side)
        return value_B

    @abstractmethod
    def names_of(self, prompt: Prompt) -> list[str]:
        """What the detector is asked for, plain names; empty where the score does not apply."""

    @abstractmethod
    def judge(self, prompt: Prompt, found: dict[str, list[Detection]], longer_side: int) -> float:
        """The score of what was found of them in a picture with so many pixels on its longer side."""
