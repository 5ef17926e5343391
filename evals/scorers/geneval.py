"""GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): whether a picture shows the objects that its prompt asks for, in number, colour and place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from evals import geneval
from evals.geneval import COLOURS, CONFIDENCE, Detection, check, counted, shortcomings
from evals.scorers import Scope, _clip, version_of
from evals.scorers._asked import refuse_none
from evals.scorers._clip import OPENAI_VIT_L_14, OpenClip, image_features, load_clip, text_features
from evals.scorers._detectors import CODE, MASK2FORMER, Mask2Former
from evals.scorers._preprocess import preprocess, to_8bit
from evals.weights import Weights
from prompts import Prompt

TEMPLATES = (
    "a photo of a {colour} {name}",
    "a photo of a {colour}-colored {name}",
    "a photo of a {colour} object",
)
GREY = 153 / 255
"""What is not the object's is painted with #999 before its colour is named."""


class Scorer:
    """1 where the picture is right by GenEval's rules (`evals.geneval`), 0 where it is not; NaN where `expect` has no `include`.

    `expect` has tag, include and maybe exclude, as in its `evaluation_metadata.jsonl`; the prompt sets `geneval` and `geneval-unseen` have it. The
    benchmark's number is the share of right pictures of each tag, and then the plain mean over the six tags.

    The rules are GenEval's to the letter, the eyes are not. Its detector is mmdetection's Mask2Former with a Swin-S; here it is the one of
    Mask2Former's authors: architecture, training set and test size are the same, weights and with them confidences are others, so that the
    thresholds of .3 and .9 do not cut at the same place. Numbers may be compared with each other, and with published ones only after
    it was held to the 1,200 pictures that people have judged for GenEval; those images were drawn with a guidance of 9 and, upstream, one
    seed for all prompts.
    """

    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool | None = True
    source = (
        "GenEval's rules (djghosh13/geneval at af4902f, MIT; arXiv 2310.11513) on Mask2Former Swin-S "
        "(facebook/mask2former-swin-small-coco-instance; arXiv 2112.01527) and OpenAI's CLIP ViT-L/14 (arXiv 2103.00020)"
    )
    scope: Scope = "image"
    weights: tuple[Weights, ...] = (MASK2FORMER, OPENAI_VIT_L_14)
    architecture = "ViT-L-14-quickgelu"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    @property
    def version(self) -> str:
        return version_of(Path(__file__), Path(geneval.__file__), Path(_clip.__file__), *CODE, *self.weights)

    @cached_property
    def detector(self) -> Mask2Former:
        return Mask2Former(self.weights[0], self.device)

    @cached_property
    def colours(self) -> ColourClassifier:
        """Opened where a colour is asked for, and not before."""
        return ColourClassifier(load_clip(OpenClip, self.architecture, self.weights[1], self.device))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        def has_rules(prompt: Prompt) -> bool:
            if "include" in prompt.expect:
                check(prompt.expect)
            return "include" in prompt.expect

        needs = 'has a task of GenEval, as `"expect": {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}` is one'
        refuse_none(prompts, has_rules, needs)

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        value_B = torch.full((len(prompts),), torch.nan)
        asked = [i for i, prompt in enumerate(prompts) if "include" in prompt.expect]
        for i in asked:
            check(prompts[i].expect)
        for start in range(0, len(asked), Mask2Former.batch):  # masks are kept no longer than they are needed
            few = asked[start : start + Mask2Former.batch]
            images = to_8bit(images_BCHW[few].to(self.device, torch.float32))
            for i, image_CHW, seen in zip(few, images, self.detector.see(images, CONFIDENCE), strict=True):
                value_B[i] = float(self._is_right(image_CHW, prompts[i], seen))
        return value_B

    def _is_right(self, image_CHW: Tensor, prompt: Prompt, seen: dict[str, list[Detection]]) -> bool:
        found = {name: counted(detections, prompt.expect["tag"]) for name, detections in seen.items()}
        return not shortcomings(
            prompt.expect, found, lambda name, boxes: self.colours(image_CHW, name, boxes)
        )


class ColourClassifier:
    """CLIP's zero-shot answer to which of ten colours an object has."""

    def __init__(self, clip: OpenClip) -> None:
        self.clip = clip
        self._named: dict[str, Tensor] = {}

    def __call__(self, image_CHW: Tensor, name: str, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection of a class in a picture."""
        crops = torch.cat([preprocess(alone(image_CHW, d)[None], self.clip.size) for d in detections])
        seen_ND = image_features(self.clip, crops, lambda prepared, _: prepared)
        return [COLOURS[i] for i in (seen_ND @ self._colours_of(name).T).argmax(1).tolist()]

    def _colours_of(self, name: str) -> Tensor:
        """An embedding [10, D] of each colour of a class: the mean over templates, normalised as they are."""
        if name not in self._named:
            texts = [said.format(colour=colour, name=name) for colour in COLOURS for said in TEMPLATES]
            read = text_features(self.clip, texts).unflatten(0, (len(COLOURS), len(TEMPLATES)))
            self._named[name] = F.normalize(read.mean(1), dim=-1)
        return self._named[name]


def alone(image_CHW: Tensor, detection: Detection) -> Tensor:
    """An object cut out to its box, the rest of the box in grey."""
    assert detection.mask_HW is not None, "Mask2Former gives masks"
    left, top, right, bottom = (round(side) for side in detection.box)
    return torch.where(detection.mask_HW, image_CHW, GREY)[:, top:bottom, left:right]
