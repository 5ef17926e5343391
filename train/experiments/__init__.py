"""One file per experiment: the file name is its name, `MODELS` its variants by model, the docstring what to expect."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from train.config import Experiment, choose


def names() -> tuple[str, ...]:
    """Every experiment: the files of this folder."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return tuple(sorted(file.stem for file in files))


def models(experiment: str) -> dict[str, Experiment]:
    """The variants of an experiment, by model.

    Raises:
        ValueError: for an unknown experiment, naming the choices.
    """
    module = importlib.import_module(f"train.experiments.{choose('experiment', experiment, names())}")
    return cast(dict[str, Experiment], module.MODELS)


def load(experiment: str, model: str) -> Experiment:
    """One variant.

    Raises:
        ValueError: for an unknown experiment or model, naming the choices.
    """
    variants = models(experiment)
    return variants[choose(f"model for {experiment}", model, variants)]
