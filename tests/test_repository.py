"""What holds for the repository as a whole: its top level, its registries, its lock, and that nothing is pickled."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from evals import metrics, scorers
from tests.hidden_gpu import asks_for_gpu

ROOT = Path(__file__).parent.parent
PACKAGES = ("prompts", "evals", "train", "bench")
FOLDERS = {*PACKAGES, "results", "tests"}
FILES = {
    "Makefile",
    "README.md",
    "LICENSE",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "requirements.in",
    "requirements.lock",
}


def tracked() -> list[Path]:
    """The files of the repository, relative: what git knows or would add."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"git cannot list the files here: {run.stderr.strip()}")
    return [Path(name) for name in run.stdout.split("\0") if name and (ROOT / name).exists()]


def sources() -> list[Path]:
    return [path for package in (*PACKAGES, "tests") for path in sorted((ROOT / package).rglob("*.py"))]


def test_top_level_is_fixed() -> None:
    tops = {path.parts[0] for path in tracked()}
    assert {top for top in tops if not top.startswith(".")} <= FOLDERS | FILES
    assert (FOLDERS | FILES) - tops <= {"results"}, "missing"


# the directory listing is the registry


@pytest.mark.parametrize(
    "folder",
    [
        "evals/scorers",
        "evals/miniature/scorers",
        "evals/metrics",
        "evals/suites",
        "train/experiments",
        "train/methods",
    ],
    ids=lambda f: f.replace("/", "."),
)
def test_a_registry_has_names_that_make_and_imports_can_spell(folder: str) -> None:
    if not (ROOT / folder).is_dir():
        pytest.skip(f"there is no {folder}")
    names = [path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")]
    assert names
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names), "a dash would split a run's name"


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (metrics.names, "evals/metrics"),
        (partial(scorers.names, "photo"), "evals/scorers"),
        (partial(scorers.names, "miniature"), "evals/miniature/scorers"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_names_are_the_listing(names: Callable[[], tuple[str, ...]], folder: str) -> None:
    files = (ROOT / folder).glob("*.py")
    assert set(names()) == {path.stem for path in files if not path.stem.startswith("_")}


# files are safetensors or JSON

PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {("torch", "load"), ("torch", "save"), ("np", "save"), ("numpy", "save")}
PICKLING_NAMES = {"read_pickle", "to_pickle", "allow_pickle"}


def pickling(source: str) -> list[str]:
    """The places of a source that read or write pickles, or could."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            found.append(node.module or "")
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"torch.{alias.name}" for alias in node.names if alias.name in ("load", "save")]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] * ((node.value.id, node.attr) in PICKLING_CALLS)
            found += [node.attr] * (node.attr in PICKLING_NAMES)
        elif isinstance(node, ast.keyword) and node.arg in PICKLING_NAMES:
            found.append(node.arg)
    return found


@pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in sources()], ids=str)
def test_nothing_is_pickled(path: Path) -> None:
    # others publish pickles: one function opens them, and runs no code of theirs
    allowed = ["pickle", "torch.load"] if path == Path("evals/weights.py") else []
    assert pickling((ROOT / path).read_text(encoding="utf-8")) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
    ],
)
def test_a_pickle_is_seen(source: str) -> None:
    assert pickling(source)


def test_no_pickle_is_shipped() -> None:
    assert not [
        path for path in tracked() if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
    ]


def test_a_clone_weighs_about_35_mb() -> None:
    """Weights 26, and of the methods' cells .05 each, of which a table has some forty."""
    total_mb = sum((ROOT / path).stat().st_size for path in tracked()) / 1e6
    assert total_mb < 39


# the lock


def requirements(name: str) -> list[str]:
    """The lines of a requirements file, continuation lines joined, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_lock_has_names_versions_and_hashes_only() -> None:
    """No registry address and no local path: it installs from whatever registry the reader's machine is set up for."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "file:" not in text
    form = r"[a-z0-9][a-z0-9._-]*==[^ ]+( ; [^@]+?)?( +--hash=sha256:[0-9a-f]{64})+"
    assert [line for line in requirements("requirements.lock") if not re.fullmatch(form, line)] == []


def test_lock_holds_what_is_asked_for() -> None:
    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    locked = {canonical(line.split("==")[0]) for line in requirements("requirements.lock")}
    assert {canonical(re.split(r"[<>=! \[]", line)[0]) for line in requirements("requirements.in")} <= locked


# set-up


def setup(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    """.ci/setup in a folder of its own, with a Python that will not do."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", folder / ".ci" / "setup")
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run(
        [".ci/setup"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def fake_python(folder: Path, fails: str) -> str:
    """A Python, version 3.9.1, that fails at every program in which `fails` occurs."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$2" in *"{fails}"*) exit 1;; *print*) echo 3.9.1;; esac\n')
    path.chmod(0o755)
    return str(path)


def test_setup_without_a_python(tmp_path: Path) -> None:
    run = setup(tmp_path, "/no/such/python")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "Python 3.11 or newer is needed, and /no/such/python is missing" in run.stderr


def test_setup_with_an_old_python(tmp_path: Path) -> None:
    run = setup(tmp_path, fake_python(tmp_path, fails="(3, 11)"))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "is 3.9.1: install one" in run.stderr


def test_setup_without_the_venv_module(tmp_path: Path) -> None:
    run = setup(tmp_path, fake_python(tmp_path, fails="ensurepip"))
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "install python3-venv" in run.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "asks"),
    [
        (["-q", "-m", "gpu"], True),
        (["-mgpu"], True),
        (["-m", "gpu and not slow", "tests/test_gpu.py"], True),
        (["-m", "not slow"], False),
        (["-m", "not slow and not gpu"], False),
        (["tests/test_gpu.py", "-k", "gpu"], False),
    ],
)
def test_a_gpu_is_hidden_from_tests_unless_they_are_those_of_a_gpu(arguments: list[str], asks: bool) -> None:
    assert asks_for_gpu(arguments) == asks
