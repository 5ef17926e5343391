"""The benchmarks' own arithmetic: what is compared with what, what is kept, what is refused. Nothing here is timed."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bench import check, growth, machine, operations, ways
from bench.growth import Point
from bench.machine import Machine
from bench.memory import peak_mib
from bench.operations import Operation, Pass, Taken, Timed, Workbench, keep, kept, makers, measured
from bench.peers import __main__ as peers
from bench.peers import gain, ours, worker
from bench.peers.worker import ROOT, Workers
from evals import metrics, scorers
from tests.test_make import Sandbox, sandbox  # noqa: F401  a fixture
from train import config, records
from train.loop import iterate
from train.start import new_accelerator, prepare

pytestmark = pytest.mark.timeout(120)
PIPELINE = ROOT / "evals" / "miniature" / "weights" / "pipeline"
needs_miniature = pytest.mark.skipif(
    not (PIPELINE / "model_index.json").is_file(), reason="the miniature's weights are not here"
)
MACHINE = Machine("a device", "a processor", 2, 2, 0.1, "2026-11-26T00:00+00:00", "c0ffee", "3.11", "2.15")


def took(
    *ratios: float,
    cpu: float = 1.0,
    reference: float = 1.0,
    commit: str = MACHINE.commit,
    kind: str = "python",
) -> Timed:
    """With a ratio in each pass, that of the processor's time `cpu` times as large."""
    middle = statistics.median(ratios)
    of_what = (1.0, 1.0, "images", 1.0, MACHINE.date, commit, 0.1, kind)
    passes = tuple(Pass(Taken(ratio, cpu * ratio), Taken(reference, reference)) for ratio in ratios)
    return Timed(middle, min(ratios), max(ratios), cpu * middle, *of_what, passes)


# peers


def test_a_batch_that_trl_cannot_cut_is_refused() -> None:
    with pytest.raises(ValueError) as told:
        replace(peers.SETTING, batch=100)
    assert "--batch is 100" in str(told.value) and "multiple of 80" in str(told.value)


def test_without_its_environment_the_peer_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ENVIRONMENT", tmp_path / ".venv-peers")
    with pytest.raises(ValueError, match=r"^\.venv-peers with trl's DDPOTrainer is not there: `make peers`"):
        peers.measured(peers.SETTING, 1, 1, tmp_path)


def test_half_an_environment_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ENVIRONMENT", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    with pytest.raises(ValueError, match="make peers"):
        worker.python_of("trl_ddpo")


SERVICE = """
from bench.peers.worker import serve
class Service:
    def add(self, a, b):
        print("what a library prints")
        return {"sum": a + b}
serve(Service())
"""


def test_a_worker_answers_each_request_and_nothing_else() -> None:
    asked = '{"do": "add", "a": 1, "b": 2}\n{"do": "add", "a": 3, "b": 4}\n'
    done = subprocess.run(
        [sys.executable, "-c", SERVICE], input=asked, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == '{"sum": 3}\n{"sum": 7}\n'
    assert "what a library prints" in done.stderr


def test_a_worker_that_has_ended_is_named(tmp_path: Path) -> None:
    # a module that serves nothing
    with Workers("worker", tmp_path, 1) as gone, pytest.raises(RuntimeError, match=r"^worker ended: "):
        gone("prepare")


def test_trainers_that_draw_other_pictures_are_not_compared() -> None:
    here = {"reward_mean": 0.5, "reward_std": 1.0}
    peers.refuse_other_pictures(here, {"reward_mean": 0.7, "reward_std": 1.0}, 100)
    # standard error of the difference: sqrt(2) / 10
    for other in (0.5 + 4.1 * math.sqrt(2) / 10, -1.0, math.nan):
        with pytest.raises(ValueError, match="do not draw the same model"):
            peers.refuse_other_pictures(here, {"reward_mean": other, "reward_std": 1.0}, 100)


def test_the_ratio_is_the_median_of_each_rounds_own() -> None:
    def rounds(*seconds: float) -> list[dict[str, float]]:
        return [{"seconds": s, "cpu_seconds": 2 * s} for s in seconds]

    # the machine was slow in the second round, for all
    found = {
        "trl_ddpo": rounds(1.2, 12.0, 1.3),
        "ours": rounds(1.0, 10.0, 1.0),
        "bare": rounds(0.8, 8.0, 0.5),
    }
    told = peers.summary(found, batch=10)
    assert told["times_as_fast_seconds"] == pytest.approx({"median": 1.2, "least": 1.2, "most": 1.3})
    assert told["ours_over_bare_seconds"]["median"] == pytest.approx(1.25)
    assert told["images_per_second"] == pytest.approx({"trl": 10 / 1.3, "here": 10.0})
    assert told["cpu_seconds"]["here"] == pytest.approx(2.0)


def test_how_far_two_processes_are_apart() -> None:
    one = {"gradient.a": torch.tensor([3.0, 0.0]), "weight.a": torch.tensor([1.0, -2.0])}
    other = {"gradient.a": torch.tensor([0.0, 3.0]), "weight.a": torch.tensor([1.0, -2.5])}
    assert peers.apart(one, one, "gradient.") == 0
    assert peers.apart(one, other, "gradient.") == pytest.approx(math.sqrt(2))
    assert peers.largest(one, other) == 0.5
    assert peers.total(one) == 3.0
    apart = {"gradients_apart": 1.4, "largest_weight_apart": 0.5, "sums_of_weights": [3.0, 3.5]}
    assert "two different models" in peers.told_gradient("trl", apart)
    assert "one model" in peers.told_gradient("here", apart | {"largest_weight_apart": 0.0})


def test_a_case_measured_again_leaves_the_others_and_what_stops_loses_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(setting: worker.Setting, rounds: int, *_: object) -> dict[str, Any]:
        if setting.lora and rounds > 1:
            raise RuntimeError("a trainer has ended")
        return {"seconds": {"here": float(rounds)}}

    monkeypatch.setattr(peers, "measured", measured)
    monkeypatch.setattr(peers, "told_speed", lambda *_: ["told"])
    out = tmp_path / "record.json"

    def call(*arguments: object) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(peers.main, [*map(str, arguments), "--out", str(out)])
        return done.exit_code, json.loads(out.read_text())

    code, first = call("--rounds", 1, "--case", "full", "--case", "lora")
    assert code == 0
    assert list(first) == ["full", "lora"]
    code, second = call("--rounds", 2)
    assert code == 1
    assert second["full"]["rounds"] == second["full"]["seconds"]["here"] == 2
    assert second["lora"] == first["lora"]
    assert set(second["full"]) >= {"command", "machine", "setting"}
    out.write_text('{"runs": []}')
    with pytest.raises(
        ValueError, match=r"record\.json is there and is no record \(it has runs, which is no case\)"
    ):
        peers.kept(out)
    out.write_text("{")
    with pytest.raises(ValueError, match="delete it, or give another --out"):
        peers.kept(out)


@needs_miniature
def test_older_transformers_find_every_weight_of_the_text_encoder(tmp_path: Path) -> None:
    peers.for_older_transformers(PIPELINE, tmp_path / "copy")
    ours_, theirs = (
        load_file(folder / "text_encoder" / "model.safetensors") for folder in (PIPELINE, tmp_path / "copy")
    )
    assert set(theirs) == {f"text_model.{name.removeprefix('text_model.')}" for name in ours_}
    for name, tensor in ours_.items():
        assert torch.equal(theirs[f"text_model.{name.removeprefix('text_model.')}"], tensor)


@pytest.mark.parametrize("lora", [False, True])
def test_here_is_trained_what_trl_trains(lora: bool) -> None:
    """As many passes of the denoiser, forward and backward, and as many optimiser steps, as trl's settings ask for."""
    setting = replace(peers.SETTING, lora=lora)
    experiment = ours.experiment_of(setting)
    config.check(experiment, 1)
    (task,) = experiment.tasks
    batches = setting.batch // setting.micro_batch
    drawn, trained = experiment.method.evaluations(experiment, task)
    assert drawn == batches * setting.steps * 2 * setting.micro_batch
    assert trained == batches * setting.trained_steps * 2 * setting.micro_batch
    accumulated = batches // setting.trained_steps  # of trl: batches to an optimiser step
    assert experiment.method.optimiser_steps(experiment) == batches // accumulated
    assert (experiment.lora is not None) == lora


@pytest.mark.parametrize("here", [None, 40])
def test_passes_here_may_be_of_another_size_than_by_trl(here: int | None) -> None:
    setting = replace(peers.SETTING, micro_batch_here=here)
    experiment = ours.experiment_of(setting)
    wanted = here or setting.micro_batch
    assert (experiment.sampling.micro_batch, experiment.update.micro_batch) == (wanted, wanted)
    assert setting.micro_batch == peers.SETTING.micro_batch, "trl's"
    config.check(experiment, 1)


# operations


class FakeMachine:
    """A clock that goes on by what is done.

    Readings jitter, and one of twenty goes wrong by up to twice its time. In spells something else runs, which slows each kind of work by a share of its own.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the machine of `bench.operations`."""
        self.clock, self.busy, self.next_turn = 0.0, False, math.inf
        self.spell, self.between, self.slower_by, self.noisy = 20.0, 40.0, 0.3, False
        self.random = random.Random(0)
        monkeypatch.setattr(operations, "now", lambda: self.clock)
        monkeypatch.setattr(operations, "processor_time", lambda: self.clock / 2)
        monkeypatch.setattr(operations, "time", SimpleNamespace(sleep=self.sleep))
        for kind in operations.REFERENCES:
            monkeypatch.setitem(operations.REFERENCES, kind, lambda: self.work(0.01))

    def begin(self, seed: int, spell: float = 20.0, between: float = 40.0) -> None:
        """Be noisy from here on, with spells and what is between them of so many seconds on average."""
        self.random, self.noisy, self.spell, self.between = random.Random(seed), True, spell, between
        self.busy, self.next_turn = False, self.clock + self.random.expovariate(1 / between)

    def work(self, seconds: float, share: float = 1.0) -> None:
        """Do something that takes so long on a quiet machine; a spell slows it by this share of what it slows the reference by."""
        while self.clock >= self.next_turn:
            self.busy = not self.busy
            self.next_turn += self.random.expovariate(1 / (self.spell if self.busy else self.between))
        if self.busy:
            seconds *= 1 + share * self.slower_by
        if self.noisy:
            seconds *= math.exp(self.random.gauss(0.0, 0.03))
            if self.random.random() < 0.05:
                seconds *= 1 + 2 * self.random.random()
        self.clock += seconds

    def sleep(self, seconds: float) -> None:
        """Nothing is done."""
        self.clock += seconds


def test_an_operations_ratio_is_to_the_reference_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMachine(monkeypatch)
    pace = [1.0]

    def reference() -> None:
        fake.work(0.01 * pace[0])

    def call() -> None:
        fake.work(0.03 * pace[0])
        pace[0] *= 1.01  # the machine becomes slower and slower

    monkeypatch.setitem(operations.REFERENCES, "python", reference)
    found = measured(["a"], lambda name: Operation(name, 6, "rows", "python", call), MACHINE, passes=3)
    (told,) = found.values()
    assert told.ratio == pytest.approx(3.0)
    assert told.least == pytest.approx(told.most)
    assert [each.ratio.cpu for each in told.passes] == pytest.approx([3.0] * 3)
    assert [2 * each.reference.cpu for each in told.passes] == [each.reference.wall for each in told.passes]
    assert told.passes[0].reference < told.passes[1].reference < told.passes[2].reference
    assert told.per_second == 6 / told.seconds
    assert (told.date, told.commit, told.kind) == (MACHINE.date, MACHINE.commit, "python")


def test_every_operation_is_in_every_pass_and_a_pass_takes_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what slows the machine for a minute is in a part of each, and not in all of one."""
    fake = FakeMachine(monkeypatch)
    began: dict[str, list[float]] = {"a": [], "b": []}
    seconds = {"a": 0.5, "b": 9.0}

    def make(name: str) -> Operation:
        def call() -> None:
            began[name].append(fake.clock)
            fake.work(seconds[name])

        return Operation(name, 1, "rows", "python", call)

    found = measured(["a", "b"], make, MACHINE, passes=4)
    assert {name: len(of.passes) for name, of in found.items()} == {"a": 4, "b": 4}
    measured_at = {name: of[2:] for name, of in began.items()}  # two to see how long it takes
    assert [one < other for one, other in zip(*measured_at.values(), strict=True)] == [True] * 4
    assert [a > b for a, b in zip(measured_at["a"][1:], measured_at["b"], strict=False)] == [True] * 3
    # of a short one alone the passes do not follow each other at once
    began["a"].clear()
    measured(["a"], make, MACHINE, passes=4)
    _, *apart = np.diff(began["a"][2:])  # in the first pass there is also what tells how long it takes
    assert apart == pytest.approx([operations.LEAST_PASS_SECONDS] * 2)


def test_a_short_operation_is_repeated_and_what_comes_before_is_off_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, calls = FakeMachine(monkeypatch), [0]
    seconds = operations.LEAST_SECONDS / 10

    def call() -> None:
        calls[0] += 1
        fake.work(seconds)

    def before() -> None:
        fake.sleep(1000.0)

    found = measured(
        ["a"], lambda name: Operation(name, 1, "rows", "python", call, before), MACHINE, passes=2
    )
    assert found["a"].seconds == pytest.approx(seconds)
    assert found["a"].ratio == pytest.approx(seconds / 0.01)
    assert calls[0] == pytest.approx(2 + 2 * 10 * operations.ROUNDS, abs=40)


def test_a_reading_that_went_wrong_is_not_in_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, calls = FakeMachine(monkeypatch), [0]

    def call() -> None:
        calls[0] += 1
        fake.work(0.03 if calls[0] % 3 else 0.3)

    found = measured(["a"], lambda name: Operation(name, 1, "rows", "python", call), MACHINE, passes=4)
    assert [each.ratio.wall for each in found["a"].passes] == pytest.approx([3.0] * 4)


def test_an_operation_that_fails_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, calls = FakeMachine(monkeypatch), [0]

    def make(name: str) -> Operation:
        if name == "cannot be made":
            raise FileNotFoundError(name)

        def call() -> None:
            fake.work(0.03)
            if name == "fails in the second pass":
                calls[0] += 1
                if calls[0] > 2 + operations.ROUNDS:  # two to see how long it takes
                    raise RuntimeError(name)

        return Operation(name, 1, "rows", "python", call)

    failed: dict[str, Exception] = {}
    names = ["a", "cannot be made", "fails in the second pass", "b"]
    found = measured(names, make, MACHINE, passes=3, failed=failed)
    assert {name: len(of.passes) for name, of in found.items()} == {"a": 3, "b": 3}
    assert {name: type(error) for name, error in failed.items()} == {
        "cannot be made": FileNotFoundError,
        "fails in the second pass": RuntimeError,
    }
    assert calls == [3 + operations.ROUNDS], "it is not asked again"
    with pytest.raises(FileNotFoundError):
        measured(names, make, MACHINE, passes=3)


def test_every_reward_and_metric_is_an_operation() -> None:
    names = set(makers())
    assert {f"reward {name}" for name in scorers.names("miniature")} <= names
    assert {f"metric {name}" for name in metrics.names()} <= names
    assert {"iteration", "rollout", "update", "saving", "resuming", "table"} <= names


@pytest.mark.parametrize("name", ["geneval", "geneval_colors", "parity", "win_rate_gold"])
def test_metrics_get_rows_that_they_can_read(name: str, tmp_path: Path) -> None:
    operation = makers()[f"metric {name}"](Workbench(tmp_path), f"metric {name}")
    operation.call()
    rows = operations.rows_of(metrics.load(name), 553, 1)
    assert operation.count == len(rows) == 4 * 553
    found = metrics.load(name).statistics(rows, rows)
    assert np.isfinite(metrics.load(name).finish(found.to_numpy(dtype=np.float64).mean(0)[None])).all()


def test_references_can_be_called() -> None:
    for reference in operations.REFERENCES.values():
        reference()


def test_a_record_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "operations" / "device.json"
    assert kept(path) == {}
    keep(path, MACHINE, {"rollout": took(1.0, 1.1), "update": took(2.0)})
    keep(path, MACHINE, {"update": took(3.0, 2.9, 3.2)})
    assert kept(path) == {"rollout": took(1.0, 1.1), "update": took(3.0, 2.9, 3.2)}
    assert records.everything(tmp_path) == []  # the plan of a run does not take it for one of its own
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"device\.json is damaged"):
        kept(path)


def older(ratio: float) -> Timed:
    """As records had it before passes were kept."""
    return replace(took(ratio), kind="", passes=())


def test_a_record_of_an_older_form_is_read_and_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "device.json"
    keep(path, MACHINE, {"rollout": older(1.0)})
    content = json.loads(path.read_text())
    for field in ("kind", "passes"):
        del content["operations"]["rollout"][field]
    path.write_text(json.dumps(content))
    assert kept(path) == {"rollout": older(1.0)}
    monkeypatch.setattr(check, "path_here", lambda: path)
    with pytest.raises(ValueError, match=r"device\.json is of an older form, .*: `make bench` makes it anew"):
        check.main([])
    keep(path, MACHINE, {"update": took(2.0)})
    assert kept(path) == {"rollout": older(1.0), "update": took(2.0)}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results" / "bench" / "operations").glob("*.json")), ids=lambda path: path.stem
)
def test_the_records_in_the_repository_are_read(path: Path) -> None:
    assert set(kept(path)) <= {*makers()}
    assert all(of.ratio > 0 for of in kept(path).values())


# bench-check


QUIET = (1.0, 1.01, 0.99, 1.02, 1.0, 0.98, 1.01, 1.0)
"""Ratios of eight passes of what has not changed."""


def times(factor: float, ratios: Sequence[float] = QUIET) -> list[float]:
    return [factor * ratio for ratio in ratios]


def test_slower_is_only_what_is_so_twice() -> None:
    names = ("same", "once", "twice", "faster")
    record = {name: took(*QUIET) for name in names} | {
        "before": older(1.0),
        "beside": took(*QUIET, kind="tables"),
    }
    answers = {"same": [1.1], "once": [1.5, 1.1], "twice": [1.5, 1.4], "faster": [0.5], "beside": [1.5]}
    said: list[str] = []
    asked: list[tuple[list[str], int]] = []

    def measure(names: Sequence[str], passes: int) -> dict[str, Timed]:
        asked.append(([*names], passes))
        return {name: took(*times(answers[name].pop(0))) for name in names}

    assert check.checked([*record, "another"], record, measure, said.append) == ["twice"]
    assert asked == [
        ([*names, "beside"], operations.PASSES),
        (["once", "twice"], 2 * operations.PASSES),
    ]
    told = {line.split(":")[0]: line for line in said}
    assert {*told} == {
        *("older     before", "older     beside", "new       another", "measuring again"),
        *("as before same", "as before once", "SLOWER    twice", "faster    faster"),
    }
    assert told["measuring again"] == "measuring again: once, twice"
    assert "+40%, measured again" in told["SLOWER    twice"]
    assert "c0ffee" in told["SLOWER    twice"]
    assert "measured again" not in told["as before same"]
    assert "beside another reference (tables, now python)" in told["older     beside"]


def test_how_far_passes_differ_is_part_of_the_question() -> None:
    before = took(*QUIET)
    assert check.outcome(before, took(*times(1 + check.LEAST))) == "as before"
    assert check.outcome(before, took(*times(1.3))) == "SLOWER"
    assert check.outcome(took(*times(1.3)), before) == "faster"
    # one pass that went wrong decides nothing, on either side
    assert check.outcome(before, took(*times(1.3)[1:], 1.0)) == "SLOWER"
    assert check.outcome(took(*QUIET[1:], 9.0), took(*times(1.3))) == "SLOWER"
    # on a machine on which ratios differ by as much anyway nothing is told of the same difference
    restless = (0.7, 1.4, 0.8, 1.3, 1.0, 0.9, 1.6, 1.1)
    assert check.outcome(took(*restless), took(*times(1.3, restless))) == "not told"
    assert check.outcome(before, took(*times(1.3, restless))) == "not told"


def test_a_busier_machine_is_no_slower_operation() -> None:
    before, after = took(*QUIET), took(*times(1.5), reference=1.2)
    assert check.outcome(before, after) == "not told"
    assert "+50%, the machine busier than then in 8 of 8 passes" in check.verdict("a", before, after)
    # a faster one is no excuse
    assert check.outcome(before, took(*times(1.3), reference=0.8)) == "SLOWER"
    # but where the record was made on a busy one, what is lower now is not faster for that
    assert check.outcome(took(*times(1.5), reference=1.2), before) == "not told"
    # the passes that were quiet tell it, and the others nothing
    slower = took(*times(1.3))
    some_busy = replace(slower, passes=slower.passes[:6] + after.passes[:5])
    assert check.outcome(before, some_busy) == "SLOWER"
    assert "in 5 of 11 passes" in check.verdict("a", before, some_busy)
    assert check.outcome(before, replace(before, passes=before.passes[:6] + after.passes)) == "as before"


def test_what_one_clock_says_alone_is_no_change() -> None:
    before = took(*times(2.0))
    assert check.change_of(before, took(*QUIET, cpu=1.5)) == pytest.approx(-0.25)
    assert check.change_of(before, took(*QUIET, cpu=3.0)) == 0
    # another process at work shows on the clock only
    assert not check.is_slower(before, took(*times(9.0), cpu=2.0 / 9.0))
    assert not check.is_slower(before, took(*times(2.0), cpu=4.5))
    assert check.is_slower(before, took(*times(9.0), cpu=0.5))


OPERATIONS = 40
"""That are simulated side by side."""


def simulated(
    fake: FakeMachine, seed: int, change: float
) -> Callable[[Sequence[str], int], dict[str, Timed]]:
    """What `checked` measures with on the fake machine: operations that feel a spell by half to two and a half times what their references do, all `change` times as long."""
    draw = random.Random(f"operations {seed}").uniform
    of = {f"{n}": (0.03 * draw(0.7, 2.0), draw(0.5, 2.5)) for n in range(OPERATIONS)}

    def make(name: str) -> Operation:
        seconds, share = of[name]
        return Operation(name, 1, "rows", "python", lambda: fake.work(change * seconds, share))

    def measure(names: Sequence[str], passes: int) -> dict[str, Timed]:
        return measured(names, make, MACHINE, passes)

    return measure


@pytest.mark.parametrize(
    ("change", "now"),
    [(1.0, (20.0, 40.0)), (1.0, (1e9, 1e-9)), (1.0, (40.0, 10.0)), (1.3, (20.0, 40.0))],
    ids=["as it was", "always busy now", "busier now", "slower by 1.3"],
)
def test_noise_does_not_decide(
    change: float, now: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand unchanged operations fewer than one is called slower, of those that take 1.3 times as long more than nine of ten."""
    fake = FakeMachine(monkeypatch)
    monkeypatch.setattr(operations, "tqdm", lambda **_: nullcontext(SimpleNamespace(update=lambda: None)))
    names, called, checks = [f"{n}" for n in range(OPERATIONS)], 0, 5 if change > 1 else 25
    for seed in range(checks):
        fake.begin(2 * seed)
        record = simulated(fake, seed, 1.0)(names, operations.PASSES)
        fake.begin(2 * seed + 1, *now)
        called += len(check.checked(names, record, simulated(fake, seed, change), lambda _: None))
    if change > 1:
        assert called > 0.9 * checks * OPERATIONS
    else:
        assert called < 0.001 * checks * OPERATIONS + 1


def test_hardware_without_a_record_and_unknown_operations_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "path_here", lambda: tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"there is no record of .*: `make bench` makes it"):
        check.main([])
    with pytest.raises(ValueError, match="there is no operation 'rolout': choose from iteration"):
        check.main(["rolout"])


# growth


def points(axis: str, power: float) -> list[Point]:
    return [Point(axis, size, 3.0 * size**power, 100.0 + size) for size in growth.AXES[axis]]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_the_power(power: float) -> None:
    of = points("batch", power)
    assert growth.exponent(of, growth.UNITS["s"]) == pytest.approx(power)
    assert ("STEEPER" in growth.told(of)) == (power > growth.STRAIGHT)


def test_what_is_flat_and_then_steep_is_told() -> None:
    of = [Point("prompts", size, 2e-4 + 1e-12 * size**1.6, 1.0) for size in growth.AXES["prompts"]]
    assert growth.exponent(of, growth.UNITS["s"]) < growth.STRAIGHT
    assert "STEEPER" in growth.told(of)


@pytest.mark.parametrize(("power", "code"), [(1.0, 0), (1.6, 1)])
def test_the_exit_code_is_what_the_lines_say(
    power: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def measured(axis: str, size: int) -> Point:
        return Point(axis, size, 2e-4 + 1e-12 * size**power, 1.0)

    monkeypatch.setattr(growth, "measured", measured)
    monkeypatch.setattr(growth, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["growth", "--axis", "prompts"])
    assert growth.main() == code
    assert ("STEEPER" in capsys.readouterr().out) == bool(code)


def test_constant_and_slope_of_a_line() -> None:
    constant, slope = growth.line_of(points("batch", 1.0), growth.UNITS["MiB"])
    assert (constant, slope) == pytest.approx((100.0, 1.0))


def test_memory_that_grows_steeply_is_told() -> None:
    of = [Point("steps", size, 1.0, float(size**2)) for size in growth.AXES["steps"]]
    assert "STEEPER" in growth.told(of)


def test_where_memory_is_not_known_time_alone_is_told() -> None:
    of = [replace(point, mib=math.nan) for point in points("batch", 1.0)]
    assert "MiB" not in growth.told(of) and "STEEPER" not in growth.told(of)


def test_table_and_picture_have_every_point() -> None:
    of = [*points("batch", 1.0), *points("prompts", 0.0)]
    read = list(csv.DictReader(io.StringIO(growth.table(of, MACHINE))))
    assert [(row["axis"], int(row["size"]), float(row["mib"])) for row in read[:2]] == [
        ("batch", 16, 116.0),
        ("batch", 32, 132.0),
    ]
    assert {row["commit"] for row in read} == {MACHINE.commit}
    drawn = ElementTree.fromstring(growth.picture(of, "a device"))
    lines = drawn.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [4, 4, 5, 5]


def test_an_axis_that_is_measured_again_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "FOLDER", tmp_path)
    growth.keep([*points("batch", 1.0), *points("pictures", 1.0)], MACHINE)
    later = replace(MACHINE, commit="later")
    path = growth.keep(points("batch", 2.0), later)
    read = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["axis"] for row in read] == ["batch"] * 4 + ["pictures"] * 5
    assert [row["commit"] for row in read] == ["later"] * 4 + [MACHINE.commit] * 5
    assert float(read[3]["seconds"]) == pytest.approx(3 * 128**2, rel=1e-3)
    drawn = ElementTree.fromstring(path.with_suffix(".svg").read_text(encoding="utf-8"))
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_pictures_are_scored_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "ROUNDS", 1)
    seconds, mib = growth.taken({"batch": 1, "pictures": 240})
    assert seconds > 0.1
    assert mib is None or mib > 100


def test_asking_a_large_set_takes_no_more_than_its_order() -> None:
    _, mib = growth.asking(10**6)
    # 8 bytes for each prompt: a run has the order of one pass, however many seeds are timed
    assert mib is None or mib < 1.5 * 8


# machine


PEAKS = """
import numpy as np
from bench.memory import forget_peak, peak_mib
forget_peak()
before = peak_mib()
block = np.ones(64 * 2**17)
after = peak_mib()
del block
forget_peak()
print(before, after, peak_mib())
"""


def test_what_a_peers_environment_reads_needs_nothing_else_of_the_project() -> None:
    program = """if True:
        import sys, bench.memory, bench.peers.worker
        print(*sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names))
    """
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [name for name in run.stdout.split() if not name.startswith("_")] == ["bench"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is that of the GPU")
def test_a_benchmarks_peak_is_its_own() -> None:
    """Not that of whatever ran in the process before, which would hide that memory grows."""
    if peak_mib() is None:
        pytest.skip("this system does not say a process's peak memory")
    of_benchmark = PEAKS.replace(
        "bench.memory import forget_peak, peak_mib",
        "bench.memory import forget_own_peak as forget_peak, own_peak_mib as peak_mib",
    )
    told = subprocess.run(
        [sys.executable, "-c", of_benchmark], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, block, after = (float(number) for number in told.stdout.split())
    assert block > before + 60
    assert after < block - 40


def test_the_peak_is_that_since_it_was_forgotten() -> None:
    """In a process of its own: one that has run other tests may have room for the block already."""
    if peak_mib() is None:
        pytest.skip("this system does not say a process's peak memory")
    told = subprocess.run([sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after, again = map(float, told.stdout.split())
    assert 60 < after - before < 100
    assert again < after - 60


# make


def test_the_environment_of_peers_is_made_when_its_lock_changes(sandbox: Sandbox) -> None:  # noqa: F811
    sandbox.write(".venv-peers/bin/python")  # in place of what uv makes
    made = sandbox.calls("peers")
    assert [call.split(" --")[0] for call in made] == ["-m uv venv", "-m uv pip install"]
    assert "--require-hashes -r bench/peers/requirements.lock" in made[1]
    assert sandbox.calls("peers") == []
    sandbox.age(".venv-peers/.complete", 60)
    sandbox.write("bench/peers/requirements.lock", "changed")
    assert len(sandbox.calls("peers")) == 2


@needs_miniature
@pytest.mark.parametrize("name", ways.WAYS)
def test_another_way_is_the_same_iteration(name: str, tmp_path: Path) -> None:
    way, told = ways.WAYS[name], []
    usual = ways.usual(16)
    usual = replace(
        usual, sampling=replace(usual.sampling, steps=4), update=replace(usual.update, trained_steps=2)
    )
    for other in (False, True):
        out = tmp_path / f"other-{other}"
        run = prepare(way.experiment(usual) if other else usual, "miniature", 0, out, new_accelerator())
        if other:
            way.run(run)
        for iteration in range(2):
            iterate(run, iteration)
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        told.append([json.loads(line) for line in lines])
    for line, same in zip(*told, strict=True):
        for field in ("reward_mean", "grad_norm"):
            assert same[field] == pytest.approx(line[field], rel=1e-2, abs=1e-3), field
    assert told[0][0]["reward_mean"] != told[0][1]["reward_mean"]


def test_a_ways_ratio_is_of_each_rounds_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work that slows a round falls on both."""
    clock, turns = [0.0], []

    def iterate(run: Any, _: int) -> None:
        turns.append(run)
        clock[0] += (1 + (len(turns) - 1) // 2) * (3.0 if run == "other" else 2.0)

    monkeypatch.setattr(ways, "now", lambda: clock[0])
    monkeypatch.setattr(ways.time, "process_time", lambda: clock[0])
    runs = iter(["usually", "other"])

    class Prepared(str):
        progress = SimpleNamespace(iteration=0)

    monkeypatch.setattr(ways, "prepare", lambda *_: Prepared(next(runs)))
    monkeypatch.setattr(ways, "iterate", iterate)
    found, of_processor = ways.ratios(ways.Way(), 16, rounds=3)
    assert found == of_processor == pytest.approx([1.5] * 3)
    assert turns[2:] == ["other", "usually", "usually", "other", "other", "usually"]


def test_a_level_is_of_the_last_pictures_and_first_reached_once() -> None:
    gold = [3.0] * 10 + [4.0] * 20
    found = gain.levels(gold, batch=48)
    assert found[9] == 3.0
    assert found[14] == pytest.approx(3.5)
    assert found[19] == 4.0
    assert gain.levels([1.0, 3.0], batch=1000) == [1.0, 3.0]
    assert gain.reached(found, 3.5) == 14
    assert gain.reached(found, 4.1) is None


@pytest.mark.parametrize("name", ["base", "fairness", "joint"])
def test_what_has_another_reward_is_not_raced(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^--experiment is {name}, but what trl trains on is"):
        gain.refuse_another_reward(name)
    gain.refuse_another_reward("imagereward_draft")


def test_the_race_to_trls_gold_says_what_came_of_it() -> None:
    def side(seconds: list[float], gold: list[float]) -> dict[str, list[float]]:
        return {"seconds": seconds, "cpu_seconds": seconds, "gold": gold, "level": gold}

    theirs = side([10, 20, 30], [3.0, 3.5, 4.0])
    fast = {"seed": 1, "target": 4.0, "trl": theirs, "here": side([2, 5], [3.0, 4.1])}
    line = gain.told(fast | {"times_as_fast": {"seconds": 6.0, "cpu_seconds": 6.0}}, "imagereward_draft")
    assert line.startswith("seed 1: gold 3.00 to 4.000 in 30 s by trl's DDPO; from 3.00 in 5 s here")
    assert line.endswith("6.0 times as fast (by processor time 6.0), goal 5: reached")
    short = fast | {"here": side([2, 5], [3.0, 3.1]), "times_as_fast": {"seconds": None, "cpu_seconds": None}}
    assert gain.told(short, "imagereward_draft").endswith("ends at 3.100 after 5 s, below that")


def test_a_record_of_another_kind_lies_beside_a_devices(tmp_path: Path) -> None:
    """A gain takes a quarter of an hour, and is kept at its end: its name must not fail there."""
    plain = machine.record_path(tmp_path)
    assert plain.parent == tmp_path
    assert plain.suffix == ".json"
    for ending in ("-gain.json", ".csv"):
        assert machine.record_path(tmp_path, ending) == tmp_path / f"{plain.stem}{ending}"


def test_a_race_to_a_gain_is_measured_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command from end to end, with trainers whose gold is known."""

    class Known:
        """Gold rises by .1 an iteration there, by .5 here; an iteration takes 10 s there, 5 here."""

        def __init__(self, name: str, _folder: Path, _threads: int) -> None:
            self.name, self.gold = name, 3.0

        def __enter__(self) -> Known:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, what: str, **_: Any) -> list[dict[str, Any]]:
            if what == "iterate":
                there = self.name == "trl_ddpo"
                self.gold += 0.1 if there else 0.5
                return [{"seconds": 10.0 if there else 5.0, "cpu_seconds": 8.0, "gold_mean": self.gold}]
            return [{}]

    monkeypatch.setattr(gain, "Workers", Known)
    monkeypatch.setattr(gain, "FOLDER", tmp_path)
    told = CliRunner().invoke(gain.main, ["--experiment", "imagereward_nft", "--iterations", "30"])
    assert told.exit_code == 0, told.output
    (kept,) = (tmp_path / "peers").glob("*-gain.json")
    (run,) = json.loads(kept.read_text())["runs"]
    # the level of the last 480 pictures, of six iterations of 80 there
    assert run["target"] == pytest.approx(3.0 + 0.1 * (30 - 2.5))
    *before, last = run["here"]["level"]
    assert last >= run["target"] > max(before)
    here = len(before) + 1
    assert run["times_as_fast"]["seconds"] == pytest.approx(300 / (5 * here))
    assert "times as fast" in told.output
