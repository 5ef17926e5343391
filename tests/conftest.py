"""Fixtures shared by the tests of drawing and training: see `toy`. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import toy

torch.set_num_threads(1)  # the suite shares its machine, and tiny matrices gain nothing from a second thread


@pytest.fixture(scope="session")
def tiny_pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `StableDiffusionPipeline` with random weights, in diffusers layout; read-only."""
    folder = tmp_path_factory.mktemp("pipeline")
    toy.build_tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `StableDiffusionXLPipeline` with random weights, in diffusers layout; read-only."""
    folder = tmp_path_factory.mktemp("xl")
    toy.build_tiny_xl().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_pipeline() -> Any:
    """A fresh one in memory."""
    return toy.build_tiny_pipeline()


@pytest.fixture(scope="session")
def toy_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt set of seven prompts."""
    return toy.write_prompts(tmp_path_factory.mktemp("prompts") / "toy.jsonl")


@pytest.fixture
def toy_scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trainer find the toy scorers by name."""
    monkeypatch.setattr("evals.scorers.load", toy.load_scorer)
