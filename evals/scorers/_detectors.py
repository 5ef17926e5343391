"""Detectors of others, on transformers' classes, and the paper's detection score on top of them.

Two are zero-shot, asked for objects by name: OWLv2 and Grounding DINO. Mask2Former knows COCO's 80 classes and gives pixels, as GenEval's
rules need them. A picture is seen as its 8-bit file would be, level by level as the libraries' own image processors (those on Pillow) would
hand it over, but as tensors, in batches and on the device. No picture is padded to its neighbours' size and no name to its neighbours'
length, so that none can influence another.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from evals.checkpoints import first_line, quiet
from evals.geneval import CLASSES, Detection
from evals.scorers import Scope, _preprocess
from evals.scorers._asked import refuse_none
from evals.scorers._preprocess import resize, to_8bit
from evals.weights import Weights
from prompts import Prompt

CODE = (Path(__file__), Path(str(_preprocess.__file__)))
"""What the scores of every detector depend on, for `evals.scorers.version_of`."""

OWLV2 = Weights(
    repository="google/owlv2-base-patch16-ensemble",
    files=(
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
    ),
    licence="Apache-2.0",
    free=True,
    revision="cfd3195ba4ea9592eec887ded089f4c08eff231d",
    sha256=(
        "ba9df8c25a4b8461887dd0a93d9252c9cd84697fe8d49a9d8794ce409af9acb2",
        "e1e130b9e404cf91a75ad45644c1da9d7fa5284085eecc864266a6923efb99e7",
        "cf3e396635b797ee1a464e1b2836e98748f8edac19e89aaa2c93b55ac15b0064",
        "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
        "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
        "d6e2b9cf664efbad2d22998b8d3da986abcbeed3e0825ad33605c9401f9cf73e",
        "b55cda6198e152ded427c8a9b3faf1cccf27a7fa080697a62f6ff143f511f44f",
    ),
)
GROUNDING_DINO = Weights(
    repository="IDEA-Research/grounding-dino-base",
    files=(
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ),
    licence="Apache-2.0",
    free=True,
    revision="12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
    sha256=(
        "eda416dae6f49419ff831b1c190ec430a060b19aae688dbaf2425a075b650608",
        "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21",
        "8454179ba95e2ad22947835aad7b45862a601fc0055ab88bf1ee70892d3aea60",
        "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        "d40ab645b68211910b9170d22433d43186a6ec8ee6fd10ba170524b25bf4fb56",
    ),
)
MASK2FORMER = Weights(
    repository="facebook/mask2former-swin-small-coco-instance",
    files=("config.json", "model.safetensors"),
    licence='unclear: "other" on its page, without a name',
    free=False,
)

IN_PLAIN_WORDS: Mapping[str, str] = {
    "coffeemaker": "coffee maker",
    "hair drier": "hair dryer",
    "lifejacket": "life jacket",
    "poker card": "playing card",
}
"""Names of the paper's objects that captions, which text encoders have learnt from, write otherwise.

Only these: eight labels that are no English ("rifle, gun", "hamimelon") are put right where prompts are made (`prompts/sets/composition.csv`), and a
name with two meanings (a mouse, a seal, an iron) is asked for as the prompt has it: the picture may show either.
"""


def plain(name: str) -> str:
    """An object's name as detectors are asked for it: lower case, in letters, digits and dashes, with single blanks.

    OWLv2 was trained on names in this form (`label_ops` of its code); a full stop would end Grounding DINO's phrase, a comma be a part of it.

    Raises:
        ValueError: where nothing is left.
    """
    lower = name.lower()
    words = re.sub(r"[^a-z0-9-]+", " ", IN_PLAIN_WORDS.get(lower, lower)).strip()
    if not words:
        raise ValueError(f"a detector cannot be asked for {name!r}: an object's name is written in letters")
    return words


def detection_score(confidences: Sequence[float]) -> float:
    """Paper Eq 13: mean over the objects that a prompt names of the best detection confidence of each, 0 where there is none.

    An object that is named twice ("a cat and a cat") counts twice, with the same detection.
    """
    return float(np.mean(confidences))


def object_names(prompt: Prompt) -> list[str]:
    """What `expect.objects` names, in its order, as detectors are asked for it; empty where it names nothing.

    Raises:
        ValueError: where it is no list of objects with a name.
    """
    objects = prompt.expect.get("objects", [])
    try:
        return [plain(o["name"]) for o in objects]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"prompt {prompt.id!r}: `expect.objects` must be a list of objects with a name, but is {objects!r}"
        ) from error


class ZeroShot(ABC):
    """A detector that is asked for objects by name."""

    threshold: float
    """Confidence above which a box is a detection: where the library's post-processing has it unless told otherwise."""

    @abstractmethod
    def __init__(self, weights: Weights, device: torch.device | str) -> None:
        """Open the weights on a device."""

    @abstractmethod
    def best(self, images_BCHW: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """The highest confidence of each name in each image, in [0, 1], above the threshold or not.

        Args:
            images_BCHW: float32 RGB in [0, 1].
            names: of each image, plain ones.
        """


class DetectionScore:
    """The detection score (Eq 13) by one detector, which a scorer file names with its weights; `objects` explains it."""

    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool | None = True
    scope: Scope = "image"
    detector: type[ZeroShot]
    weights: tuple[Weights, ...]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._opened: ZeroShot | None = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        needs = 'names an object, as `"expect": {"objects": [{"name": "cat"}]}` does'
        refuse_none(prompts, lambda prompt: bool(object_names(prompt)), needs)

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor:
        value_B = torch.full((len(prompts),), torch.nan)
        names = {i: named for i, prompt in enumerate(prompts) if (named := object_names(prompt))}
        if not names:
            return value_B
        if self._opened is None:
            self._opened = self.detector(self.weights[0], self.device)
        best = self._opened.best(images_BCHW[list(names)], list(names.values()))
        for (i, named), confidence in zip(names.items(), best, strict=True):
            seen = [confidence[name] for name in named]
            value_B[i] = detection_score([c if c > self._opened.threshold else 0.0 for c in seen])
        return value_B


class Owlv2(ZeroShot):
    """OWLv2 (Minderer et al., NeurIPS 2023, arXiv 2306.09683): every patch of a ViT is a box, compared with names by CLIP's text encoder.

    Image and name meet in one cosine at the end, so a picture is encoded once, a name once in a run, and no name changes another's score.
    """

    threshold = 0.1
    batch = 8
    """Images at a time: 3,600 patches each at 960 pixels."""
    caption = "a photo of a {}"
    """One of the templates that it was trained with, and the one that transformers documents; no "an", as none of them has one."""

    def __init__(self, weights: Weights, device: torch.device | str) -> None:
        from transformers import CLIPTokenizer, Owlv2ForObjectDetection
        from transformers.models.owlv2 import Owlv2ImageProcessorPil

        self.model = open_part(Owlv2ForObjectDetection, weights).to(device)
        self.tokenizer = open_part(CLIPTokenizer, weights)
        self.shape = open_part(Owlv2ImageProcessorPil, weights)
        self.device = device
        self._embedded: dict[str, Tensor] = {}

    def best(self, images_BCHW: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """See `ZeroShot`."""
        found = []
        for start in range(0, len(names), self.batch):
            few = slice(start, start + self.batch)
            distinct = sorted({name for named in names[few] for name in named})
            confidence_BN = self._confidences(images_BCHW[few].to(self.device), distinct).tolist()
            for named, confidence_N in zip(names[few], confidence_BN, strict=True):
                of = dict(zip(distinct, confidence_N, strict=True))
                found.append({name: of[name] for name in named})
        return found

    def _confidences(self, images_BCHW: Tensor, names: Sequence[str]) -> Tensor:
        """Best confidence of every name in every image, [B, N]."""
        features_BhwD = self.model.image_embedder(self.preprocess(images_BCHW))[0]
        queries_BND = torch.stack([self._embed(name) for name in names]).expand(len(images_BCHW), -1, -1)
        logits_BPN = self.model.class_predictor(features_BhwD.flatten(1, 2), queries_BND)[0]
        confidence_BN: Tensor = logits_BPN.amax(1).sigmoid()
        return confidence_BN

    def _embed(self, name: str) -> Tensor:
        """A name's normalised embedding [D], each name by itself.

        Raises:
            ValueError: where it is longer than the text encoder reads.
        """
        if name not in self._embedded:
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(self.caption.format(name), return_tensors="pt").to(self.device)
            if (length := tokens.input_ids.shape[1]) > longest:
                raise ValueError(
                    f"the object {name!r} makes a caption of {length} tokens, OWLv2 reads {longest}: name it in fewer words"
                )
            text_D = self.model.owlv2.get_text_features(tokens.input_ids).pooler_output[0]
            self._embedded[name] = text_D / text_D.norm()
        return self._embedded[name]

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Pad to a square, below and right, resize as `antialiased` says, normalise."""
        height, width = images_BCHW.shape[-2:]
        side = max(height, width)
        squares_BCHW = F.pad(to_8bit(images_BCHW), (0, side - width, 0, side - height))
        rows, columns = (
            torch.from_numpy(antialiased(side, size)).to(images_BCHW.device)
            for size in (self.shape.size["height"], self.shape.size["width"])
        )
        resized_BCHW = (rows @ squares_BCHW.double() @ columns.T).to(images_BCHW.dtype)
        return normalise(resized_BCHW, self.shape)


class GroundingDino(ZeroShot):
    """Grounding DINO (Liu et al., ECCV 2024, arXiv 2303.05499): a detector whose encoder and decoder attend to the text.

    Pictures attend to all of a caption, so each object is a caption of its own, which is a pass of its own. The confidence of a box is the mean
    over the tokens of the name, as the authors evaluate on COCO, not the best token, as the library's post-processing has it: by the
    best token a ball would be a "baseball bat".
    """

    threshold = 0.25
    batch = 4
    """Pairs of image and name at a time: some 13,000 tokens of four scales each at 800 pixels."""

    def __init__(self, weights: Weights, device: torch.device | str) -> None:
        from transformers import BertTokenizer, GroundingDinoForObjectDetection
        from transformers.models.grounding_dino import GroundingDinoImageProcessorPil

        self.model = open_part(GroundingDinoForObjectDetection, weights).to(device)
        self.tokenizer = open_part(BertTokenizer, weights)
        self.shape = open_part(GroundingDinoImageProcessorPil, weights)
        self.device = device

    def best(self, images_BCHW: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """See `ZeroShot`."""
        tokens = {name: self._tokens(name) for named in names for name in named}
        pairs = [(i, name) for i, named in enumerate(names) for name in dict.fromkeys(named)]
        found: list[dict[str, float]] = [{} for _ in names]
        for length in sorted({len(ids) for ids in tokens.values()}):  # of one length, so that none is padded
            alike = [(i, name) for i, name in pairs if len(tokens[name]) == length]
            for start in range(0, len(alike), self.batch):
                few = alike[start : start + self.batch]
                ids_BL = torch.tensor([tokens[name] for _, name in few], device=self.device)
                confidence_B = self._confidences(
                    images_BCHW[[i for i, _ in few]].to(self.device), ids_BL
                ).tolist()
                for (i, name), confidence in zip(few, confidence_B, strict=True):
                    found[i][name] = confidence
        return found

    def _tokens(self, name: str) -> list[int]:
        """[CLS], those of the name, the full stop, [SEP].

        Raises:
            ValueError: where they are more than the text encoder reads.
        """
        ids: list[int] = self.tokenizer(f"{name}.").input_ids
        longest = self.model.config.max_text_len
        if len(ids) > longest:
            raise ValueError(
                f"the object {name[:40]!r}... has {len(ids)} tokens, Grounding DINO reads {longest}: name it in fewer words"
            )
        return ids

    def _confidences(self, images_BCHW: Tensor, ids_BL: Tensor) -> Tensor:
        """Best confidence of each image's own name, [B]."""
        logits_BQL = self.model(self.preprocess(images_BCHW), ids_BL).logits
        confidence_B: Tensor = logits_BQL[:, :, 1 : ids_BL.shape[1] - 2].sigmoid().mean(2).amax(1)
        return confidence_B

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Resize with Pillow's bilinear filter, keeping the aspect, and normalise."""
        from transformers.image_transforms import get_size_with_aspect_ratio

        limits = self.shape.size["shortest_edge"], self.shape.size["longest_edge"]
        size = get_size_with_aspect_ratio(tuple(images_BCHW.shape[-2:]), *limits)
        return normalise(resize(images_BCHW, size, "bilinear"), self.shape)


class Mask2Former:
    """Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527) with a Swin-S on COCO's instances, closed-set: GenEval's detector.

    The architecture and training set of GenEval's, with the weights of the paper's authors instead of mmdetection's. Pictures have the size that
    GenEval and the paper test at, `short` and `long`, whatever the preprocessing file beside the weights says: that of a sister model has 384.
    """

    batch = 4
    short, long = 800, 1333
    """Pixels of the shorter side, unless the longer one had more than the second."""
    queries = 100
    """The best pairs of query and class that are looked at, as in the paper."""

    def __init__(self, weights: Weights, device: torch.device | str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation
        from transformers.models.mask2former import Mask2FormerImageProcessorPil

        self.model = open_part(Mask2FormerForUniversalSegmentation, weights).to(device)
        if (known := self.model.config.num_labels) != len(CLASSES):
            raise ValueError(f"{weights.repository} knows {known} classes, not COCO's {len(CLASSES)}")
        self.shape = Mask2FormerImageProcessorPil()

    def see(self, images_BCHW: Tensor, least: float) -> list[dict[str, list[Detection]]]:
        """For each image, its classes to what was seen of them with more than the least confidence."""
        found = []
        size = (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))
        for few_BCHW in images_BCHW.split(self.batch):
            pixels_BCHW = self.preprocess(few_BCHW)
            seen = self.model(pixels_BCHW)
            through = [(int(pixels_BCHW.shape[-2]), int(pixels_BCHW.shape[-1])), size]
            for class_logits_QK, mask_logits_Qhw in zip(
                seen.class_queries_logits, seen.masks_queries_logits, strict=True
            ):
                found.append(instances(class_logits_QK, mask_logits_Qhw, through, least, self.queries))
        return found

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Resize with Pillow's bilinear filter to multiples of 32, nearly keeping the aspect, and normalise."""
        from transformers.image_transforms import get_size_with_aspect_ratio

        size = get_size_with_aspect_ratio(tuple(images_BCHW.shape[-2:]), self.short, self.long)
        divisor = self.shape.size_divisor
        height, width = (-(-side // divisor) * divisor for side in size)
        return normalise(resize(images_BCHW, (height, width), "bilinear"), self.shape)


def instances(
    class_logits_QK: Tensor,
    mask_logits_Qhw: Tensor,
    through: Sequence[tuple[int, int]],
    least: float,
    most: int,
) -> dict[str, list[Detection]]:
    """Mask2Former's answer for one image as objects: the paper's inference for instances, with mmdetection's boxes about masks.

    The confidence of an object is its class's probability times the mean probability of the pixels in its mask.

    Args:
        class_logits_QK: of each query and COCO's classes, the last one "nothing".
        mask_logits_Qhw: of each query's mask.
        through: sizes to which masks are enlarged in turn, the last the image's.
        least: confidence above which an object is kept.
        most: pairs of query and class, the best ones.
    """
    probability_QK = class_logits_QK.softmax(-1)[:, :-1]
    best_N, pairs_N = probability_QK.flatten().topk(min(most, probability_QK.numel()))
    pairs_N, best_N = pairs_N[best_N > least], best_N[best_N > least]  # a mask can only lower it
    found: dict[str, list[Detection]] = {}
    for pair, probability in zip(pairs_N.tolist(), best_N.tolist(), strict=True):
        query, label = divmod(pair, probability_QK.shape[1])
        logits_HW = mask_logits_Qhw[query]
        for size in through:
            logits_HW = F.interpolate(logits_HW[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        mask_HW = logits_HW > 0
        area = mask_HW.sum()
        confidence = probability * float((logits_HW.sigmoid() * mask_HW).sum() / (area + 1e-6))
        if confidence > least:
            found.setdefault(CLASSES[label], []).append(Detection(box_about(mask_HW), confidence, mask_HW))
    return found


def box_about(mask_HW: Tensor) -> tuple[float, float, float, float]:
    """The box about a mask that has a pixel; its right and lower ends are one behind the last pixel, as mmdetection's `mask2bbox` has them."""
    columns, rows = (mask_HW.any(axis).nonzero().flatten() for axis in (0, 1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@lru_cache(maxsize=16)
def antialiased(before: int, after: int) -> npt.NDArray[np.float64]:
    """What each pixel of a side of `after` takes from one of `before`, [after, before], as OWLv2's image processor resizes.

    It is scikit-image's resize: a Gaussian blur where the picture gets smaller, then linear interpolation, both with mirrored edges. All of it
    is linear and acts on each side by itself, so what scipy makes of the unit vectors is the matrix.
    """
    from scipy import ndimage

    units = np.eye(before)
    if after < before:
        units = ndimage.gaussian_filter1d(units, (before / after - 1) / 2, axis=0, mode="mirror")
    matrix: npt.NDArray[np.float64] = ndimage.zoom(
        units, (after / before, 1), order=1, mode="mirror", grid_mode=True
    )
    return matrix


def normalise(images_BCHW: Tensor, shape: Any) -> Tensor:
    """Centre and scale the channels by an image processor's mean and deviation."""
    mean, std = (
        images_BCHW.new_tensor(numbers).view(3, 1, 1) for numbers in (shape.image_mean, shape.image_std)
    )
    return (images_BCHW - mean) / std


def open_part(kind: Any, weights: Weights) -> Any:
    """A model in float32 and evaluation mode, a tokenizer or an image processor, from the folder of its weights and from nowhere else.

    Raises:
        ValueError: for files that cannot be had (`evals.weights`), are damaged, or are those of another model: transformers would fill in
            what is missing with random numbers and only log it.
    """
    from transformers import PreTrainedModel
    from transformers.utils import logging

    folder = weights.folder()
    is_model = issubclass(kind, PreTrainedModel)
    for_models = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    logging.disable_progress_bar()
    try:
        with quiet(logging):
            opened = kind.from_pretrained(folder, local_files_only=True, **(for_models if is_model else {}))
    except Exception as error:  # the libraries have no common kind, and tokenizers has none at all
        raise ValueError(f"{folder} cannot be opened as {weights.repository}: {first_line(error)}") from error
    if not is_model:
        return opened
    model, report = opened
    # older libraries stored what is now computed, such as the indices of Swin's position bias
    computed = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    missing = {*report["missing_keys"], *map(str, report["mismatched_keys"])}
    foreign = {name for name in report["unexpected_keys"] if name.rsplit(".", 1)[-1] not in computed}
    for what, names in (("missing", missing), ("foreign", foreign)):
        if names:
            raise ValueError(
                f"{folder} holds the weights of another model than {weights.repository}: {len(names)} tensors are {what}, {min(names)} is one"
            )
    return model
