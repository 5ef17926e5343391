"""Suites: which prompts, how many images of each, drawn how, scored by what. One file each; the file name is the registry.

A suite's version is not a number that somebody has to raise: every row carries a hash of how its picture was drawn (`Suite.drawn`), of its prompt set and of its
scorer, and rows that differ in one of them, or in the images of a prompt, are not compared (`evals.rows`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path

import prompts
from evals import metrics, order
from evals.diffusion import Sampling
from evals.scorers import Domain

Stratum = Callable[[str, str], str]
"""Of a prompt, by the name of its set and its id."""


@dataclass(frozen=True)
class Part:
    """A prompt set in a suite."""

    prompt_set: str
    """A name in prompts/."""
    images_per_prompt: int
    """Images of each prompt; set-level scores are only comparable at equal numbers."""
    scorers: tuple[str, ...]
    """Names of scorers, of the suite's domain."""
    headlines: tuple[str, ...] = ()
    """Names of metrics that this prompt set is there for: the table begins with them."""
    stratum: Stratum | None = None
    """What divides its prompts (GenEval's tasks, the categories of `first_tag`): a comparison resamples prompts inside it. None: the set is one."""


@dataclass(frozen=True)
class Suite:
    """An evaluation. Its seed is used nowhere else: no training noise is drawn from it."""

    parts: tuple[Part, ...]
    sampling: Sampling
    seed: int
    domain: Domain = "photo"
    name: str = ""
    """That of its file; `load` gives it."""

    @property
    def drawn(self) -> str:
        """What score rows call it: its name, and a hash of how it draws. Rows with another one are of other pictures."""
        how = hashlib.sha256(f"{self.sampling} {self.seed}".encode()).hexdigest()[:6]
        return f"{self.name}:{how}"


def first_tag(prompt_set: str, prompt_id: str) -> str:
    """The first tag of a prompt: its category, as the sets of others are read here.

    Raises:
        ValueError: a prompt that is not in the set or has no tag, or a set that cannot be had.
    """
    tags = _tags(prompt_set).get(prompt_id)
    if not tags:
        raise ValueError(
            f"prompt {prompt_id} {'is not in' if tags is None else 'has no tag in'} the prompt set {prompt_set}"
        )
    return tags[0]


@cache
def _tags(prompt_set: str) -> Mapping[str, tuple[str, ...]]:
    return {prompt.id: prompt.tags for prompt in prompts.load(prompt_set)}


DEFAULTS: dict[Domain, str] = {"photo": "paper", "miniature": "miniature"}
"""The suite that a run is scored on unless another is named, by the domain of its experiment."""


def of_domain(domain: str | None, target: str) -> str:
    """The suite of a domain.

    Raises:
        ValueError: naming the option, where nothing says what the pictures of `target` show.
    """
    found = {str(key): name for key, name in DEFAULTS.items()}.get(domain or "")
    if found is None:
        raise ValueError(
            f"{target} is no run of this project, so say on what to score it: --suite {' or '.join(names())}"
        )
    return found


def names() -> tuple[str, ...]:
    """Every suite: the files of this folder."""
    return tuple(sorted(f.stem for f in Path(__file__).parent.glob("[!_]*.py")))


def only(suite: Suite, prompt_sets: Sequence[str]) -> Suite:
    """A suite with some of its parts; with all where none is named. Raises ValueError, with the choices, for a part that it has not."""
    there = [part.prompt_set for part in suite.parts]
    if unknown := [name for name in prompt_sets if name not in there]:
        raise ValueError(
            f"suite {suite.name} has no prompt set {unknown[0]!r}; choose from {', '.join(there)}"
        )
    return replace(
        suite, parts=tuple(p for p in suite.parts if not prompt_sets or p.prompt_set in prompt_sets)
    )


def with_orders(suite: Suite, orders: Sequence[float]) -> Suite:
    """A suite with its Vendi scores of other orders too. Raises ValueError for an order that is none, and where the suite has no Vendi score."""
    if none := [q for q in orders if not order.is_order(q)]:
        raise ValueError(f"--vendi-order {none[0]:g}: {order.CHOICES}")
    parts = tuple(replace(part, scorers=_with_orders(part.scorers, orders)) for part in suite.parts)
    if orders and parts == suite.parts:
        sets = ", ".join(part.prompt_set for part in suite.parts)
        raise ValueError(f"--vendi-order: suite {suite.name} has no Vendi score on {sets}")
    return replace(suite, parts=parts)


def _with_orders(scorers: Sequence[str], orders: Sequence[float]) -> tuple[str, ...]:
    ordered = [order.of_order(name, q) for name in scorers if name in order.VENDI for q in orders]
    return tuple(dict.fromkeys((*scorers, *ordered)))


def load(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: with the choices, for a name that is none, and for a headline that is no metric; for a file without a suite, and parts that
            cannot be.
    """
    if name not in names():
        raise ValueError(f"there is no suite {name!r}; choose from {', '.join(names())}")
    suite = getattr(import_module(f"evals.suites.{name}"), "SUITE", None)
    if not isinstance(suite, Suite):
        raise ValueError(f"evals/suites/{name}.py has no SUITE that is an evals.suites.Suite")
    _refuse_parts(name, suite.parts)
    for part in suite.parts:
        known = metrics.names(part.scorers)
        if unknown := [headline for headline in part.headlines if headline not in known]:
            raise ValueError(
                f"suite {name}, {part.prompt_set}: the headline {unknown[0]!r} is no metric; choose from {', '.join(known)}"
            )
    return replace(suite, name=name)


def _refuse_parts(name: str, parts: Sequence[Part]) -> None:
    """Refuse parts of which pictures and scores could not be kept apart, or of which there are none. Raises ValueError, naming suite and prompt set."""
    if not parts:
        raise ValueError(f"suite {name} has no part: a part is a prompt set with its scorers")
    sets = [part.prompt_set for part in parts]
    for part in parts:
        about = f"suite {name}, {part.prompt_set}"
        if sets.count(part.prompt_set) > 1:
            raise ValueError(f"{about}: the prompt set is in two parts: one of them has all its scorers")
        if Path(part.prompt_set).name != part.prompt_set:
            raise ValueError(
                f"{about}: that is a path, and pictures lie in a folder of the prompt set's name: bring the file to prompts/ and give its name"
            )
        if part.images_per_prompt < 1:
            raise ValueError(
                f"{about}: images_per_prompt is {part.images_per_prompt}, and there is at least 1"
            )
        if twice := [scorer for scorer in part.scorers if part.scorers.count(scorer) > 1]:
            raise ValueError(f"{about}: the scorer {twice[0]} is there twice: once is enough")
