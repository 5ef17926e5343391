"""What scoring costs beyond the calls of model and scorers that it cannot do without. `make bench`, or `pytest bench -s`.

A part of the miniature's suite is drawn, kept and scored, and timed against the bare calls: the painter and every scorer on the same pictures in memory, in the same
batches. Files, hashes, locks, rows and provenance are what is above that. The two alternate within one run, so that whatever else the machine does falls on both.

Where other machines share the processor, two runs of the same calls differ by a tenth, by the clock and by processor time. What is held to the goal is the median of the single ratios,
each to the mean of the bare calls before and after it, and what the record of the score rows finds outside the calls of the same run, which does not see a call that is slower for what
runs beside it.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from bench.bare import now
from evals import harness, scorers, suites
from evals.arithmetic import exact_device
from evals.asides import beside
from evals.checkpoints import resolve
from evals.diffusion import Painter
from evals.miniature import weights_folder
from evals.pictures import CHUNK, Pictures, items_of
from evals.suites import Suite
from evals.suites.miniature import SUITE

ALLOWED = 1.05
ROUNDS = 9

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def suite() -> Suite:
    """The part with the most scorers."""
    if not (weights_folder("pipeline") / "model_index.json").is_file():
        pytest.skip("the miniature's weights are not here: the clone is incomplete")
    return replace(SUITE, parts=SUITE.parts[:1], name="miniature")


class Spent(NamedTuple):
    """Seconds, by the clock and of the processor."""

    clock: float
    processor: float

    @classmethod
    def so_far(cls) -> Spent:
        """Of this process."""
        return cls(now(), time.process_time())

    def since(self, start: Spent) -> Spent:
        """What has been spent in between."""
        return Spent(self.clock - start.clock, self.processor - start.processor)


class BareCalls:
    """The painter and every scorer, on pictures in memory."""

    def __init__(self, suite: Suite, target: Path, device: str) -> None:
        (self.part,) = suite.parts
        self.suite = suite
        self.painter = Painter.of(resolve(str(target)).pipeline().to(device), suite.sampling)
        self.items = items_of(self.part)
        self.scorers = {name: scorers.load(name, device, suite.domain) for name in self.part.scorers}

    def __call__(self) -> Spent:
        """What they take."""
        start = Spent.so_far()
        texts, numbers = [one.prompt.text for one in self.items], [one.image for one in self.items]
        drawn = [
            self.painter.paint(texts[at : at + CHUNK], numbers[at : at + CHUNK], self.suite.seed)
            for at in range(0, len(texts), CHUNK)
        ]
        images, asked = torch.cat(drawn), [one.prompt for one in self.items]
        for scorer in self.scorers.values():
            if scorers.has_stages(scorer):
                features = [
                    scorer.features(images[at : at + harness.SHOWN])  # type: ignore[attr-defined]
                    for at in range(0, len(asked), harness.SHOWN)
                ]
                # the base is its own base: what it is asked once is enough
                scorer.from_features(torch.cat(features), torch.cat(features))  # type: ignore[attr-defined]
                continue
            for at in range(0, len(asked), harness.SHOWN):
                scorer(images[at : at + harness.SHOWN], asked[at : at + harness.SHOWN])
        return Spent.so_far().since(start)


@pytest.mark.benchmark(group="scoring")
def test_scoring_costs_little_more_than_its_bare_calls(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Any
) -> None:
    device = str(exact_device())
    target = tmp_path / "base"
    target.symlink_to(weights_folder("pipeline"))
    bare = BareCalls(suite, target, device)
    # what a suite of minutes does not feel: the models are opened, by both, before the clock starts
    checkpoint = replace(resolve(str(target)), experiment="base")
    monkeypatch.setattr(harness, "resolve", lambda _target: checkpoint)
    monkeypatch.setattr(suites, "load", lambda _name: suite)
    monkeypatch.setattr(scorers, "load", lambda name, *_: bare.scorers[name])
    monkeypatch.setattr(Pictures, "_new_painter", lambda _self: bare.painter)
    ours: list[Spent] = []

    def out() -> Path:
        """A folder of its own for each: a file system goes on for seconds at files that were removed."""
        return tmp_path / str(len(ours)) / "scores" / "base.csv"

    def scoring() -> None:
        start = Spent.so_far()
        harness.score(str(target), out(), "miniature")
        ours.append(Spent.so_far().since(start))

    bare()
    theirs = [bare()]
    outside: list[float] = []
    for last in [False] * (ROUNDS - 1) + [True]:
        record = beside(out())
        benchmark.pedantic(scoring, rounds=1) if last else scoring()
        outside.append(1 - json.loads(record.read_text(encoding="utf-8"))["machine"]["bare_share"])
        theirs.append(bare())
    by_clock, by_processor = (
        [
            one[by] / statistics.fmean((before[by], after[by]))
            for one, (before, after) in zip(ours, pairwise(theirs), strict=True)
        ]
        for by in (0, 1)
    )
    overhead, inside = statistics.median(by_clock), 1 / (1 - statistics.median(outside))
    seconds, bare_seconds = (statistics.median(one.clock for one in side) for side in (ours, theirs))
    benchmark.extra_info |= {
        "bare_seconds": bare_seconds,
        "overhead": overhead,
        "by_processor": by_processor,
        "by_clock": by_clock,
        "over_its_own_calls": inside,
        "images": len(bare.items),
        "threads": torch.get_num_threads(),
    }
    print(
        f"\nscoring {seconds:.2f} s, bare calls {bare_seconds:.2f} s, medians of {len(ours)} and {len(theirs)}; single ratios: median {overhead:.3f} "
        f"({min(by_clock):.3f} to {max(by_clock):.3f}), of processor time {statistics.median(by_processor):.3f} ({min(by_processor):.3f} to {max(by_processor):.3f}); "
        f"over the calls of the same run {inside:.3f}"
    )
    assert max(overhead, inside) <= ALLOWED, f"scoring takes {max(overhead, inside):.3f} times its bare calls"
