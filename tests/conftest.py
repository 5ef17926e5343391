"""Fixtures shared by the tests of drawing and training: see `toy`. No network."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hidden_gpu import asks_for_gpu

# The suite runs on the CPU, its processes too, also where there is a GPU: there equal means to the last bit. `pytest -m gpu` is for the GPU.
# Said before anything is imported, as some libraries look for one at once; a process beside others has been told by the first.
if "PYTEST_XDIST_WORKER" not in os.environ and not asks_for_gpu(
    [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *sys.argv[1:]]
):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from evals import compare
from tests import toy

torch.set_num_threads(1)  # the suite shares its machine, and tiny matrices gain nothing from a second thread


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a GPU is skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture(autouse=True)
def _suites_as_they_are() -> Iterator[None]:
    """A table remembers what suites say, and a test may have put others in their place."""
    yield
    compare.parts_of.cache_clear()


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
