"""Rollout, update, every reward of the miniature, every metric, saving, resuming, the table: one by one, each beside a reference. `make bench`.

Kept in `results/bench/operations`, one file per hardware, with which `make bench-check` compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.machine import Machine
from bench.operations import SCORES, Timed, Workbench, keep, makers, path_here, timed
from evals.miniature import weights_folder

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    if not (weights_folder("pipeline") / "model_index.json").is_file() or not SCORES.is_file():
        pytest.skip("the miniature's weights or scores are not here: the clone is incomplete")
    return Workbench(tmp_path_factory.mktemp("operations"))


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Timed]]:
    machine, measured = Machine.here(), dict[str, Timed]()
    yield measured
    if measured:
        keep(path_here(), machine, measured)


@pytest.mark.parametrize("name", makers())
@pytest.mark.benchmark(group="operations")
def test_operation(name: str, bench: Workbench, found: dict[str, Timed], benchmark: Any) -> None:
    operation = makers()[name](bench, name)
    if benchmark.disabled:
        operation.before()
        operation.call()
        return
    told = timed(operation, Machine.here())
    benchmark.pedantic(operation.call, setup=operation.before, rounds=1)
    found[name] = told
    benchmark.extra_info |= {"ratio": told.ratio, "per_second": told.per_second, "peak_mib": told.peak_mib}
    print(
        f"\n{name}: {told.ratio:.3g} times its reference ({told.least:.3g} to {told.most:.3g}), {told.seconds:.3g} s, "
        f"{told.per_second:,.1f} {told.unit}/s"
    )
