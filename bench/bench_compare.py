"""The table of twenty checkpoints from 100,000 score rows, on one core. `make bench`, or `pytest bench -s`.

The command as it is typed, in a process of its own: what is timed has the start of Python in it, the reading of the files, ten thousand resamples, and the writing of
all four forms. The rows are of a made-up study of the panel of judges, composition and portraits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evals import rows
from evals.checkpoints import ROOT

ALLOWED = 20.0
"""Seconds, on one core with nothing else to do."""
CHECKPOINTS = 20
PARTS = {
    "diffusiondb-test": (150, 4, ("imagereward", "pickscore", "hpsv2", "aesthetic", "clip_score")),
    "composition-unseen": (200, 1, ("objects", "fully_right", "clip_score", "imagereward")),
    "occupations": (25, 16, ("skin_tone", "monk_tone", "aesthetic")),
}
"""Prompts, images of each, scorers: 5,000 rows of a checkpoint."""

pytestmark = pytest.mark.timeout(600)


def scored(experiment: int) -> Iterator[rows.Row]:
    """One checkpoint, each a little better than the one before."""
    name = "base" if experiment == 0 else f"run{experiment}"
    for prompt_set, (prompts, images, scorers) in PARTS.items():
        for prompt in range(prompts):
            level = np.random.default_rng([len(prompt_set), prompt]).normal(size=images)
            own = np.random.default_rng([len(prompt_set), prompt, experiment])
            for scorer in scorers:
                values = level + 0.05 * experiment + own.normal(size=images)
                if scorer == "fully_right":
                    values = (values > 0).astype(float)
                if scorer in ("skin_tone", "monk_tone"):
                    values = own.integers(0, 4, images).astype(float)
                for image, value in enumerate(values):
                    yield rows.Row(
                        experiment=name,
                        model="sd2",
                        seed=0,
                        suite="paper:012345",
                        prompt_set=prompt_set,
                        prompts="0123456789ab",
                        prompt_id=f"p{prompt:04d}",
                        image=image,
                        picture=f"{experiment:02d}{prompt:06d}{image:04d}",
                        scorer=scorer,
                        version="0a1b2c3d",
                        trained_on=int(scorer == "imagereward" and experiment % 2 == 1),
                        value=float(value),
                    )


@pytest.mark.benchmark(group="compare")
def test_a_large_table_takes_seconds(tmp_path: Path) -> None:
    files = []
    for experiment in range(CHECKPOINTS):
        files.append(tmp_path / f"{experiment}.csv")
        rows.write(rows.table(scored(experiment)), files[-1])
    total = sum(len(path.read_text().splitlines()) - 1 for path in files)
    assert total == 100_000
    out = tmp_path / "table.md"
    forms = [
        "--out",
        str(out),
        "--latex",
        f"{out.with_suffix('.tex')}",
        "--json",
        f"{out.with_suffix('.json')}",
    ]
    one_core = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "evals", "compare", *files, *forms],
        cwd=ROOT,
        env=one_core,
        check=True,
        capture_output=True,
    )
    wall, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(
        f"\n{total:,} rows, {CHECKPOINTS} checkpoints: {spent:.1f} s of one core, {wall:.1f} s on this machine"
    )
    assert spent < ALLOWED
