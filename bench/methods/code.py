"""Which code trains a cell: the files of this project that training imports, and of each a digest of what it does.

Of every file by itself, and not of all together: a method of one's own, which no other cell imports, then makes no other cell old, and who hears that two cells were trained by different code
hears where it differs. Files are found by their import statements, also those inside functions: rather one too many than one too few. Methods and scorers are imported by their names, so
those that a cell has are among the files to begin with.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.methods.cells import Cell, seeds_told
from evals import scorers
from evals.checkpoints import ROOT
from evals.scorers import version_of
from train import loop, methods, start

PACKAGES = ("prompts", "evals", "train")
NAMED = 8
"""Files that a sentence names."""

Code = Mapping[str, str]
"""By a file's path in the repository, 8 hex digits of what it does (`evals.scorers.version_of`): without comments, docstrings and imports."""


def code_of(cell: Cell) -> dict[str, str]:
    """The code that trains a cell, as it is today."""
    rewards = {term.scorer for task in cell.experiment.tasks for term in task.rewards}
    classes = [type(scorers.load(name, "cpu", cell.experiment.domain)) for name in sorted(rewards)]
    begin: list[Any] = [loop, start, *classes, methods.load(cell.method)]
    return {
        str(path.relative_to(ROOT)): _version(path)
        for path in sorted(reached([Path(inspect.getfile(each)) for each in begin]))
    }


@cache
def _version(path: Path) -> str:
    return version_of(path)


def reached(begin: Collection[Path]) -> set[Path]:
    """These files and those of this project that they import, at any depth."""
    found, todo = set[Path](), [*begin]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(path)
    return found


@cache
def imported(path: Path) -> frozenset[Path]:
    """The files of this project that a file imports itself, packages on the way among them; but for what is imported for its types alone."""
    names = set[str]()
    for node in _statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(file for name in names for file in _files_of(name))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node, but for what `TYPE_CHECKING` guards."""
    for child in ast.iter_child_nodes(node):
        if not (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            yield child
            yield from _statements(child)


def _files_of(name: str) -> list[Path]:
    """What Python reads for `import name`; what is no module of this project, such as a function in one, has no file."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    places = [ROOT.joinpath(*parts[:n]) for n in range(1, 1 + len(parts))]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    return [file for file in files if file.is_file()]


class Trained(NamedTuple):
    """A cell, and what trained it."""

    label: str
    seed: int
    code: Code | None
    """None where it was not recorded."""


def recorded(trainings: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The code of a cell from the records of its trainings, each with `code`; None where one has none. Where it was stopped and went on with other code, a file has the digests of both."""
    each: list[Code | None] = [training.get("code") for training in trainings]
    known = [code for code in each if code is not None]
    if not known or len(known) < len(each):
        return None
    names = {name for code in known for name in code}
    return {name: "+".join(sorted({code[name] for code in known if name in code})) for name in sorted(names)}


def unlike(trained: Sequence[Trained]) -> list[str]:
    """Sentences on cells that were not all trained by one code; none where they were, or where of none it is known."""
    known = [one for one in trained if one.code is not None]
    unknown = [one for one in trained if one.code is None]
    if not known:
        return []
    told = []
    if unknown:
        told.append(
            f"Which code trained {_named(unknown)} was not recorded: it may be other code than that of {_named(known)}."
        )
    digests: dict[str, set[str]] = {}
    for one in known:
        for name, digest in (one.code or {}).items():
            digests.setdefault(name, set()).add(digest)
    files = sorted(name for name, of in digests.items() if len(of) > 1)
    if files:
        groups: dict[tuple[str | None, ...], list[Trained]] = {}
        for one in known:
            its = tuple((one.code or {}).get(name) for name in files)
            if any(its):
                groups.setdefault(its, []).append(one)
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        apart = "; ".join(_named(of) for of in groups.values())
        told.append(
            f"Not all were trained by the same code, which differs in {', '.join(files[:NAMED])}{more} between: {apart}."
        )
    return told


def _named(trained: Sequence[Trained]) -> str:
    """Cells, those of a label together."""
    by_label: dict[str, list[int]] = {}
    for one in trained:
        by_label.setdefault(one.label, []).append(one.seed)
    return ", ".join(f"{label} ({seeds_told(seeds)})" for label, seeds in by_label.items())
