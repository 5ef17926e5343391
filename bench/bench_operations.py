"""Rollout, update, every reward of the miniature, every metric, saving, resuming, the table: one by one, each beside a reference. `make bench`.

Kept in `results/bench/operations`, one file per hardware, with which `make bench-check` compares.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from bench.machine import Machine
from bench.operations import SCORES, Operation, Timed, Workbench, keep, makers, measured, path_here
from evals.miniature import weights_folder

pytestmark = pytest.mark.timeout(1800)  # the first waits for all


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Operation]:
    """An operation by its name, made once."""
    if not (weights_folder("pipeline") / "model_index.json").is_file() or not SCORES.is_file():
        pytest.skip("the miniature's weights or scores are not here: the clone is incomplete")
    bench = Workbench(tmp_path_factory.mktemp("operations"))
    return cache(lambda name: makers()[name](bench, name))


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, make: Callable[[str], Operation]) -> dict[str, Timed | Exception]:
    """What all operations take that are asked for, pass by pass, or what they raise; what is timed is kept."""
    asked: list[Any] = [
        item for item in request.session.items if getattr(item, "originalname", "") == "test_operation"
    ]
    machine = Machine.here()
    failed = dict[str, Exception]()
    told = measured([item.callspec.params["name"] for item in asked], make, machine, failed=failed)
    keep(path_here(), machine, told)
    return {**told, **failed}


@pytest.mark.parametrize("name", makers())
@pytest.mark.benchmark(group="operations")
def test_operation(
    name: str, make: Callable[[str], Operation], request: pytest.FixtureRequest, benchmark: Any
) -> None:
    if benchmark.disabled:
        operation = make(name)
        operation.before()
        operation.call()
        return
    told: Timed | Exception = request.getfixturevalue("found")[name]
    if isinstance(told, Exception):
        raise told
    operation = make(name)
    benchmark.pedantic(operation.call, setup=operation.before, rounds=1)
    benchmark.extra_info |= {"ratio": told.ratio, "per_second": told.per_second, "peak_mib": told.peak_mib}
    print(
        f"\n{name}: {told.ratio:.3g} times its reference ({told.least:.3g} to {told.most:.3g}), {told.seconds:.3g} s, "
        f"{told.per_second:,.1f} {told.unit}/s"
    )
