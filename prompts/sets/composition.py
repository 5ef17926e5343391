"""Two objects in a relation: what the paper trains compositionality on (section 3.3), computed from its list of objects.

A prompt is `a {object} {relation} a {object}`: ordered pairs of different objects, of the 532 of Table 8, in the five relations of section
3.3. With the paper's 450 objects for training that are 450 x 449 x 5 = 1,010,250 prompts, its "over 1M".

    composition-train-paper   all of them: evaluation on composition-seen is then on prompts that were trained on, as the paper's may be
    composition-train         less the 300 of composition-seen, and less the few that PartiPrompts and T2I-CompBench ask too
    composition-seen          300 of them at random (the paper's evaluation of seen objects)
    composition-unseen        300 at random of the pairs of the other 82 objects (of unseen objects)

`composition.csv` has the objects: the paper's label; the name by which a prompt and a detector are asked for it, which is the label but for
eight that are no English; the article, or that it is a plural or a mass and has none; the first label of its group where the list has one
thing under several labels; and whether it is seen. Which 82 the paper holds out is not stated. Here: groups in the order of
`stable_fraction("unseen " + first label)`, each taken whole if it still fits, until 82 are taken, so that no unseen object is a seen one under
another name. `composition_elsewhere.csv` has the prompts of others in this form, whatever their article.
"""

from __future__ import annotations

import csv
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prompts import LazyPrompts, Prompt
from prompts.sets._order import draw, stride

SOURCE = "written for this project from facts of arXiv 2401.12244 (Table 8, section 3.3)"
LICENCE = "Apache-2.0"

OBJECTS_FILE = Path(__file__).with_name("composition.csv")
ELSEWHERE_FILE = Path(__file__).with_name("composition_elsewhere.csv")
RELATIONS = ("and", "next to", "near", "on side of", "beside")
EVALUATED = 300
"""Prompts of each evaluation set (paper, Table 4)."""


@dataclass(frozen=True)
class Object:
    """Something to draw."""

    name: str
    """As prompts say it, and as a detector is asked for it."""
    article: str
    """a, an, plural or mass."""

    @property
    def phrase(self) -> str:
        """With its article, where it has one."""
        return f"{self.article} {self.name}" if self.article in ("a", "an") else self.name


@dataclass(frozen=True)
class Space:
    """All ordered pairs of different objects in all relations, numbered."""

    objects: tuple[Object, ...]
    split: str
    """seen or unseen."""

    def __len__(self) -> int:
        count = len(self.objects)
        return count * (count - 1) * len(RELATIONS)

    def prompt(self, number: int) -> Prompt:
        """The prompt of a number below `len`."""
        pair, relation = divmod(number, len(RELATIONS))
        first, second = divmod(pair, len(self.objects) - 1)
        return self._prompt(
            self.objects[first], RELATIONS[relation], self.objects[second + (second >= first)]
        )

    def number(self, first: str, relation: str, second: str) -> int:
        """The number of the prompt of two names and a relation; the inverse of `prompt`."""
        names = [thing.name for thing in self.objects]
        a, b = names.index(first), names.index(second)
        return (a * (len(names) - 1) + b - (b > a)) * len(RELATIONS) + RELATIONS.index(relation)

    def _prompt(self, first: Object, relation: str, second: Object) -> Prompt:
        slug = "-".join(part.replace(" ", "_") for part in (first.name, relation, second.name))
        return Prompt(
            id=slug,
            text=f"{first.phrase} {relation} {second.phrase}",
            tags=("composition", relation, self.split),
            expect={"objects": [{"name": first.name}, {"name": second.name}], "relation": relation},
        )


@lru_cache
def space(split: str) -> Space:
    """The prompts of the seen, or of the unseen objects."""
    with OBJECTS_FILE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    return Space(tuple(Object(row["name"], row["article"]) for row in rows), split)


def evaluated(split: str) -> list[int]:
    """Numbers of the prompts that are evaluated on."""
    return draw(f"composition {split}", EVALUATED, len(space(split)))


def asked_elsewhere() -> list[int]:
    """Numbers of the seen prompts that evaluation sets of others have too."""
    with ELSEWHERE_FILE.open(encoding="utf-8", newline="") as file:
        return [space("seen").number(**row) for row in csv.DictReader(file)]


def _evaluation(split: str) -> tuple[Prompt, ...]:
    return tuple(space(split).prompt(number) for number in evaluated(split))


def _training(left_out: Iterable[int]) -> LazyPrompts:
    """The seen prompts but for some, in an order in which neighbours have nothing in common."""
    seen = space("seen")
    size, step = len(seen), stride(len(seen))
    # number = place * step % size; a place is shifted by one for each place before it that is left out
    gaps = sorted(number * pow(step, -1, size) % size for number in left_out)
    shifts = [gap - earlier for earlier, gap in enumerate(gaps)]

    def make(index: int) -> Prompt:
        return seen.prompt((index + bisect_right(shifts, index)) * step % size)

    content = hashlib.sha256(OBJECTS_FILE.read_bytes()).hexdigest()
    return LazyPrompts(make, size - len(gaps), f"composition 1 {content} {RELATIONS} {step} without {gaps}")


def _train() -> LazyPrompts:
    return _training({*evaluated("seen"), *asked_elsewhere()})


def _train_paper() -> LazyPrompts:
    return _training(())


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    "composition-train": _train,
    "composition-train-paper": _train_paper,
    "composition-seen": lambda: _evaluation("seen"),
    "composition-unseen": lambda: _evaluation("unseen"),
}
