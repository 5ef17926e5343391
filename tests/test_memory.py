"""What a process on a CPU does with memory that it has freed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAULTS = """
import resource, sys
from evals.memory import keep_what_is_freed

{call}

def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(2):
    b"x" * (96 << 20)
before = faults()
for _ in range(8):
    b"x" * (96 << 20)
print(faults() - before)
"""


def faults_of(call: str, **environment: str) -> int:
    """Page faults of eight blocks of 96 MiB, each freed before the next, in a process of its own."""
    usual = {
        name: value
        for name, value in os.environ.items()
        if name != "GLIBC_TUNABLES" and not name.startswith("MALLOC_")
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)],
        cwd=ROOT,
        env=usual | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc only, and this is another C library")
def test_memory_that_is_freed_is_kept_for_what_comes_next() -> None:
    pages = 8 * (96 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults_of("") > pages / 2, "glibc by itself"
    assert faults_of("keep_what_is_freed()") < pages / 100
    assert faults_of("keep_what_is_freed()", MALLOC_ARENA_MAX="2") > pages / 2, "whoever says how is heard"


def test_training_and_scoring_on_a_cpu_keep_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from evals import harness
    from train import start

    called: list[str] = []
    monkeypatch.setattr(start, "keep_what_is_freed", lambda: called.append("train"))
    monkeypatch.setattr(harness, "keep_what_is_freed", lambda: called.append("score"))
    start.new_accelerator()
    assert called == ["train"]
    with pytest.raises(ValueError, match="pictures"):
        harness.score_given(tmp_path / "none", tmp_path / "a.csv", "miniature", "mine")
    assert called == ["train", "score"]
