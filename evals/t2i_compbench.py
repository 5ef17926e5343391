"""T2I-CompBench's rules: what a prompt names, where boxes lie to each other, how many there are (Huang et al., NeurIPS 2023, arXiv 2307.06350).

Pure functions; who detects and who answers questions is in `evals/scorers/t2i_*.py`. The rules are as its papers and numbers state them; nothing is taken
from the part of its repository that is under a non-commercial licence.

Upstream finds nouns by a tagger, spaCy's, which errs on such texts (in "a green rose and a blue tulip" the rose is a verb to it, and is never asked
about). Its prompts have so few forms that here they are read by these, with the words that stand between what is named in them. A box is
(x0, y0, x1, y1) in pixels, y downwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evals.geneval import Box, Detection

# attributes: what is asked about

PHRASES = 8
"""Noun phrases of a prompt that are asked about, as upstream."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COLOURS = _words("red orange yellow green blue purple pink brown black white gray grey gold silver tan beige")
ARTICLES = _words("a an the its their his her")
"""Begin a phrase."""
DETERMINERS = ARTICLES | _words("one two many other")
"""Begin a phrase, the last four unless they stand behind another one ("the other"); alone they are none."""
EXPRESSIONS = ("stood tall", "side by side", "in front of", "one side", "the most", "her beloved")
"""Name nothing in the picture."""
BETWEEN = _words(
    """
    above against at between both by down for from in into near nearby next of on that through to up which while with he
    arranged attached attract attracted bake beat boil controlled cook created cut decorate display displayed dominated fascinated flash
    floated flowed hang has held him hold holds hung hydrated illuminate is are were jot keep kept led left made mix mounted nap neatly
    parked perch placed pound measure propelled provide provided reaching reads release rest sat serve serving shines sit sits sitting
    sparkled stacked standing stir stood struggled used visible waving write warm whitish empty matching tiled useful necessary
    """
)
"""Stand between phrases: prepositions, verbs, and adjectives that stand alone."""
VERBS_BEFORE_OBJECTS = _words("features shape slice")
"""Verbs where an object follows ("a dining area features a table"), else nouns ("the features of the boat")."""
NOT_ASKED = _words("top side") | {"the side", "the left", "the right"}
"""Upstream leaves them out: they are places."""


def noun_phrases(text: str) -> list[str]:
    """What a prompt names, with its attributes, in its order: of "a red book and a yellow vase" these two.

    Base noun phrases, without what an "of" or a "with" adds, as upstream's tagger gives where it does not err. Colours joined by "and", and adjectives by a
    comma, are one attribute ("a black and white cat"). Exact on the validation prompts of colour, shape and texture (`tests/test_t2i_compbench.py`); other
    prompts are read right in as far as they have these forms and words.
    """
    plain = re.sub(
        "|".join(rf"\b{expression}\b" for expression in EXPRESSIONS), ";", text, flags=re.IGNORECASE
    )
    tokens = re.findall(r"[A-Za-z][\w'-]*|[^\sA-Za-z]+", plain)
    phrases: list[list[str]] = [[]]
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        word = token.lower()
        if word in ARTICLES or (word in DETERMINERS and before.lower() not in DETERMINERS):
            phrases.append([token])
        elif _stands_between(before.lower(), word, after.lower()):
            phrases.append([])
        else:
            phrases[-1].append(token)
    named = [
        " ".join(phrase).replace(" ,", ",") for phrase in phrases if {w.lower() for w in phrase} - DETERMINERS
    ]
    return [phrase for phrase in named if phrase.lower() not in NOT_ASKED][:PHRASES]


def _stands_between(before: str, word: str, after: str) -> bool:
    """Whether a word, or a punctuation mark, belongs to no phrase."""
    if word == "and":
        return not (before in COLOURS and after in COLOURS)
    if word == ",":
        return before not in COLOURS | {"long"}
    if word in VERBS_BEFORE_OBJECTS:
        return after in COLOURS | DETERMINERS
    return word in BETWEEN or not word[0].isalpha()


def binding(probabilities: Iterable[float]) -> float:
    """B-VQA: the product of the probabilities of "yes" over the noun phrases, so that one that is not there, or has another attribute, spoils all."""
    product = 1.0
    for probability in probabilities:
        product *= probability
    return product


# spatial relations in the plane

OVERLAP = 0.1
"""IoU from which two objects do not lie beside each other any more."""
NEAR = 150.0
"""Pixels, of a picture of `SIDE`, within which one object is near another."""
SIDE = 512
"""Pixels of the longer side for which `NEAR` is stated: upstream takes pixels as they come, so that its score depends on the picture's size."""
SIDES = ("left", "right", "top", "bottom")
_RELATION = r"((?:on|to) (?:the )?(?:left|right|top|bottom|side) of|next to|near)"
_RELATED = re.compile(rf"(?:an?|the) ([\w' -]+?) {_RELATION} (?:an?|the) ([\w' -]+?)\.?", re.IGNORECASE)


class Related(NamedTuple):
    """What a prompt of a spatial relation says."""

    first: str
    relation: str
    """One of `SIDES`, or "near"."""
    second: str


def related(text: str) -> Related | None:
    """Two objects and the relation of the first to the second; None where a prompt has another form."""
    match = _RELATED.fullmatch(text.strip())
    return Related(match[1].lower(), place(match[2]), match[3].lower()) if match else None


def place(relation: str, upstream: bool = False) -> str:
    """A relation in words as one of `SIDES`, or "near", which is what "next to" and "on side of" mean too.

    "on top of" is "on the top of": upstream knows the second alone, and scores 0 for the first whatever is in the picture.

    Args:
        relation: in words.
        upstream: that "on top of" is no relation, "", as there; no prompt of the spatial category has it.
    """
    words = relation.lower().split()
    if upstream and words == ["on", "top", "of"]:
        return ""
    return next((side for side in SIDES if side in words), "near")


def position(relation: str, a: Box, b: Box, near: float = NEAR) -> float:
    """How far a box has the relation to another, 0 to 1.

    For a side: 1 where the centres differ more on the relation's axis than on the other, and in its sense, and the boxes do not overlap by `OVERLAP`; as much
    less as they overlap more. For nearness: 1 where the centres differ by less than `near` on either axis, else `near` over the larger difference.

    Args:
        relation: one of `SIDES`, or "near"; "" is nowhere, and 0.
        a: of the first object.
        b: of the second.
        near: pixels.
    """
    dx, dy = ((b[i] + b[i + 2] - a[i] - a[i + 2]) / 2 for i in (0, 1))
    if relation == "near":
        return 1.0 if min(abs(dx), abs(dy)) < near else near / max(abs(dx), abs(dy))
    if not relation:
        return 0.0
    along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
    sense = along if relation in ("left", "top") else -along
    if sense <= 0 or abs(along) <= abs(across):
        return 0.0
    overlap = iou(a, b)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def spatial(first: Detection | None, second: Detection | None, placed: float) -> float:
    """A quarter for the confidence of each object and half for their position; what is below one half counts nothing.

    So a missing object gives 0: its quarter and the position are lacking.
    """
    confidences = sum(found.confidence for found in (first, second) if found is not None)
    score = confidences / 4 + (placed / 2 if first is not None and second is not None else 0.0)
    return score if score >= 0.5 else 0.0


# numeracy

SAME = 0.9
"""IoU, or share of a box that lies in another, above which two boxes are one object."""
NUMBERS = {
    word: number
    for number, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1
    )
}
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "mice": "mouse", "knives": "knife"}


def counts(text: str) -> list[tuple[str, int]]:
    """Objects, in the singular, with how many of each a prompt asks for, in its order.

    A number and the word behind it, wherever they stand ("four trains carried four people"). "a" is a number too in the list that a prompt begins with, but not behind
    it ("six people gathered for a picnic").
    """
    begun_with = re.match(r"(?:\w+ \w+(?:,? and |, ))*\w+ \w+|", text.lower())
    assert begun_with is not None, "it may be empty"
    return [
        (singular(match[2]), NUMBERS.get(match[1], 1))
        for match in re.finditer(rf"\b(an?|{'|'.join(NUMBERS)}) (\w+)", text.lower())
        if match[1] in NUMBERS or match.end() <= begun_with.end()
    ]


def singular(noun: str) -> str:
    """The singular of a noun of the benchmark's, as detectors are asked for it."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    if noun.endswith(("ches", "shes", "xes", "toes", "sses")):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us")) else noun


def merged(detections: Sequence[Detection]) -> list[Detection]:
    """The most confident detections of a class of which none lies, by more than `SAME`, on or in another."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda d: d.confidence, reverse=True):
        if all(_share_in_common(detection.box, other.box) <= SAME for other in kept):
            kept.append(detection)
    return kept


def numeracy(asked: Sequence[tuple[str, int]], found: dict[str, int]) -> float:
    """Mean over the objects of one half for being there and one half for the exact number.

    Args:
        asked: objects and how many of each.
        found: object to how many were seen.
    """
    halves = [(found.get(name, 0) > 0) + (found.get(name, 0) == number) for name, number in asked]
    return sum(halves) / (2 * len(asked))


# boxes


def iou(a: Box, b: Box) -> float:
    """Intersection over union of boxes as regions of the plane: GenEval's, in `evals.geneval`, has one pixel more."""
    inner = _inner(a, b)
    outer = _area(a) + _area(b) - inner
    return inner / outer if outer else 0.0


def _share_in_common(a: Box, b: Box) -> float:
    """The larger of IoU and how much of the smaller box lies in the other, which is never less."""
    smaller = min(_area(a), _area(b))
    return _inner(a, b) / smaller if smaller else 0.0


def _inner(a: Box, b: Box) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
