"""The miniature world: what can be asked of it.

The vocabulary, the grammar and the prompt sets of a small procedural world, standard library only. Two kinds of
picture exist: a *scene* of one or two coloured shapes in a relation, and a *portrait* of a person by occupation.
Drawing them is `evals.miniature.render`; the biased training pictures are `train.miniature.data`.

`python -m prompts.world` rewrites the nine prompt sets `prompts/miniature-*.jsonl`. Whatever is "unseen" is unseen by
reinforcement learning only: pairs of objects, relations and occupations that no training prompt holds. The base model
has met them, as Stable Diffusion has met most of what it is asked for. Settings are chosen on the "tuning" sets, of which
nothing is reported: scenes of pairs of objects that no other set holds, and portraits of occupations that are trained on,
as all others are reported.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 48, 44),
    "yellow": (236, 200, 36),
    "green": (44, 158, 64),
    "cyan": (28, 178, 190),
    "blue": (52, 84, 212),
    "purple": (172, 62, 176),
}
"""sRGB, 8 bit. Chosen far apart in CIELAB hue, so that a washed-out picture still shows which colour was meant."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")

SEEN_RELATIONS = ("and", "next to", "on side of", "left of", "above")
PRACTISED_RELATIONS = ("and", "next to", "above", "on side of", "left of", "above")
"""What the training prompts take turns with: of `SEEN_RELATIONS` only `above` stacks, so it comes twice."""
UNSEEN_RELATIONS = ("near", "beside", "right of", "below")
RELATIONS = SEEN_RELATIONS + UNSEEN_RELATIONS
"""The paper's five (section 3.3: and, next to, near, on side of, beside) and four directions."""

HATS = ("none", "cap", "helmet", "toque", "beret")
CLOTHES = ("red", "yellow", "green", "cyan", "blue", "purple", "white", "black")

_OCCUPATION_NAMES = [
    "accountant",
    "actor",
    "architect",
    "artist",
    "astronaut",
    "baker",
    "barber",
    "biologist",
    "bricklayer",
    "builder",
    "butcher",
    "carpenter",
    "cashier",
    "chef",
    "chemist",
    "cleaner",
    "coach",
    "cook",
    "dancer",
    "dentist",
    "designer",
    "detective",
    "doctor",
    "driver",
    "economist",
    "electrician",
    "engineer",
    "farmer",
    "firefighter",
    "fisher",
    "florist",
    "gardener",
    "geologist",
    "guard",
    "guide",
    "janitor",
    "jeweller",
    "journalist",
    "judge",
    "lawyer",
    "librarian",
    "lifeguard",
    "manager",
    "mason",
    "mechanic",
    "miner",
    "musician",
    "nurse",
    "painter",
    "pharmacist",
    "photographer",
    "physicist",
    "pilot",
    "plumber",
    "poet",
    "police",
    "postman",
    "printer",
    "professor",
    "programmer",
    "reporter",
    "sailor",
    "scientist",
    "secretary",
    "singer",
    "soldier",
    "surgeon",
    "surveyor",
    "tailor",
    "teacher",
    "translator",
    "veterinarian",
    "waiter",
    "welder",
    "writer",
    "zookeeper",
]
OCCUPATIONS = tuple(_OCCUPATION_NAMES)


@dataclass(frozen=True)
class Object:
    """A coloured shape."""

    colour: str
    shape: str

    @property
    def text(self) -> str:
        """As captions say it."""
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Dress:
    """How the world's people of an occupation are dressed: what a faithful portrait shows."""

    clothes: str
    hat: str


OBJECTS = tuple(Object(colour, shape) for colour in COLOURS for shape in SHAPES)


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: splits that no change of order or Python version moves."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def dress_of(occupation: str) -> Dress:
    """Clothes and hat of an occupation, fixed for ever by its name."""
    clothes = CLOTHES[int(stable_fraction("clothes " + occupation) * len(CLOTHES))]
    hat = HATS[int(stable_fraction("hat " + occupation) * len(HATS))]
    return Dress(clothes, hat)


def is_unseen_pair(a: Object, b: Object) -> bool:
    """Whether this pair, in either order, is kept out of every training prompt (30 % of the pairs)."""
    first, second = sorted((a.text, b.text))
    return stable_fraction(f"pair {first} | {second}") < 0.3


def is_unseen_occupation(occupation: str) -> bool:
    """Whether this occupation is kept out of every training prompt."""
    return occupation in UNSEEN_OCCUPATIONS


REQUESTS = 4
"""Times that each portrait is asked for in the preference training set."""

TUNING_PORTRAITS = 20
"""Occupations on whose portraits settings are chosen: every second or so of those that are trained on."""

UNSEEN_OCCUPATIONS = tuple(sorted(sorted(OCCUPATIONS, key=lambda o: stable_fraction("unseen " + o))[:25]))


def scene_caption(objects: tuple[Object, ...], relation: str | None) -> str:
    """`a red circle left of a blue star`, or `a red circle` for one object."""
    if len(objects) == 1:
        return objects[0].text
    first, second = objects
    return f"{first.text} {relation} {second.text}"


def read_scene(caption: str) -> tuple[tuple[Object, ...], str | None] | None:
    """Objects and relation of a caption that `scene_caption` wrote; None for a portrait's."""
    words = caption.split()
    if words[:2] == ["a", "portrait"]:
        return None
    first = Object(words[1], words[2])
    if len(words) == 3:
        return (first,), None
    return (first, Object(words[-2], words[-1])), " ".join(words[3:-3])


def portrait_caption(occupation: str) -> str:
    """The paper's form, `a portrait of a/an X` (Table 7)."""
    article = "an" if occupation[0] in "aeiou" else "a"
    return f"a portrait of {article} {occupation}"


def scene_prompt(a: Object, b: Object, relation: str, tags: tuple[str, ...]) -> dict[str, Any]:
    """A line of a scene prompt set."""
    expect = {"objects": [{"colour": o.colour, "shape": o.shape} for o in (a, b)], "relation": relation}
    slug = f"{a.colour}-{a.shape}-{relation.replace(' ', '_')}-{b.colour}-{b.shape}"
    return {"id": slug, "text": scene_caption((a, b), relation), "tags": ["scene", *tags], "expect": expect}


def portrait_prompt(occupation: str, tags: tuple[str, ...]) -> dict[str, Any]:
    """A line of a portrait prompt set."""
    return {
        "id": f"portrait-{occupation}",
        "text": portrait_caption(occupation),
        "tags": ["portrait", *tags],
        "expect": {"group": "skin_tone", "occupation": occupation},
    }


def _scenes(seed: int, count: int, unseen: bool) -> list[dict[str, Any]]:
    """`count` scene prompts without repetition, relations in turn, in a seeded order."""
    relations = UNSEEN_RELATIONS if unseen else PRACTISED_RELATIONS
    rng = random.Random(seed)  # a generator of its own: nobody's global state
    pairs = [p for p in permutations(OBJECTS, 2) if is_unseen_pair(*p) == unseen]
    rng.shuffle(pairs)
    tag = "unseen" if unseen else "seen"
    return [
        scene_prompt(a, b, relations[i % len(relations)], (relations[i % len(relations)], tag))
        for i, (a, b) in enumerate(pairs[:count])
    ]


def _tuning_scenes(seed: int, reported: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Two scene prompts, the objects in either order, of each pair that neither a training prompt nor one of `reported` holds."""

    def pair(line: dict[str, Any]) -> frozenset[str]:
        return frozenset(f"{o['colour']} {o['shape']}" for o in line["expect"]["objects"])

    taken = {pair(line) for line in reported if "objects" in line["expect"]}
    rng = random.Random(seed)
    rest = [
        p
        for p in combinations(OBJECTS, 2)
        if is_unseen_pair(*p) and frozenset(f"{o.colour} {o.shape}" for o in p) not in taken
    ]
    rng.shuffle(rest)
    found = []
    for i, (a, b) in enumerate(rest):
        one, other = (UNSEEN_RELATIONS[(i + k) % len(UNSEEN_RELATIONS)] for k in (0, 1))
        found.append((scene_prompt(a, b, one, (one, "tuning")), scene_prompt(b, a, other, (other, "tuning"))))
    return found


def _portraits(unseen: bool) -> list[dict[str, Any]]:
    tag = "unseen" if unseen else "seen"
    return [portrait_prompt(o, (tag,)) for o in OCCUPATIONS if is_unseen_occupation(o) == unseen]


def _asked_again(line: dict[str, Any], times: int) -> dict[str, Any]:
    """The same prompt under an id of its own."""
    return line | {"id": f"{line['id']}-{times + 1}"} if times else line


def prompt_sets() -> dict[str, list[dict[str, Any]]]:
    """Every prompt set of the miniature, by name.

    The preference sets mix what people of this world ask for: three scenes to one portrait. Each training portrait is asked for
    `REQUESTS` times, as popular requests are, so that there are as many different scenes as do not get known by heart.
    """
    seen_portraits, unseen_portraits = _portraits(unseen=False), _portraits(unseen=True)
    sets = {
        "miniature-scenes-train": _scenes(1, 800, unseen=False),
        "miniature-scenes-unseen": _scenes(2, 120, unseen=True),
        "miniature-portraits-train": seen_portraits,
        "miniature-portraits-unseen": unseen_portraits,
        "miniature-preference-train": _scenes(3, 3 * REQUESTS * len(seen_portraits), unseen=False)
        + [_asked_again(line, i) for i in range(REQUESTS) for line in seen_portraits],
        "miniature-preference-unseen": _scenes(4, 3 * len(unseen_portraits), unseen=True) + unseen_portraits,
    }
    pairs = _tuning_scenes(5, sets["miniature-scenes-unseen"] + sets["miniature-preference-unseen"])
    portraits = seen_portraits[:: len(seen_portraits) // TUNING_PORTRAITS][:TUNING_PORTRAITS]
    return sets | {
        "miniature-scenes-tuning": [one for one, _ in pairs],
        "miniature-portraits-tuning": portraits,
        "miniature-preference-tuning": [other for _, other in pairs] + portraits,
    }


def write_prompt_sets(folder: Path) -> None:
    """Write `prompt_sets()` as JSON lines."""
    for name, lines in prompt_sets().items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def all_captions() -> list[str]:
    """Every caption that the world can have, for the tokenizer."""
    two = [scene_caption(p, r) for p in combinations(OBJECTS, 2) for r in RELATIONS]
    return [o.text for o in OBJECTS] + two + [portrait_caption(o) for o in OCCUPATIONS]


if __name__ == "__main__":
    write_prompt_sets(Path(__file__).parent)
