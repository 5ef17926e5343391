"""Suites: which prompts, how many images of each, drawn how, scored by what. One file each; the file name is the registry."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from evals.diffusion import Sampling
from evals.scorers import Domain


@dataclass(frozen=True)
class Part:
    """A prompt set in a suite."""

    prompt_set: str
    """A name in prompts/."""
    images_per_prompt: int
    """Images of each prompt; set-level scores are only comparable at equal numbers."""
    scorers: tuple[str, ...]
    """Names of scorers, of the suite's domain."""


@dataclass(frozen=True)
class Suite:
    """An evaluation. Its seed is used nowhere else: no training noise is drawn from it."""

    parts: tuple[Part, ...]
    sampling: Sampling
    seed: int
    domain: Domain = "photo"


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


def load(name: str) -> Suite:
    """The suite of that name. Raises ValueError, with the choices, for a name that is none."""
    if name not in names():
        raise ValueError(f"there is no suite {name!r}; choose from {', '.join(names())}")
    suite = import_module(f"evals.suites.{name}").SUITE
    assert isinstance(suite, Suite)
    return suite
