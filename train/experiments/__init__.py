"""One file per experiment: the file name is its name, `MODELS` its variants by model, the docstring what to expect.

`<experiment>_<method>` is an experiment as another method than the paper's trains it (`train.methods`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from train import methods
from train.config import Experiment, choose, override
from train.plan import within


def names() -> tuple[str, ...]:
    """Every experiment: the files of this folder."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return tuple(sorted(file.stem for file in files))


def parts(experiment: str) -> tuple[str, str]:
    """Experiment and method of a name.

    Raises:
        ValueError: for an unknown one, naming the choices.
    """
    if experiment in names():
        return experiment, methods.PAPERS
    others = [method for method in methods.names() if method != methods.PAPERS]
    owners = [name for name in names() if experiment.startswith(f"{name}_")]
    if owners:
        owner = max(owners, key=len)  # joint_gdpo, not joint
        method = experiment.removeprefix(f"{owner}_")
        if method == methods.PAPERS:
            raise ValueError(f"experiment {owner} is trained by {method} as it is: leave _{method} out")
        return owner, choose("method", method, others)
    choose("experiment", experiment, names())
    raise AssertionError("unreachable: a known name was found above")


def models(experiment: str) -> dict[str, Experiment]:
    """The variants of an experiment, by model.

    Raises:
        ValueError: for an unknown experiment or method, naming the choices, or a method that cannot train it.
    """
    name, method = parts(experiment)
    module = importlib.import_module(f"train.experiments.{name}")
    variants = cast(dict[str, Experiment], module.MODELS)
    if method == methods.PAPERS:
        return variants
    if not any(variant.tasks for variant in variants.values()):
        raise ValueError(f"experiment {name} trains nothing, so there is no {experiment}")
    return {model: _by_method(name, method, variant, model) for model, variant in variants.items()}


def _by_method(name: str, method: str, experiment: Experiment, model: str) -> Experiment:
    """As a method trains it; on the miniature with what was chosen for it and as long as all methods do, where anything was."""
    made, settings = methods.variant(method, experiment, model), methods.chosen(method, name)
    if model != "miniature" or settings is None:
        return made
    return within(override(made, settings), methods.EVALUATIONS[name])


def load(experiment: str, model: str) -> Experiment:
    """One variant.

    Raises:
        ValueError: for an unknown experiment, method or model, naming the choices.
    """
    variants = models(experiment)
    return variants[choose(f"model for {experiment}", model, variants)]
