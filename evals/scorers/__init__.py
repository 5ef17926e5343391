"""Scorers: one float per image. One file each; the file name is the registry.

A scorer of the same name exists in up to two domains: for photographs, and whatever looks like one, in this folder, and for the pictures of
the miniature in `evals/miniature/scorers`. An experiment or a suite names a scorer and says its domain.

A scorer file holds `class Scorer` with `range`, `higher_is_better`, `source`, `scope` and `version`, and is called as
`scorer(images_BCHW, prompts)` (a scorer of scope "paired" takes the base model's images as a third argument). It returns
float32 [B]; NaN means "not applicable". Weights load at the first call. Files with a leading underscore are not scorers.

One of scope "image" may have `differentiable(images_BCHW, prompts)`: the same values, with a graph to the images, for methods that
train on a reward's gradient.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import textwrap
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, cast

import torch
from torch import Tensor

from evals import cut, order
from evals.weights import Carried, Weights, refuse_unaccepted
from prompts import Prompt

Scope = Literal["image", "prompt", "paired"]
Domain = Literal["photo", "miniature"]
"""What pictures show: the world as in photographs, or the miniature's own."""

_PACKAGES: dict[Domain, str] = {"photo": "evals.scorers", "miniature": "evals.miniature.scorers"}

ROUNDING = 1e-5
"""By how much of a bound, or of 1, a float32 may miss it."""


class Scorer(Protocol):
    """What every scorer offers."""

    range: tuple[float, float]
    """Bounds that every value respects."""
    higher_is_better: bool | None
    """None for what is not a quality, such as a skin tone."""
    source: str
    """Model and revision, licence, paper."""
    scope: Scope
    """"image": each image by itself. "prompt": images of equal `prompt.id` are one group that shares a value.
    "paired": against the base model's image of the same prompt and noise."""
    version: str
    """8 hex digits of code and weights; rows of different versions are not compared."""
    # and, where its weights are others', `weights: tuple[Weights, ...]`, or `carried: tuple[Carried, ...]` of those in a package; where it reads no more than so many tokens of a prompt, `cut_tokens(prompts)`, how
    # many of each it does not read; and in scope "paired", where an answer depends on all pictures through their embeddings alone, two stages, so that
    # pictures need not be in memory all at once: `features(images_BCHW) -> Tensor [B, D]`, of each picture by itself, and
    # `from_features(features_BD, base_BD) -> Tensor [B]`, where `__call__` is the second of the first of both; and in scope "image", where an answer has
    # a gradient, `differentiable(images_BCHW, prompts) -> Tensor [B]`, the values of `__call__` with a graph to the images, on any device. What a scorer
    # rounds on the way (pictures to 8 bit) stays rounded in the value, and the gradient passes as if it were not. Where it raises for prompts that lack
    # something, `check_prompts(prompts)` raises the same ValueError before there are pictures, and one for a set that it applies to no prompt of; being no
    # part of any score it is none of `version_of`.

    def __call__(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt], base_images_BCHW: Tensor | None = None
    ) -> Tensor: ...


def names(domain: Domain) -> tuple[str, ...]:
    """Every scorer of a domain: the files of its folder."""
    files = Path(str(import_module(_PACKAGES[domain]).__file__)).parent.glob("*.py")
    return tuple(sorted(f.stem for f in files if not f.stem.startswith("_")))


def is_one(name: str, domain: Domain) -> bool:
    """Whether a domain has a scorer of that name, by a file of its folder or as a Vendi score of another order (`evals.order`)."""
    ordered = order.split(name)
    return (name if ordered is None else ordered[0]) in names(domain)


def load(
    name: str, device: torch.device | str = "cpu", domain: Domain = "photo", terms: bool = True
) -> Scorer:
    """The scorer of that name in a domain, or the one in a user's own file, `path/to/file.py`.

    Args:
        name: of the scorer, also with an order (`evals.order`), or file.
        device: where it is to work.
        domain: of the pictures.
        terms: whether to refuse weights with terms that were not accepted (see `evals.weights`).

    Raises:
        ValueError: terms that were not accepted; the choices, for a name that is none; for a file that is not there, cannot be run or holds no scorer.
    """
    if name.endswith(".py"):
        return _from_file(Path(name), device)
    known = names(domain)
    if not is_one(name, domain):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        hint = f"; {order.CHOICES}" if order.is_meant(name) else hint
        hint = next(
            (f"; there is one for the domain {other}" for other in _PACKAGES if is_one(name, other)), hint
        )
        raise ValueError(
            f"there is no scorer {name!r} for the domain {domain}: choose one of {', '.join(known)}, "
            f"or a file of your own ending in .py{hint}"
        )
    ordered = order.split(name)
    if ordered is None:
        scorer = import_module(f"{_PACKAGES[domain]}.{name}").Scorer(device)
    else:
        scorer = import_module(f"{_PACKAGES[domain]}._order").of_order(*ordered, device)
    if terms:
        refuse_unaccepted(weights_of(scorer))
    return cast(Scorer, scorer)


def weights_of(scorer: Scorer) -> tuple[Weights, ...]:
    """What a scorer takes from others; nothing where it brings its own."""
    return tuple(getattr(scorer, "weights", ()))


def carried_by(scorer: Scorer) -> tuple[Carried, ...]:
    """What a scorer takes from others that packages of the environment carry."""
    return tuple(getattr(scorer, "carried", ()))


CONTRACT = ("range", "higher_is_better", "source", "scope", "version")
"""What a scorer states of itself."""


def _from_file(path: Path, device: torch.device | str) -> Scorer:
    if not path.is_file():
        raise ValueError(f"there is no scorer file {path}")
    spec = spec_from_file_location(f"scorer_{path.stem}", path)
    assert spec is not None, "a name ending in .py has a loader"
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        scorer = module.Scorer(device)
        missing = [part for part in CONTRACT if not hasattr(scorer, part)]
        weights_of(scorer)
    except (Exception, SystemExit) as error:  # it is anybody's file
        raise ValueError(f"{path} holds no scorer, {type(error).__name__}: {_told(error)}") from error
    if missing:
        raise ValueError(
            f"{path}: its Scorer has no {', '.join(missing)} (CONTRIBUTING.md says what they are)"
        )
    return cast(Scorer, scorer)


def what_is_cut(name: str, scorer: Scorer, prompt_set: str, prompts: Sequence[Prompt]) -> str:
    """A sentence on prompts of a set that a scorer does not read to their end (see `evals.cut`); empty where there is none.

    A scorer that cuts has `cut_tokens(prompts)`, how many tokens of each it does not read.
    """
    is_cut = _is_cut(scorer)
    return "" if is_cut is None else cut.what_is_cut(prompt_set, prompts, is_cut, f"scorer {name} reads")


def how_many_are_cut(scorer: Scorer, prompts: Sequence[Prompt]) -> int | None:
    """How many prompts a scorer does not read to their end (see `evals.cut`); None for one that has no `cut_tokens`."""
    is_cut = _is_cut(scorer)
    return None if is_cut is None else cut.how_many_are_cut(prompts, is_cut)


def _is_cut(scorer: Scorer) -> cut.IsCut | None:
    cut_tokens = getattr(scorer, "cut_tokens", None)
    return None if cut_tokens is None else lambda some: [count > 0 for count in cut_tokens(some)]


class ScorerFailed(Exception):
    """A scorer's answer cannot be used; the message is one sentence that names it. What it raised itself is the cause."""


def ask(
    name: str,
    scorer: Scorer,
    images_BCHW: Tensor,
    prompts: Sequence[Prompt],
    whose: Callable[[int], str],
    base_images_BCHW: Tensor | None = None,
) -> Tensor:
    """A scorer's answers, float32 [B] on the CPU, held to the contract.

    Args:
        name: file name of the scorer.
        scorer: to be called.
        images_BCHW: float32 RGB in [0, 1].
        prompts: of the images.
        whose: position in the batch to what a message calls that image.
        base_images_BCHW: for a scorer of scope "paired".

    Raises:
        ScorerFailed: where it raises, writes into the pictures, or answers with another shape, with infinity or outside its range.
    """
    base = () if base_images_BCHW is None else (base_images_BCHW,)
    written = images_BCHW._version  # torch counts what is done to a tensor in place
    value_B = _called(name, lambda: scorer(images_BCHW, prompts, *base))
    if images_BCHW._version != written:
        raise ScorerFailed(
            f"scorer {name} changes the pictures that it is given, which others are given after it: let it work on images_BCHW.clone()"
        )
    return _held(name, scorer, value_B, len(prompts), whose)


def has_stages(scorer: Scorer) -> bool:
    """Whether a scorer of scope "paired" answers in two stages, `features` and `from_features`."""
    return scorer.scope == "paired" and hasattr(scorer, "features") and hasattr(scorer, "from_features")


def ask_features(name: str, scorer: Scorer, images_BCHW: Tensor) -> Tensor:
    """The first stage of a scorer of two: [B, D] on the CPU.

    Raises:
        ScorerFailed: where it raises, or answers with another shape.
    """
    features_BD = _called(name, lambda: cast(Any, scorer).features(images_BCHW))
    if not isinstance(features_BD, Tensor) or features_BD.ndim != 2 or len(features_BD) != len(images_BCHW):
        shape = _shape(features_BD)
        raise ScorerFailed(
            f"scorer {name} has features of shape {shape} for {len(images_BCHW)} images, not one row each"
        )
    kept: Tensor = features_BD.detach().cpu()
    return kept


def ask_from_features(
    name: str, scorer: Scorer, features_BD: Tensor, base_BD: Tensor, whose: Callable[[int], str]
) -> Tensor:
    """The second stage: as `ask`, of features of all pictures and of the base's."""
    value_B = _called(name, lambda: cast(Any, scorer).from_features(features_BD, base_BD))
    return _held(name, scorer, value_B, len(features_BD), whose)


def is_differentiable(scorer: Scorer | type[Scorer]) -> bool:
    """Whether a scorer's answers come with a gradient to the pictures, where one asks for it."""
    return scorer.scope == "image" and hasattr(scorer, "differentiable")


def differentiable_names(domain: Domain) -> tuple[str, ...]:
    """The scorers of a domain whose answers have a gradient."""
    classes = {name: import_module(f"{_PACKAGES[domain]}.{name}").Scorer for name in names(domain)}
    return tuple(name for name, scorer in classes.items() if is_differentiable(scorer))


def ask_differentiable(name: str, scorer: Scorer, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """A scorer's answers with their graph, float32 [B] on the device of the pictures; NaN, not applicable, among them.

    Args:
        name: of the scorer.
        scorer: that `is_differentiable`.
        images_BCHW: float32 RGB in [0, 1], that a gradient is wanted of.
        prompts: of the images.

    Raises:
        ScorerFailed: where it raises, or answers with another shape, with infinity or without a graph.
    """
    value_B = _called(name, lambda: cast(Any, scorer).differentiable(images_BCHW, prompts))
    if not isinstance(value_B, Tensor) or value_B.shape != (len(prompts),):
        raise ScorerFailed(
            f"the differentiable of scorer {name} answered with {_shape(value_B)} for {len(prompts)} images, not with one number each"
        )
    if not value_B.requires_grad:
        raise ScorerFailed(f"the differentiable of scorer {name} answered without a graph to the images")
    if value_B.isinf().any():
        raise ScorerFailed(f"the differentiable of scorer {name} answered with infinity")
    answers_B: Tensor = value_B.float().to(images_BCHW.device)
    return answers_B


def _called(name: str, call: Callable[[], Any]) -> Any:
    """What a scorer answers; whatever it raises is told with its name."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise ScorerFailed(f"scorer {name} failed with {type(error).__name__}: {_told(error)}") from error


def _shape(answer: object) -> object:
    return tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__


def _held(name: str, scorer: Scorer, value_B: Any, count: int, whose: Callable[[int], str]) -> Tensor:
    """An answer for `count` images, float32 on the CPU, held to the contract.

    Raises:
        ScorerFailed: for another shape, infinity or a value outside the scorer's range.
    """
    if not isinstance(value_B, Tensor) or value_B.shape != (count,):
        raise ScorerFailed(
            f"scorer {name} answered with {_shape(value_B)} for {count} images, not with one number each"
        )
    if value_B.isinf().any():
        raise ScorerFailed(
            f"scorer {name} answered with infinity for {int(value_B.isinf().sum())} of {len(value_B)} images"
        )
    values_B: Tensor = value_B.detach().float().cpu()
    outside = first_outside(values_B, scorer.range)
    if outside is not None:
        low, high = scorer.range
        raise ScorerFailed(
            f"scorer {name} gave {values_B[outside]:g} to {whose(outside)}, but states a range of {low:g} to {high:g}"
        )
    return values_B


def _told(error: BaseException) -> str:
    """What an exception says, on one line, and where it was raised: whoever wrote the scorer needs the place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"{textwrap.shorten(said, 300, placeholder=' ...')} ({Path(place.filename).name}, line {place.lineno})"


def is_range(bounds: object) -> TypeGuard[tuple[float, float]]:
    """Whether that can be a scorer's `range`: two numbers."""
    return isinstance(bounds, tuple) and [type(end) in (int, float) for end in bounds] == [True] * 2


def first_outside(values_B: Tensor, bounds: tuple[float, float]) -> int | None:
    """Position of the first value that its scorer's `range` does not allow by more than rounding, or None; NaN, not applicable, is none."""
    low, high = (
        bound + sign * ROUNDING * max(1.0, abs(bound)) for bound, sign in zip(bounds, (-1, 1), strict=True)
    )
    outside = ((values_B < low) | (values_B > high)).nonzero().flatten()
    return int(outside[0]) if len(outside) else None


def version_of(*parts: Path | Weights) -> str:
    """8 hex digits over code and weight files: of Python files what they do, without comments, docstrings, imports and `check_prompts`, of others their bytes.

    So a version is another one where scores may be, and stays where a file was moved or explained, or says beforehand what it needs.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Weights):
            digest.update(part.digest().encode())
            continue
        content = part.read_bytes()
        digest.update(_what_it_does(content).encode() if part.suffix == ".py" else content)
    return digest.hexdigest()[:8]


@lru_cache(256)  # scorers have files in common
def _what_it_does(source: bytes) -> str:
    """The statements of a module, as the parser sees them, but for those that no score depends on."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, block, None), list):
                setattr(
                    node, block, [statement for statement in statements if not _scores_nothing(statement)]
                )
    return ast.unparse(tree)


def _scores_nothing(statement: ast.stmt) -> bool:
    """Whether a statement is an import, a string that stands alone, or `check_prompts`, which speaks before there are pictures."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    if isinstance(statement, ast.FunctionDef):
        return statement.name == "check_prompts"
    return isinstance(statement, ast.Import | ast.ImportFrom)
