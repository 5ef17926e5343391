"""Imports point left only: prompts <- evals <- train <- bench, so that anybody's checkpoint is scored without the trainer."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("prompts", "evals", "train", "bench")
NEVER = ("tests", "results")


def imported(source: str) -> Iterator[str]:
    """Every module that the source imports, at any depth; also by import_module and __import__ with a literal beginning."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Call) and _callee(node) in ("import_module", "__import__") and node.args:
            yield _literal_beginning(node.args[0])


def _callee(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _literal_beginning(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def wrong_way(package: str, source: str) -> list[str]:
    """The imports of `source`, a module of `package`, that point right, or at what is no library."""
    forbidden = {*ORDER[ORDER.index(package) + 1 :], *NEVER}
    return [name for name in imported(source) if name.split(".")[0] in forbidden]


FILES = [path.relative_to(ROOT) for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_left(path: Path) -> None:
    assert not wrong_way(path.parts[0], (ROOT / path).read_text(encoding="utf-8"))


OPENS_PARQUET = {"datasets", "pyarrow"}


class _WithoutFunctions(ast.NodeTransformer):
    """What runs when a module is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        return ast.Pass()


def beyond_the_standard_library(source: str) -> set[str]:
    """What a module of prompts imports and must not: libraries, but for those that open Parquet, in functions."""

    def libraries(source: str) -> set[str]:
        return {name.split(".")[0] for name in imported(source)} - {*sys.stdlib_module_names, "prompts"}

    on_import = libraries(ast.unparse(_WithoutFunctions().visit(ast.parse(source))))
    return on_import | libraries(source) - OPENS_PARQUET


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "prompts"], ids=str)
def test_prompts_need_the_standard_library_only(path: Path) -> None:
    assert not beyond_the_standard_library((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    ["import torch", "import datasets", "class A:\n    import pyarrow", "def f():\n    import pandas as pd"],
)
def test_a_library_in_prompts_is_seen(source: str) -> None:
    assert beyond_the_standard_library(source)


def test_a_function_of_prompts_may_open_parquet() -> None:
    source = "import csv\nclass A:\n    def f(self):\n        from pyarrow.parquet import ParquetFile"
    assert not beyond_the_standard_library(source)


def test_prompt_sets_are_listed_and_loaded_without_a_library() -> None:
    """As a light command does it: in a Python that has not imported anything yet."""
    program = """if True:
        import sys, prompts
        list(prompts.sources())
        prompts.load("miniature-scenes-train"), prompts.load("composition-train")[12345]
        print(*sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names))
    """
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [name for name in run.stdout.split() if not name.startswith("_")] == ["prompts"]


@pytest.mark.parametrize(
    ("package", "words", "told"),
    [
        ("train", ["--help"], "--accept-terms"),
        ("train", ["imagereward", "--sed", "1"], "No such option"),
        ("evals", ["compare", "--help"], "--against"),
    ],
)
def test_help_and_a_mistyped_option_wait_for_no_framework(package: str, words: list[str], told: str) -> None:
    program = f"""if True:
        import sys
        from {package}.__main__ import main
        try:
            main({words!r})
        finally:
            print(*{{"torch", "diffusers", "transformers"}} & set(sys.modules), "no more")
    """
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert told in run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "no more"


@pytest.mark.parametrize(
    "source",
    [
        "import train",
        "import os, train.config as c",
        "from train.loop import x",
        "def f():\n    from bench import x",
        "import importlib\nimportlib.import_module(f'train.experiments.{name}')",
        "__import__('bench.memory')",
        "from tests.conftest import x",
    ],
)
def test_a_wrong_import_is_seen(source: str) -> None:
    assert wrong_way("evals", source)


@pytest.mark.parametrize(
    "source",
    ["import prompts", "from evals.rows import read", "import training_wheels", "from . import rows"],
)
def test_a_right_import_is_let_through(source: str) -> None:
    assert not wrong_way("evals", source)
