"""GenEval's rules: which detections count, how boxes lie to each other, and what a picture lacks of what its prompt asks for.

Ghosh et al., NeurIPS 2023, arXiv 2310.11513; `evaluation/evaluate_images.py` of djghosh13/geneval at af4902f (MIT). Pure functions; who
detects and who names colours is in `evals/scorers/geneval.py`. A box is (x0, y0, x1, y1) in pixels, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]

# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
"""COCO's 80 classes in COCO's order; GenEval calls its mouse, remote and keyboard so that a prompt is plain."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# fmt: on
RELATIONS = ("left of", "right of", "above", "below")

CONFIDENCE = 0.3
"""A detection counts above it."""
COUNTING_CONFIDENCE = 0.9
"""The same for prompts with the tag "counting", where a doubtful box more is a wrong answer."""
MOST = 16
"""Detections of a class that are looked at, the most confident ones."""
SHARE_OF_SIZE = 0.1
"""Of both boxes' sizes: by which their centres may differ and lie at one place."""


@dataclass(frozen=True)
class Detection:
    """One object that a detector saw."""

    box: Box
    confidence: float
    mask_HW: Tensor | None = field(default=None, compare=False, repr=False)
    """Its pixels, True, of the picture's size."""


ColoursOf = Callable[[str, Sequence[Detection]], Sequence[str]]
"""A class and detections of it to the colour of each, of `COLOURS`."""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of boxes whose last pixel is inside: a side is one pixel longer than its ends are apart."""
    inner = _area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    outer = _area(*a) + _area(*b) - inner
    return inner / outer if outer else 0.0


def _area(x0: float, y0: float, x1: float, y1: float) -> float:
    return max(x1 - x0 + 1, 0) * max(y1 - y0 + 1, 0)


def counted(detections: Iterable[Detection], tag: str, max_overlap: float = 1.0) -> list[Detection]:
    """The detections of one class that count, the most confident first.

    Args:
        detections: of one class.
        tag: of the prompt.
        max_overlap: `iou` with a more confident one from which a detection is dropped; 1, as in every published number, drops none.
    """
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    sure = sorted((d for d in detections if d.confidence > least), key=lambda d: d.confidence, reverse=True)
    kept: list[Detection] = []
    for detection in sure[:MOST]:
        if max_overlap == 1 or all(iou(other.box, detection.box) < max_overlap for other in kept):
            kept.append(detection)
    return kept


def relations(a: Box, b: Box) -> set[str]:
    """Where `a` lies as seen from `b`, of `RELATIONS`: none, one, or one of each axis.

    Of the offset of the centres, a tenth of both sizes does not count on each axis; what is left must be more than half of the whole
    offset's length.
    """
    offset = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    left = [
        math.copysign(max(abs(o) - SHARE_OF_SIZE * size, 0), o) for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(distance) < 1e-3 for distance in left):
        return set()
    dx, dy = (distance / math.hypot(*offset) for distance in left)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, does in holds.items() if does}


def shortcomings(
    wanted: Mapping[str, Any], found: Mapping[str, Sequence[Detection]], colours_of: ColoursOf
) -> list[str]:
    """What a picture lacks of what its prompt asks for, a sentence each; empty where it is right.

    Args:
        wanted: `include`, items with a class, a count and maybe a color and a position, [relation, number of the item that it refers to];
            and maybe `exclude`, items with a class and a count that must not be reached.
        found: class to its detections that count, the most confident first.
        colours_of: asked about the `count` most confident ones of a class, and only where a colour matters.
    """
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for item in wanted["include"]:
        boxes = found.get(item["class"], ())[: item["count"]]
        against = (
            _too_few(item, boxes) or _off_colour(item, boxes, colours_of) or _misplaced(item, boxes, matched)
        )
        matched.append(None if against else boxes)
        reasons += [against] if against else []
    for item in wanted.get("exclude", ()):
        if (count := len(found.get(item["class"], ()))) >= item["count"]:
            reasons.append(f"expected less than {item['count']} {item['class']}, found {count}")
    return reasons


def _too_few(item: Mapping[str, Any], boxes: Sequence[Detection]) -> str | None:
    if len(boxes) >= item["count"]:
        return None
    return f"expected {item['count']} {item['class']}, found {len(boxes)}"


def _off_colour(item: Mapping[str, Any], boxes: Sequence[Detection], colours_of: ColoursOf) -> str | None:
    """All that were found must be of the colour, if one is asked for."""
    if "color" not in item:
        return None
    colours = colours_of(item["class"], boxes)
    if all(colour == item["color"] for colour in colours):
        return None
    return f"expected {item['color']} {item['class']}, found {', '.join(colours)}"


def _misplaced(
    item: Mapping[str, Any], boxes: Sequence[Detection], matched: Sequence[Sequence[Detection] | None]
) -> str | None:
    """All that were found must have the relation to all of the item that they refer to, which must be right itself."""
    if "position" not in item:
        return None
    relation, target = item["position"]
    others = matched[target]
    if others is None:
        return f"no target for {item['class']} to be {relation}"
    for box in boxes:
        for other in others:
            if relation not in (seen := relations(box.box, other.box)):
                return f"expected {item['class']} {relation} its target, found {' and '.join(sorted(seen)) or 'neither side'}"
    return None


def check(wanted: Mapping[str, Any]) -> None:
    """Refuse what is not as in GenEval's `evaluation_metadata.jsonl`, before a detector is asked about it.

    Raises:
        ValueError: naming what is wrong and the choices.
    """
    if not isinstance(wanted.get("tag"), str) or not wanted.get("include"):
        raise ValueError(f"`expect` must have GenEval's tag and a list `include`, but is {wanted!r}")
    for number, item in enumerate(wanted["include"]):
        _check_item(item)
        _one_of(item.get("color", COLOURS[0]), COLOURS, "color")
        relation, target = item.get("position", (RELATIONS[0], 0))
        _one_of(relation, RELATIONS, "position")
        if "position" in item and target not in range(number):
            raise ValueError(f"`expect`: item {number} refers to item {target!r}, not to one before it")
    for item in wanted.get("exclude", ()):
        _check_item(item)


def _check_item(item: Mapping[str, Any]) -> None:
    _one_of(item.get("class"), CLASSES, "class")
    if not isinstance(item.get("count"), int) or item["count"] < 1:
        raise ValueError(f"`expect`: the count of {item['class']} is {item.get('count')!r}, not 1 or more")


def _one_of(value: Any, choices: Sequence[str], what: str) -> None:
    if value not in choices:
        raise ValueError(f"`expect`: there is no {what} {value!r}: choose from {', '.join(choices)}")
