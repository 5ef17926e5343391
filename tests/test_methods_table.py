"""Methods side by side: budgets, refusals, numbers against their definitions, work that is stopped and goes on, and tries that touch nothing reported."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import prompts
from bench.methods import SEEDS, code, pages, table, tune, work
from bench.methods.__main__ import main
from bench.methods.cells import SUITE, TUNING_SUITE, Cell, Refusal, cells, plan
from bench.methods.questions import BESIDE, QUESTIONS
from bench.methods.table import Standing, crossing, gains_RT, standing
from evals import compare, metrics, rows, signals, suites
from evals.curve import per_prompt
from evals.diffusion import Sampling
from evals.suites import Part, Suite
from train import experiments, methods
from train.config import as_json, override
from train.plan import evaluations

QUESTION = QUESTIONS["imagereward"]
SCORERS = ("imagereward", "clip_judge", "gold_utility", "vendi", "kid")
AT = (0, 20, 40)
"""Checkpoints of made-up runs: the base, the middle and the end."""


# --------------------------------------------------------------------------------------------------------------- what is asked


def test_every_question_is_answered_by_the_part_of_its_prompts() -> None:
    for suite, chosen in ((SUITE, "prompt_set"), (TUNING_SUITE, "tuning_set")):
        parts = {part.prompt_set: part for part in suites.load(suite).parts}
        for question in QUESTIONS.values():
            names = {*question.roles().values(), *BESIDE.values()}
            needed, scorers = (
                {metrics.load(name).scorer for name in names},
                {*parts[getattr(question, chosen)].scorers},
            )
            assert needed <= scorers
            assert scorers - needed <= {"gold_utility"}
            assert metrics.load(question.proxy).scorer in {
                term.scorer
                for task in experiments.load(question.reward, "miniature").tasks
                for term in task.rewards
            }
            assert metrics.load(question.held_out).scorer != metrics.load(question.proxy).scorer


def test_metrics_are_linear_in_their_statistics() -> None:
    """So that a straight line between two checkpoints' statistics is one between their gains."""
    generator = np.random.default_rng(0)
    for name in {name for q in QUESTIONS.values() for name in q.roles().values()} | {*BESIDE.values()}:
        finish = metrics.load(name).finish
        size = 3 if name.startswith("win_rate") else 1
        one, other = generator.dirichlet(np.ones(size), 2) if size == 3 else generator.normal(size=(2, 1))
        assert finish(0.3 * one + 0.7 * other) == pytest.approx(0.3 * finish(one) + 0.7 * finish(other))


def test_a_part_of_a_suite() -> None:
    suite = suites.load("miniature")
    assert suites.only(suite, []) == suite
    assert suites.only(suite, ["miniature-scenes-unseen"]).parts == (suite.parts[1],)
    with pytest.raises(
        ValueError, match=r"suite miniature has no prompt set 'x'; choose from miniature-pref"
    ):
        suites.only(suite, ["x"])


def test_settings_are_chosen_on_prompts_of_which_nothing_is_reported() -> None:
    reported = {p.text for part in suites.load("miniature").parts for p in prompts.load(part.prompt_set)}
    reported |= {p.text for part in suites.load(SUITE).parts for p in prompts.load(part.prompt_set)}
    for question in QUESTIONS.values():
        texts = [prompt.text for prompt in prompts.load(question.tuning_set)]
        assert len({*texts}) == len(texts) >= 20
        assert not reported & {*texts}
    # scenes are of pairs of objects that no other set holds, in either order
    pairs = {
        frozenset(f"{o['colour']} {o['shape']}" for o in p.expect["objects"])
        for p in prompts.load("miniature-scenes-tuning")
    }
    others = [n for n in prompts.names() if n.startswith("miniature-") and not n.endswith("-tuning")]
    for name in others:
        for prompt in prompts.load(name):
            if "objects" in prompt.expect:
                assert frozenset(f"{o['colour']} {o['shape']}" for o in prompt.expect["objects"]) not in pairs
    assert tune.SEED not in SEEDS
    assert [suites.load(n).seed for n in suites.names()].count(suites.load(TUNING_SUITE).seed) == 1
    assert [suites.load(n).seed for n in suites.names()].count(suites.load(SUITE).seed) == 1


# ---------------------------------------------------------------------------------------------------------------------- cells


def only_cells(found: Sequence[Cell | Refusal]) -> list[Cell]:
    made = [one for one in found if isinstance(one, Cell)]
    assert len(made) == len(found)
    return made


@pytest.mark.parametrize("reward", QUESTIONS)
def test_the_papers_method_is_there_in_full_and_within_the_budget_of_all(reward: str) -> None:
    cell, racing = only_cells(plan(["ppo"], [reward], [3]))
    own = experiments.load(reward, "miniature")
    assert (cell.label, racing.label) == ("ppo in full", "ppo")
    assert 0.8 * methods.EVALUATIONS[reward] < racing.evaluations <= methods.EVALUATIONS[reward]
    assert racing.key != cell.key
    (alone,) = only_cells(plan(["ppo"], [reward], [3], cell.budget, cell.asked_points))
    assert (alone.label, alone.key) == ("ppo", cell.key)
    assert cell.experiment.iterations == own.iterations
    assert cell.evaluations == cell.budget == evaluations(own)
    every = cell.experiment.snapshots_every
    assert cell.points == len([n for n in range(1, own.iterations) if n % every == 0]) + 1
    assert every / own.iterations <= 0.1 < (every + 1) / own.iterations


def test_iterations_are_what_the_budget_pays_for() -> None:
    each = evaluations(replace(experiments.load("fairness", "miniature"), iterations=1))
    for budget in (each, 2 * each - 1, 17 * each + 5):
        made = cells("fairness", "ppo", [0], budget)
        assert not isinstance(made, Refusal)
        assert made[0].experiment.iterations == budget // each
        assert made[0].evaluations <= budget < made[0].evaluations + each
    with pytest.raises(
        ValueError, match=rf"^--budget is {each - 1} denoiser evaluations, but one .* {each}: "
    ):
        cells("fairness", "ppo", [0], each - 1)


@pytest.mark.parametrize("reward", QUESTIONS)
@pytest.mark.parametrize("method", [name for name in methods.names() if name != methods.PAPERS])
def test_a_method_trains_as_in_the_table_by_its_name(method: str, reward: str) -> None:
    (cell,) = plan([method], [reward], [0])
    if isinstance(cell, Refusal) or methods.chosen(method, reward) is None:
        return
    named = experiments.load(f"{reward}_{method}", "miniature")
    assert (
        replace(cell.experiment, snapshots_every=named.snapshots_every, samples_every=named.samples_every)
        == named
    )
    assert 0.8 * methods.EVALUATIONS[reward] < evaluations(named) <= methods.EVALUATIONS[reward]


def test_what_was_chosen_is_the_best_that_was_tried() -> None:
    """`BEST` in a method's file is a row of results/methods-tuning.csv, and at full length no other has a larger held-out gain."""
    tried = pd.read_csv(Path(__file__).parents[1] / "results" / "methods-tuning.csv")
    for method in methods.names():
        for reward, settings in (
            vars(importlib.import_module(f"train.methods.{method}")).get("BEST", {}).items()
        ):
            mine = tried[(tried["method"] == method) & (tried["reward"] == reward)]
            finals = mine[mine["budget"] == methods.EVALUATIONS[reward]]
            best = finals.loc[finals["held_out"].idxmax()]
            assert best["settings"] == " ".join((*methods.SHORT, *settings)), (method, reward)
    for (reward, method), mine in tried.groupby(["reward", "method"]):
        again = {" ".join((*methods.SHORT, *of)) for of in methods.second_try(method, reward)}
        second = mine["settings"].isin(again)
        assert {*mine.loc[second, "settings"]} == again, f"{reward} {method}: its second try"
        rounds = methods.TRIES if (mine["budget"] < methods.EVALUATIONS[reward]).any() else 0
        assert (~second).sum() == tune.FINALISTS + rounds, f"{reward} {method}: unequal tries"
        assert rounds or reward != "imagereward"
        assert mine.groupby("budget")["best"].sum().eq(1).all(), f"{reward} {method}"


def test_what_is_trained_decides_the_folder() -> None:
    def key(**given: Any) -> str:
        made = cells(**({"reward": "fairness", "method": "ppo", "seeds": [0], "budget": 92_160} | given))
        assert not isinstance(made, Refusal)
        return made[0].key

    different = [
        {},
        {"budget": 50_000},
        {"settings": ("update.lr=2e-5",)},
        {"suite": TUNING_SUITE},
        {"seeds": [1]},
    ]
    assert len({key(**given) for given in different}) == len(different)
    assert key() == key()
    assert re.fullmatch(r"fairness-miniature-0-[0-9a-f]{8}", key())


@pytest.fixture
def with_refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second method, which can be trained on nothing."""
    real = methods.variant

    def variant(name: str, experiment: Any, model: str) -> Any:
        if name == "refusing":
            raise ValueError("imagereward cannot be differentiated: use ppo")
        return real(name, experiment, model)

    monkeypatch.setattr(methods, "variant", variant)
    monkeypatch.setattr(methods, "names", lambda: ("ppo", "refusing"))
    monkeypatch.setattr(methods, "chosen", lambda *_: None)


@pytest.mark.usefixtures("with_refusing")
def test_a_refusal_is_a_line_below_plan_and_tables(tmp_path: Path) -> None:
    planned = plan([], ["imagereward"], [0, 1])
    refusal = Refusal("imagereward", "refusing", "imagereward cannot be differentiated: use ppo")
    assert planned[4:] == [refusal]
    said = "- refusing cannot: imagereward cannot be differentiated: use ppo."
    assert said in pages.planned(planned, lambda _: False, {}, 1).splitlines()
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0)}, refusals=[refusal])
    assert pages.markdown(found, "c", "methods-imagereward").splitlines().count(said) == 1
    refused = pages.tidy(found).query("at == 'refused'")
    assert refused["note"].tolist() == [refusal.sentence]


SCORES_OF_SCORERS = Path(__file__).parents[1] / "results" / "miniature-scorers.csv"


def test_mistakes_are_one_sentence() -> None:
    for arguments, told in (
        (["--methods", "pppo"], "error: unknown method 'pppo' (did you mean ppo?): choose from "),
        (
            ["--rewards", "joint"],
            "error: unknown reward 'joint': choose from imagereward, compositionality, fairn",
        ),
        (
            ["--seeds", "0,x"],
            "error: --seeds is '0,x', but it must be whole numbers of at most 18 digits with commas between, such as",
        ),
        (
            ["--out", "methods.md"],
            "error: --out methods.md must be a folder: its pages are methods-<reward>.md",
        ),
        (
            ["--out", "/dev/null"],
            "error: --out /dev/null/methods-imagereward.md cannot be made: /dev/null is a file, not a folder",
        ),
        (["--methods", ","], "error: --methods is ',', but it must be names with commas between; leave it "),
        (["--rewards", ""], "error: --rewards is '', but it must be names with commas between; leave it "),
        (
            ["--seeds", "1" * 19],
            f"error: --seeds is '{'1' * 19}', but it must be whole numbers of at most 18",
        ),
        (
            ["--dry-run", "--root", "x", "tune", "ppo", "--reward", "fairness"],
            "error: --root, --dry-run before tune means nothing: give options after tune",
        ),
        (
            ["tune", "ppo", "--reward", "fairness", "--out", str(SCORES_OF_SCORERS)],
            f"error: {SCORES_OF_SCORERS} is no table of tries (it lacks reward, method, settings, budget, seed)",
        ),
        (["tune", "ppo", "--reward", "joint"], "error: unknown reward 'joint': choose from "),
        (["tune", "nobody", "--reward", "fairness"], "error: unknown method 'nobody': choose from "),
        (
            ["tune", "ppo", "--reward", "fairness", "--budget", "5"],
            "error: --budget is 5 denoiser evaluations, ",
        ),
        (
            ["tune", "ppo", "--reward", "fairness", "--finalists-of", "fairness"],
            "error: unknown --finalists-of 'fairness': choose from imagereward, compositionality",
        ),
        (
            ["tune", "ppo", "--reward", "fairness", "--again"],
            "error: --again: train/methods/ppo.py has 0 settings in AGAIN for fairness, but a second try is 2: ",
        ),
        (
            ["tune", "nft", "--reward", "compositionality", "--again", "--finalists-of", "imagereward"],
            "error: --again tries its own settings at full length: leave --finalists-of and --budget out",
        ),
        (
            ["tune", "nft", "--reward", "compositionality", "--again", "--budget", "9600"],
            "error: --again tries its own settings at full length: leave --finalists-of and --budget out",
        ),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert result.output.startswith(told)
        assert len(result.output.splitlines()) == 1


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "methods"
    arguments = [
        "--methods",
        "ppo",
        "--rewards",
        "fairness",
        "--root",
        root,
        "--out",
        tmp_path / "pages",
        "--dry-run",
    ]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert re.search(r"\| fairness +\| ppo in full +\| 0, 1, 2 \| 32 +\| 92,160 ", result.output)
    assert "how long that takes is not known" in result.output
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------------------- made-up runs


def made_rows(experiment: str, seed: int, level: float, judge: float, prompt_count: int) -> list[rows.Row]:
    found = []
    own = np.random.default_rng([seed, int(100 * level) + 1000])
    for prompt in range(prompt_count):
        shared = np.random.default_rng(prompt).normal(size=2)
        for image in range(2):
            noise = 0.0 if experiment == "base" else 0.6 * own.normal()
            values = {
                "imagereward": shared[image] + level + noise,
                "clip_judge": shared[image] + judge + noise,
                "gold_utility": shared[image] + judge + noise,
                "vendi": 1.5 - 0.1 * level,
                "kid": level,
            }
            for scorer in SCORERS:
                found.append(
                    rows.Row(
                        experiment=experiment,
                        model="miniature",
                        seed=seed,
                        suite="miniature_methods:0",
                        prompt_set=QUESTION.prompt_set,
                        prompts="0a1b2c3d",
                        prompt_id=f"p{prompt:03d}",
                        image=image,
                        picture=f"{seed}{image}{prompt:05d}{len(experiment):05d}",
                        scorer=scorer,
                        version="0a1b2c3d",
                        trained_on=int(scorer == "imagereward" and experiment != "base"),
                        value=float(values[scorer]),
                    )
                )
    return found


def made_cell(
    root: Path,
    cell: Cell,
    levels: Sequence[float],
    judges: Sequence[float],
    seconds: float,
    prompt_count: int = 30,
) -> None:
    """Files of a cell that is done: a level of the proxy and of everything else at each checkpoint after the base."""
    folder = root / cell.key
    folder.mkdir(parents=True)
    scored, points = list[rows.Row](), []
    last = len(levels)
    for t, (level, judge) in enumerate(zip((0.0, *levels), (0.0, *judges), strict=True)):
        experiment = "base" if t == 0 else cell.name if t == last else f"{cell.name}@{20 * t}"
        scored += made_rows(experiment, 0 if t == 0 else cell.seed, level, judge, prompt_count)
        points.append(
            {"experiment": experiment, "iteration": 20 * t, "images": 100 * t}
            | {"denoiser_evaluations": 1000 * t, "seconds": seconds * t}
            | {"nats": [(t > 0) * (t + 0.1 * p) for p in range(4)]}
        )
    rows.write(rows.table(scored), folder / work.SCORES)
    training = {"date": "2026-01-02T03:04:05", "seconds": 10.0, "cpu_seconds": 9.5, "load": 1.5}
    training |= {"threads": 1, "jobs": 1, "cpus": 2}
    record = {
        "experiment": as_json(cell.experiment),
        "source": work.source_of(cell),
        "points": points,
        "command": "made up",
        "date": "2026-01-02T03:04:05",
        "machine": {"name": "a machine"},
        "scores": hashlib.sha256((folder / work.SCORES).read_bytes()).hexdigest(),
        "trainings": [training],
    }
    (folder / work.DONE).write_text(json.dumps(record))


def papers_cell() -> Cell:
    """The paper's method as in a table in which all methods have what it has in full."""
    (cell,) = only_cells(
        plan(["ppo"], ["imagereward"], [0], evaluations(experiments.load("imagereward", "miniature")))
    )
    return cell


def made_standing(
    root: Path,
    levels: dict[str, Sequence[float]],
    judges: dict[str, Sequence[float]] | None = None,
    seconds: dict[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    refusals: Sequence[Refusal] = (),
) -> Standing:
    """Tracks of made-up methods; every seed takes a tenth longer than the one before."""
    made = []
    for method, of in levels.items():
        paper = papers_cell()
        for seed in seeds:
            cell = replace(paper, method=method, seed=seed)
            took = (seconds or {}).get(method, 100.0) * (1 + 0.1 * seed)
            made_cell(root, cell, of, (judges or {}).get(method, of), took)
            made.append(cell)
    return standing(QUESTION, made, refusals, root, resamples=500)


def values_of(track: table.Track, role: str) -> Any:
    return track.statistics[(track.question.roles() | BESIDE)[role]]


def test_a_gain_at_a_checkpoint_is_the_one_that_compare_finds(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0)})
    (track,) = found.tracks
    end = track.rows[track.rows["experiment"].isin(["base", "imagereward"])]
    # the same prompts, seeds and numbers of resamples: only the names of the random streams differ
    compared = compare.compare(end, resamples=4000)
    for role, name in track.question.roles().items():
        (there,) = compared.of(metric=name, experiment="imagereward")
        number = table.Estimator(4000).gain(track, name, np.full(3, 2.0))[1]
        assert number.value == pytest.approx(there.difference.value, abs=1e-12), role
        width = there.difference.high - there.difference.low
        assert number.low == pytest.approx(there.difference.low, abs=0.15 * width)
        assert number.high == pytest.approx(there.difference.high, abs=0.15 * width)
        assert there.difference.value > 0


def test_equal_evaluations_and_seconds_are_read_off_straight_lines(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0), "slow": (0.9, 1.1)}, seconds={"slow": 300.0})
    assert (found.evaluations, found.seconds) == (2000.0, 200.0)
    for track in found.tracks:
        gain_RT = gains_RT(track, "reward_mean")
        number = found.of(track.label, "evaluations", 0.25, "proxy")
        assert number is not None
        assert number.evaluations == 500
        assert number.gain.value == pytest.approx(0.5 * gain_RT[:, 1].mean())
        number = found.of(track.label, "seconds", 1.0, "proxy")
        assert number is not None
        # each seed by itself: they differ in how long they take
        by_hand = [np.interp(200.0, s_T, g_T) for s_T, g_T in zip(track.seconds_RT, gain_RT, strict=True)]
        assert number.gain.value == pytest.approx(np.mean(by_hand))
        assert number.seconds == pytest.approx(200.0)
        kl = found.of(track.label, "evaluations", 0.25, "kl")
        assert kl is not None
        assert kl.value.value == pytest.approx(0.5 * np.mean([1 + 0.1 * p for p in range(4)]))
    ahead = found.of("slow", "seconds", 1.0, "proxy")
    behind = found.of("slow", "evaluations", 1.0, "proxy")
    assert ahead is not None
    assert behind is not None
    assert ahead.evaluations < behind.evaluations


def test_seeds_may_take_evaluations_of_their_own(tmp_path: Path) -> None:
    """ReFL draws at which step of the sampler its gradient begins, so what it has taken after so many iterations differs from seed to seed."""
    made_standing(tmp_path, {"ppo": (0.4, 0.8), "refl": (0.5, 1.5)})
    paper = papers_cell()
    made = [replace(paper, method=method, seed=seed) for method in ("ppo", "refl") for seed in (0, 1, 2)]
    for cell in made[3:]:
        path = tmp_path / cell.key / work.DONE
        record = json.loads(path.read_text())
        for point in record["points"]:
            point["denoiser_evaluations"] += 10 * cell.seed * (point["iteration"] > 0)
        path.write_text(json.dumps(record))
    found = standing(QUESTION, made, [], tmp_path, resamples=200)
    refl = found.tracks[1]
    assert refl.evaluations_RT.tolist() == [[0, 1000, 2000], [0, 1010, 2010], [0, 1020, 2020]]
    assert found.evaluations == 2000
    number, gain_RT = found.of("refl", "evaluations", 0.25, "gold"), gains_RT(refl, "gold_quality")
    assert number is not None
    by_hand = [500 / (1000 + 10 * seed) * gain_RT[seed, 1] for seed in range(3)]
    assert number.gain.value == pytest.approx(np.mean(by_hand))
    assert number.evaluations == pytest.approx(500)
    end = found.of("refl", "checkpoint", 1.0, "gold")
    assert end is not None
    assert end.evaluations == pytest.approx(2010)
    each = [
        crossing(gain_T, axis_T, found.target.value)
        for gain_T, axis_T in zip(gain_RT, refl.evaluations_RT, strict=True)
    ]
    assert found.reaches["refl"].seeds == pytest.approx(each, rel=1e-6, nan_ok=True)
    ends = pages.tidy(found).query("method == 'refl' and at == 'checkpoint' and role == 'gold'")
    assert [len(str(gains).split()) for gains in ends["gain_by_seed"]] == [3, 3]


def test_a_prompt_without_a_score_is_left_out_where_it_has_none() -> None:
    values_TRPS = np.array([[[[1.0], [2.0]]], [[[3.0], [np.nan]]], [[[5.0], [6.0]]]])
    assert table.at_places(values_TRPS, np.array([2.0])).tolist() == [[[5.0], [6.0]]]
    assert table.at_places(values_TRPS, np.array([0.0])).tolist() == [[[1.0], [2.0]]]
    between = table.at_places(values_TRPS, np.array([0.25]))
    assert between[0, 0, 0] == 1.5
    assert np.isnan(between[0, 1, 0])


def test_where_a_gain_is_first_reached() -> None:
    axis = np.array([0.0, 100.0, 200.0, 300.0])
    assert crossing(np.array([0.0, 1.0, 3.0, 2.0]), axis, 2.0) == 150.0
    # before the first checkpoint nothing is known, nor before one that comes after one without a number
    assert crossing(np.array([0.0, 1.0, 3.0, 2.0]), axis, 0.5) == 100.0
    assert crossing(np.array([0.0, math.nan, 3.0, 2.0]), axis, 0.5) == 200.0
    bounds = [
        table.is_bound(np.array([0.0, one, 3.0, 2.0]), target)
        for one, target in ((1.0, 0.5), (1.0, 2.0), (math.nan, 0.5), (1.0, 4.0))
    ]
    assert bounds == [True, False, True, False]
    assert crossing(np.array([0.0, 1.0, 1.0, 2.0]), axis, 1.0) == 100.0
    assert np.isnan(crossing(np.array([0.0, 1.0, 3.0, 2.0]), axis, 3.1))


def test_the_race_to_the_papers_final_gain(tmp_path: Path) -> None:
    found = made_standing(
        tmp_path, {"ppo": (0.4, 0.8), "fast": (1.5, 1.6), "weak": (0.1, 0.2), "late": (0.2, 1.5)}
    )
    assert found.target.value == pytest.approx(
        gains_RT(found.tracks[0], "gold_quality")[:, -1].mean(), rel=1e-12
    )
    assert [track.label for track in found.tracks] == ["ppo", "fast", "late", "weak"]
    fast, late = found.reaches["fast"], found.reaches["late"]
    assert fast.at_most
    assert (fast.evaluations, fast.seconds) == (1000.0, pytest.approx(110.0))
    late_T = gains_RT(found.tracks[2], "gold_quality").mean(axis=0)
    part = (found.target.value - late_T[1]) / (late_T[2] - late_T[1])
    assert late.evaluations == pytest.approx(1000 + 1000 * part)
    assert not late.at_most
    assert np.isnan(found.reaches["weak"].evaluations)
    page = pages.markdown(found, "the command", "methods-imagereward")
    assert (
        "The first to reach that is **fast**, after at most 0.50 of its evaluations (goal: 0.1, not known)"
        in page
    )
    assert re.search(r"\| fast \(3 seeds\) .*\| ≤ 1,000 +\| ≤ 0\.50 ", page)
    assert re.search(r"\| weak \(3 seeds\) .*\| 0 of 3 ", page)


def test_where_there_is_no_gain_there_is_nothing_to_reach(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (-0.4, -0.8)})
    assert found.reaches == {}
    assert "which is a loss, so there is nothing to race to" in pages.markdown(
        found, "c", "methods-imagereward"
    )
    # a gain whose interval has 0 in it is not told apart either: whoever stands still would be there
    little = made_standing(tmp_path / "little", {"ppo": (0.1, 0.02), "fast": (0.4, 0.8)})
    assert little.target.low < 0 < little.target.value + 0.2
    assert little.reaches == {}
    assert "not told apart from no gain, so there is nothing to race to" in pages.markdown(
        little, "c", "methods-imagereward"
    )
    assert "reach" not in set(pages.tidy(little)["at"])
    none = made_standing(tmp_path / "other", {"fast": (0.4, 0.8)})
    assert "has no finished run" in pages.markdown(none, "c", "methods-imagereward")


def test_methods_are_told_apart_by_their_differences(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0), "same": (0.4, 1.0), "worse": (0.2, 0.3)})
    assert [(c.label, c.other) for c in found.contrasts] == [
        *(("ppo", "same"), ("ppo", "worse"), ("same", "worse"))
    ]
    alike, apart, _ = found.contrasts
    assert alike.difference == (0.0, 0.0, 0.0)
    assert (alike.p, alike.p_holm, alike.told) == (1.0, 1.0, False)
    gains = {label: found.of(label, "evaluations", 1.0, "gold") for label in ("ppo", "worse")}
    ours, theirs = (gains[label] for label in ("ppo", "worse"))
    assert ours is not None
    assert theirs is not None
    assert apart.difference.value == pytest.approx(ours.gain.value - theirs.gain.value, abs=1e-12)
    assert apart.told
    assert apart.seeds == (0, 1, 2)
    assert apart.prompts == 30
    # Holm: the smallest p of three is taken three times, the largest once
    assert apart.p_holm == pytest.approx(3 * apart.p)
    table_ = {line[0]: line[1:] for line in pages.against(found)}
    assert table_["row less column"] == ["ppo", "same", "worse"]
    assert table_["ppo"][:2] == ["", "+0.000"]
    assert table_["same"][0] == "+0.000"
    assert table_["ppo"][2].startswith("▲ +0.")
    assert table_["worse"][0] == table_["ppo"][2].replace("▲ +", "▼ −")
    assert pages.told_apart(found).endswith(
        "Of those that race ppo and same have most; told to have less: worse."
    )
    # whoever has no number is not said to be beaten
    nobody = found.contrasts[1]._replace(p=math.nan, p_holm=math.nan)
    unknown = pages.told_apart(replace(found, contrasts=(alike, nobody, found.contrasts[2])))
    assert unknown.endswith("have most; without a difference that could be tested: worse.")


def test_whoever_has_most_may_have_less_on_the_seeds_of_another(tmp_path: Path) -> None:
    """Means are of all seeds of each, and a pair of those that both have."""
    made = []
    for method, seed, level in (("ppo", 0, 0.3), ("ppo", 1, 1.5), ("ppo", 2, 1.5), ("other", 0, 0.9)):
        cell = replace(papers_cell(), method=method, seed=seed)
        made_cell(tmp_path, cell, (0.2, level), (0.2, level), 1.0)
        made.append(cell)
    found = standing(QUESTION, made, [], tmp_path, resamples=500)
    (pair,) = found.contrasts
    assert (pair.label, pair.seeds, pair.told) == ("ppo", (0,), True)
    assert pair.difference.high < 0
    assert pages.told_apart(found).endswith(
        "Of those that race ppo has most; told to have more on the seeds that both have: other."
    )


def test_marks_of_few_seeds_say_how_far_they_hold(tmp_path: Path) -> None:
    levels = {"ppo": (0.4, 1.0), "other": (0.3, 0.8)}
    (one,) = pages._paired(made_standing(tmp_path / "one", levels, seeds=(0,)))
    (three,) = pages._paired(made_standing(tmp_path / "three", levels))
    assert one.startswith("With one seed marks of method against method speak of these runs")
    assert three.startswith("Marks of method against method rest on few seeds. In simulation")
    assert pages._paired(made_standing(tmp_path / "alone", {"ppo": (0.4, 1.0)})) == []


def test_a_difference_that_never_varies_is_not_certain() -> None:
    estimate, name = table.Estimator(50), "fully_right"

    def track(label: str, share: float) -> Any:
        statistics = {name: np.full((2, 2, 6, 1), share)}
        return SimpleNamespace(label=label, seeds=(0, 1), statistics=statistics, question=QUESTION)

    ends = [table.Contestant(t.label, t, np.ones(2)) for t in (track("all", 1.0), track("none", 0.0))]
    found = estimate.contrast(*ends, name)
    assert found.difference.value == 1.0
    assert math.isnan(found.difference.low)
    assert math.isnan(found.p)


def test_a_difference_is_of_the_seeds_that_both_have_and_negated_from_the_other_side(tmp_path: Path) -> None:
    one, two, other = (
        made_standing(tmp_path / name, {name: levels}, seeds=seeds).tracks[0]
        for name, levels, seeds in (
            ("ppo", (0.4, 1.0), (0, 1, 2)),
            ("draft", (0.3, 0.8), (1, 2, 3)),
            ("raft", (0.3, 0.8), (7,)),
        )
    )
    estimate, name = table.Estimator(500), table.goal_of(QUESTION)

    def end(track: table.Track) -> table.Contestant:
        return table.Contestant(track.label, track, np.full(len(track.seeds), 2.0))

    there, back = estimate.contrast(end(one), end(two), name), estimate.contrast(end(two), end(one), name)
    assert there.seeds == back.seeds == (1, 2)
    of_seeds = [
        table.gains_RT(track, name)[seeds, 2].mean() for track, seeds in ((one, [1, 2]), (two, [0, 1]))
    ]
    assert there.difference.value == pytest.approx(of_seeds[0] - of_seeds[1], abs=1e-12)
    assert back.difference == (-there.difference.value, -there.difference.high, -there.difference.low)
    assert there.p == back.p
    nobody = estimate.contrast(end(one), end(other), name)
    assert math.isnan(nobody.p)
    assert not nobody.told


def test_what_both_share_is_in_no_difference(tmp_path: Path) -> None:
    """Prompts differ by far more than methods do: values overlap, and their difference is known all the same."""
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0), "other": (0.3, 0.7)})
    (pair,) = found.contrasts
    width = pair.difference.high - pair.difference.low
    alone = [
        table.Estimator(500).gain(track, table.goal_of(QUESTION), np.full(3, 2.0))[0]
        for track in found.tracks
    ]
    assert all(one.high - one.low > 1.5 * width for one in alone)  # of the values: gains have lost it too


def test_over_optimisation_is_found_over_seeds(tmp_path: Path) -> None:
    found = made_standing(
        tmp_path,
        {"ppo": (0.6, 1.2), "greedy": (0.6, 1.8)},
        judges={"ppo": (0.6, 1.2), "greedy": (0.9, 0.0)},
    )
    told = {track.label: pages.over_optimises(found, track) for track in found.tracks}
    assert told["ppo"] == "held-out not seen to; gold not seen to"
    assert re.fullmatch(
        r"held-out from 2,000 \(−\d\.\d+ \[.*\]\); gold from 2,000 \(−\d\.\d+ \[.*\]\)", told["greedy"]
    )


def test_a_checkpoint_of_which_too_little_has_a_value_wins_no_race(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that loses what it is judged by has no number there, in whichever seed, and the page says so."""
    rows_of = made_rows

    def losing(experiment: str, seed: int, level: float, judge: float, prompt_count: int) -> list[rows.Row]:
        lost = level == 3.0 and seed == 1
        return [
            row._replace(value=math.nan) if lost and row.scorer == "gold_utility" and row.image else row
            for row in rows_of(experiment, seed, level, judge, prompt_count)
        ]

    monkeypatch.setattr(sys.modules[__name__], "made_rows", losing)
    levels = {"ppo": (0.5, 1.0, 1.0), "nft": (0.5, 3.0, 0.6)}
    allowed = made_standing(tmp_path / "allowed", levels)
    assert not math.isnan(allowed.reaches["nft"].evaluations)
    monkeypatch.setattr(metrics.load("gold_quality"), "most_missing", 0.4, raising=False)
    found = made_standing(tmp_path / "refused", levels)
    assert math.isnan(found.reaches["nft"].evaluations)
    nft = next(track for track in found.tracks if track.label == "nft")
    assert nft.missing["gold_quality"] == (0.0, 0.0, 0.5, 0.0)
    at = {
        n.role: n for n in found.numbers if n.label == "nft" and n.at == "checkpoint" and n.share == 0.666667
    }
    assert math.isnan(at["gold"].gain.value)
    assert at["held-out"].gain.value > 2
    pages.write(found, tmp_path / "methods-imagereward.md", "made up")
    page = (tmp_path / "methods-imagereward.md").read_text()
    assert "nft has no gold quality after 2,000 evaluations" in page
    assert "50.0 % of the pictures there have no gold_utility, and the limit is 40 %" in page
    assert "nan" not in (tmp_path / "methods-imagereward.svg").read_text()


def test_the_page_says_what_it_is_made_of_and_is_the_same_twice(tmp_path: Path) -> None:
    found = made_standing(tmp_path / "root", {"ppo": (0.4, 1.0), "other": (0.5, 0.9)})
    out = pages.page_of(tmp_path, "imagereward")
    made = pages.write(found, out, "python -m bench.methods --jobs 2")
    assert [path.name for path in made] == [f"methods-imagereward.{of}" for of in ("md", "csv", "svg")]
    before = [path.read_bytes() for path in made]
    assert pages.write(found, out, "python -m bench.methods --jobs 2") == made
    assert [path.read_bytes() for path in made] == before
    page = made[0].read_text()
    assert "Made by `python -m bench.methods --jobs 2`" in page
    assert "load average of its runs and everything else was 1.5" in page
    assert "on a processor 95 % of their threads' time" in page
    assert "![Curves](methods-imagereward.svg)" in page
    for line in page.splitlines():
        if line.startswith("| ppo"):
            assert "nan" not in line
    numbers = pd.read_csv(made[1])
    assert tuple(numbers.columns) == pages.COLUMNS
    ends = numbers.query("at == 'checkpoint' and share == 1 and role == 'gold'").set_index("method")
    assert ends.loc["ppo", ["seeds", "prompts", "images", "date", "machine"]].tolist() == [
        *("0 1 2", 30, 60, "2026-01-02T03:04:05", "a machine")
    ]
    each = [float(gain) for gain in str(ends.loc["ppo", "gain_by_seed"]).split()]
    assert np.mean(each) == pytest.approx(ends.loc["ppo", "gain"], abs=1e-5)
    assert {*numbers["at"]} == {"checkpoint", "evaluations", "seconds", "reach", "difference"}
    drawing = ElementTree.parse(made[2]).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert len(drawing.findall(f"{svg}g")) == 2 * 4
    assert len(drawing.findall(f".//{svg}polygon")) == 4 + 2 * 4  # the paper's stands behind the other


def without_gold(monkeypatch: pytest.MonkeyPatch, lost: Callable[[int, float, str], bool]) -> None:
    """Made-up rows have no gold where seed, level and prompt are such."""
    rows_of = made_rows

    def losing(experiment: str, seed: int, level: float, judge: float, prompt_count: int) -> list[rows.Row]:
        return [
            row._replace(value=math.nan)
            if row.scorer == "gold_utility" and experiment != "base" and lost(seed, level, row.prompt_id)
            else row
            for row in rows_of(experiment, seed, level, judge, prompt_count)
        ]

    monkeypatch.setattr(sys.modules[__name__], "made_rows", losing)


def test_whoever_loses_prompts_is_raced_by_those_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less the base on the same prompts, in the race as in the grid: without its worst prompts anyone has a higher mean."""
    worst = sorted(range(30), key=lambda prompt: np.random.default_rng(prompt).normal(size=2).mean())[:8]
    lost = {f"p{prompt:03d}" for prompt in worst}
    without_gold(monkeypatch, lambda seed, level, prompt: level == 0.9 and seed != 1 and prompt in lost)
    found = made_standing(tmp_path, {"ppo": (0.5, 1.2), "nft": (0.4, 0.9)})
    end = found.of("nft", "checkpoint", 1.0, "gold")
    assert end is not None
    assert 0.7 < end.gain.value < found.target.value
    assert math.isnan(found.reaches["nft"].evaluations)
    assert gains_RT(found.tracks[1], "gold_quality")[:, -1] == pytest.approx(np.full(3, 0.9), abs=0.25)
    assert table.gains_T(found.tracks[1], "gold_quality")[-1] == pytest.approx(end.gain.value, abs=1e-12)


def test_after_a_checkpoint_without_a_number_what_is_reached_is_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gold(monkeypatch, lambda _seed, level, _prompt: level == 0.3)
    monkeypatch.setattr(metrics.load("gold_quality"), "most_missing", 0.4, raising=False)
    found = made_standing(tmp_path, {"ppo": (0.5, 0.8, 1.0), "nft": (0.3, 1.6, 1.7)})
    assert (found.reaches["nft"].evaluations, found.reaches["nft"].at_most) == (2000.0, True)
    assert found.reaches["nft"].seeds == (2000.0,) * 3
    page = pages.markdown(found, "c", "methods-imagereward")
    assert "**nft**, after at most 0.67 of its evaluations (goal: 0.1, not known)" in page
    assert "Nothing reaches a gain there, and what is first reached at the next is ≤ as well." in page


@pytest.mark.parametrize("reward", QUESTIONS)
def test_the_page_in_the_repository_is_that_of_the_cells_beside_it(reward: str) -> None:
    results = Path(__file__).parents[1] / "results"
    mine = [one for one in plan([], [reward], SEEDS) if isinstance(one, Cell)]
    there = [cell for cell in mine if (results / "methods" / cell.key / work.DONE).is_file()]
    if not there:
        pytest.skip(f"no cells are kept of {reward}: its page was made before any were")
    assert all(work.is_done(cell, results / "methods") for cell in there), "kept, and of other code by now"
    found = standing(QUESTIONS[reward], mine, [], results / "methods", resamples=20)
    now = pages.tidy(found).query("at == 'checkpoint'").reset_index(drop=True)
    page = pages.page_of(results, reward)
    kept = pd.read_csv(page.with_suffix(".csv")).query("at == 'checkpoint'").reset_index(drop=True)
    keys = ["method", "share", "role", "metric", "seeds", "prompts", "images", "budget", "command"]
    pd.testing.assert_frame_equal(now[keys], kept[keys], check_dtype=False)
    for column in ("evaluations", "seconds", "value", "gain"):
        np.testing.assert_allclose(now[column].astype(float), kept[column], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reward", QUESTIONS)
def test_the_page_in_the_repository_has_its_pairs_or_says_why_not(reward: str) -> None:
    results = Path(__file__).parents[1] / "results"
    page = pages.page_of(results, reward).read_text(encoding="utf-8")
    there = [
        cell
        for cell in plan([], [reward], SEEDS)
        if isinstance(cell, Cell) and (results / "methods" / cell.key / work.DONE).is_file()
    ]
    _, _, section = page.partition("## Method against method\n\n")
    assert section.startswith("What the row has more" if there else "Not shown: the score rows of these runs")


def test_which_code_trains_a_cell() -> None:
    nft, ppo = (
        code.code_of(only_cells(cells(reward, method, [0], 9_600))[0])
        for reward, method in (("compositionality", "nft"), ("imagereward", "ppo"))
    )
    both = {"train/loop.py", "train/start.py", "train/policy.py", "evals/diffusion.py", "prompts/__init__.py"}
    assert both <= {*nft} & {*ppo}
    assert {"train/methods/nft.py", "train/methods/_forward_process.py"} <= {*nft} - {*ppo}
    assert "evals/miniature/scorers/objects.py" in {*nft} - {*ppo}
    assert {"train/methods/ppo.py", "evals/miniature/scorers/imagereward.py"} <= {*ppo} - {*nft}
    # neither what compares cells nor other methods make a cell old
    assert not [name for name in nft if name.startswith(("bench/", "tests/")) or name.endswith("grpo.py")]
    assert all(re.fullmatch(r"[0-9a-f]{8}", digest) for digest in nft.values())


def test_imports_are_found_wherever_they_are(tmp_path: Path) -> None:
    (source := tmp_path / "some.py").write_text(
        "import numpy, evals.rows\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from train.config import Experiment\n"
        "def f():\n    from train import gates, no_such_module\n    from prompts.lock import locked\n"
        "    import bench.machine\n"
    )
    found = {str(path.relative_to(code.ROOT)) for path in code.imported(source)}
    assert found == {
        *("evals/__init__.py", "evals/rows.py", "train/__init__.py", "train/gates.py"),
        *("prompts/__init__.py", "prompts/lock.py"),
    }
    assert code.reached([source]) > {source, *code.imported(source)}


def test_the_code_of_a_cell_is_that_of_all_its_trainings() -> None:
    one, other = {"a.py": "1", "b.py": "2"}, {"a.py": "3", "b.py": "2", "c.py": "4"}
    assert code.recorded([{"code": one}]) == one
    assert code.recorded([{"code": other}, {"code": one}]) == {"a.py": "1+3", "b.py": "2", "c.py": "4"}
    assert code.recorded([{"code": one}, {}]) is None
    assert code.recorded([]) is None


def test_what_different_code_trained_is_told() -> None:
    def trained(label: str, seed: int, **digests: str) -> code.Trained:
        return code.Trained(label, seed, {f"train/{name}.py": of for name, of in digests.items()} or None)

    alike = [trained("ppo", 0, loop="1", ppo="2"), trained("nft", 0, loop="1", nft="3")]
    assert code.unlike(alike) == []
    assert code.unlike([code.Trained("ppo", 0, None), code.Trained("nft", 1, None)]) == []
    assert code.unlike([*alike, code.Trained("awm", 1, None), code.Trained("awm", 0, None)]) == [
        "Which code trained awm (seeds 0, 1) was not recorded: it may be other code than that of ppo (seed 0), nft (seed 0)."
    ]
    # those that lack a file have no part in what it differs between
    assert code.unlike([*alike, trained("nft", 1, loop="1", nft="4")]) == [
        "Not all were trained by the same code, which differs in train/nft.py between: nft (seed 0); nft (seed 1)."
    ]
    many = {f"f{n}": "1" for n in range(code.NAMED + 2)}
    (told,) = code.unlike([trained("ppo", 0, **many), trained("ppo", 1, **dict.fromkeys(many, "2"))])
    assert "train/f7.py and 2 more between: ppo (seed 0); ppo (seed 1)." in told


def with_code(root: Path, cell: Cell, of: dict[str, str] | None) -> None:
    """Give the record of a cell the code that trained it."""
    path = root / cell.key / work.DONE
    record = json.loads(path.read_text())
    for training in record["trainings"]:
        training |= {} if of is None else {"code": of}
    path.write_text(json.dumps(record))


def test_the_page_says_that_different_code_trained_its_runs(tmp_path: Path) -> None:
    before = pages.markdown(made_standing(tmp_path, {"ppo": (0.4, 1.0)}, seeds=(0, 1)), "c", "m")
    assert "trained by the same code" not in before
    assert "not recorded" not in before
    made = [replace(papers_cell(), method="ppo", seed=seed) for seed in (0, 1)]

    def page() -> str:
        return pages.markdown(standing(QUESTION, made, [], tmp_path, resamples=500), "c", "m")

    with_code(tmp_path, made[0], {"train/loop.py": "0a1b2c3d"})
    assert (
        "- Which code trained ppo (seed 1) was not recorded: it may be other code than that of ppo (seed 0)."
        in page()
    )
    with_code(tmp_path, made[1], {"train/loop.py": "00000000"})
    assert "which differs in train/loop.py between: ppo (seed 0); ppo (seed 1)." in page()
    with_code(tmp_path, made[1], {"train/loop.py": "0a1b2c3d"})
    assert page() == before


def test_a_plan_says_that_other_code_would_train_what_is_left(tmp_path: Path) -> None:
    settings = methods.chosen("ppo", "imagereward") or ()
    first, second = only_cells(cells("imagereward", "ppo", [0, 1], 34_560, settings=settings))
    made_cell(tmp_path, first, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    asked = ["--methods", "ppo", "--rewards", "imagereward", "--root", str(tmp_path), "--dry-run"]

    def notes(seeds: str) -> list[str]:
        result = CliRunner().invoke(main, [*asked, "--seeds", seeds])
        assert result.exit_code == 0, result.output
        return [line for line in result.output.splitlines() if line.startswith("note: ")]

    assert notes("0,1") == [
        "note: imagereward: Which code trained ppo (seed 0) was not recorded: it may be other code than that of ppo in full, to be trained (seeds 0, 1), "
        "ppo, to be trained (seed 1). A cell whose folder is deleted is trained again."
    ]
    with_code(tmp_path, first, code.code_of(first))
    assert notes("0,1") == []
    with_code(tmp_path, first, code.code_of(first) | {"train/loop.py": "00000000"})
    (told,) = notes("0,1")
    assert (
        "which differs in train/loop.py between: ppo (seed 0); ppo in full, to be trained (seeds 0," in told
    )
    assert second.key != first.key


def test_busy_machines_are_marked(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0)})
    (track,) = found.tracks
    assert not re.search(r"\d ⚠ +\|", pages.markdown(found, "c", "methods-imagereward"))
    slow = replace(track, trainings=tuple(training | {"cpu_seconds": 4.0} for training in track.trainings))
    assert re.search(r"\d ⚠ +\|", pages.markdown(replace(found, tracks=(slow,)), "c", "methods-imagereward"))


def test_seconds_of_two_machines_are_not_set_side_by_side(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 0.8), "fast": (1.5, 1.6)})
    page = pages.markdown(found, "c", "methods-imagereward")
    assert re.search(r"equal wall time of \d+ s, the shortest training", page)
    assert "## At equal wall time, after a quarter" in page
    assert re.search(r"\| fast \(3 seeds\) .*\| ≤ 110 +\| ≤ 0\.50 ", page)
    ppo, fast = found.tracks
    elsewhere = tuple(record | {"machine": {"name": "another"}} for record in fast.records)
    page = pages.markdown(replace(found, tracks=(ppo, replace(fast, records=elsewhere))), "c", "m")
    assert "equal wall time of" not in page
    assert "trained on different machines (a machine, another)" in page
    assert "## At equal wall time, after a quarter" not in page
    assert "on a machine (ppo); another (fast), 2026" in page
    assert re.search(r"\| fast \(3 seeds\) .*\| ≤ 110 +\| – ", page)


def test_what_is_missing_or_stopped_is_said(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0)}, seeds=(0, 1))
    paper = papers_cell()
    stopped, missing = replace(paper, method="wild", seed=1), replace(paper, method="wild", seed=2)
    (tmp_path / stopped.key).mkdir()
    told = {"sentence": "the weights diverged", "experiment": as_json(stopped.experiment)}
    (tmp_path / stopped.key / work.STOPPED).write_text(json.dumps(told))
    cells_of = [replace(paper, seed=0), replace(paper, seed=1), stopped, missing]
    found = standing(QUESTION, cells_of, [], tmp_path, resamples=200)
    page = pages.markdown(found, "c", "methods-imagereward")
    assert "- wild, seed 1: training stopped by itself: the weights diverged" in page
    assert "- wild: not run with seed 2." in page
    assert pages.tidy(found).query("at == 'stopped'")["note"].tolist() == ["the weights diverged"]


def test_a_seed_that_stopped_by_itself_has_reached_nothing(tmp_path: Path) -> None:
    made_standing(tmp_path, {"ppo": (0.4, 0.8)}, seeds=(0, 1))
    made_standing(tmp_path, {"wild": (0.5, 1.5)}, seeds=(0, 1))
    cells_of = [replace(papers_cell(), method=m, seed=s) for m in ("ppo", "wild") for s in (0, 1)]
    stopped = replace(papers_cell(), method="wild", seed=2)
    told = {"sentence": "the weights diverged", "experiment": as_json(stopped.experiment)}
    (tmp_path / stopped.key).mkdir()
    (tmp_path / stopped.key / work.STOPPED).write_text(json.dumps(told))
    found = standing(QUESTION, [*cells_of, stopped], [], tmp_path, resamples=200)
    page = pages.markdown(found, "c", "methods-imagereward")
    assert re.search(r"\| wild \(2 seeds, 1 stopped\) .*\| 2 of 3 ", page)
    assert "in 2 of 3 seeds by themselves" in page
    assert "- Numbers of wild are of the seeds that were trained to their end, and so too good" in page
    assert "| ppo (2 seeds) " in page
    whole = standing(QUESTION, cells_of, [], tmp_path, resamples=200)
    assert "too good" not in pages.markdown(whole, "c", "methods-imagereward")


def test_a_short_run_of_the_papers_method_is_not_what_is_raced_to(tmp_path: Path) -> None:
    """A command that was stopped leaves it without the long one, which is trained last; another method's page then has it."""
    (papers,) = [cell for cell in only_cells(plan(["ppo"], ["imagereward"], [0])) if not cell.in_full]
    other = replace(papers, method="nft")
    for cell, levels in ((papers, (0.4, 0.8)), (other, (0.5, 1.5))):
        made_cell(tmp_path, cell, levels, levels, 1.0)
    found = standing(QUESTION, [papers, other], [], tmp_path, resamples=200)
    assert (found.papers, found.reaches) == ("ppo in full", {})
    page = pages.markdown(found, "c", "methods-imagereward")
    assert "The paper's method, ppo in full, has no finished run, so there is no gain to reach." in page
    assert "ppo in full is the paper's method with the length and the settings" in page
    assert "ppo in full is" not in pages.markdown(
        made_standing(tmp_path / "own", {"ppo": (0.4, 0.8)}), "c", "methods-imagereward"
    )


def test_nobody_is_asked_beyond_the_end_of_a_training(tmp_path: Path) -> None:
    """Nor is the paper's method in full, where the others are as long and slower."""
    racing = replace(papers_cell(), method="nft")
    made_cell(tmp_path, replace(papers_cell(), in_full=True), (0.4, 0.8), (0.4, 0.8), 1.0)
    made_cell(tmp_path, racing, (0.5, 1.5), (0.5, 1.5), 3.0)
    found = standing(QUESTION, [replace(papers_cell(), in_full=True), racing], [], tmp_path, resamples=50)
    assert found.seconds == 2.0
    assert {round(n.seconds, 6) for n in found.numbers if n.at == "seconds" and n.share == 1} == {2.0}


def test_large_budgets_are_told_whole(tmp_path: Path) -> None:
    """Else the same command would be refused its own page, as one of another length."""
    found = made_standing(tmp_path / "root", {"ppo": (0.4, 1.0)})
    (track,) = found.tracks
    refusal = Refusal("imagereward", "refusing", "no")
    long = replace(found, tracks=(replace(track, budget=1_234_567),), refusals=(refusal,))
    page = pages.page_of(tmp_path, "imagereward")
    pages.write(long, page, "c")
    pages.write(long, page, "c")
    held = pages._held_runs(page.with_suffix(".csv"))
    assert {extent.budget for extent in held.values()} == {1_234_567}


def test_seeds_are_one_curve(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0)})
    (track,) = found.tracks
    order = list(track.experiments)
    metric = metrics.load("reward_mean")
    mine = track.rows[track.rows["scorer"] == "imagereward"]
    _, values_TRPS = per_prompt(metric, mine, order)
    assert values_TRPS.shape == (3, 3, 30, 1)
    for r in range(3):
        alone = mine[(mine["seed"] == r) | (mine["experiment"] == "base")]
        assert np.array_equal(per_prompt(metric, alone, order).statistics_TRPS[:, 0], values_TRPS[:, r])
    without = mine[~((mine["seed"] == 2) & (mine["experiment"] == order[1]))]
    with pytest.raises(ValueError, match="was not scored for the training seeds of the others"):
        per_prompt(metric, without, order)
    fewer = mine[~((mine["prompt_id"] == mine["prompt_id"].iloc[0]) & (mine["experiment"] == order[1]))]
    with pytest.raises(ValueError, match=f"^{order[1]} lacks 2 of the 60 imagereward scores"):
        per_prompt(metric, fewer, order)
    # three seeds that differ say less than one of them alone seems to
    several, alone = (
        table.partings(replace(track, rows=part), 500)[0].proxy
        for part in (track.rows, track.rows[(track.rows["seed"] == 0) | (track.rows["experiment"] == "base")])
    )
    assert several.critical > 1.2 * alone.critical


# --------------------------------------------------------------------------------------------------------------------- work


SMALL = Suite(
    parts=(Part(QUESTION.prompt_set, 2, SCORERS), Part(QUESTION.tuning_set, 2, SCORERS)),
    sampling=Sampling(steps=2, eta=1.0, guidance=None, micro_batch=8),
    seed=3,
    domain="miniature",
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preference experiment with eight images an iteration and two denoising steps, scored on four prompts."""
    own, real, load = experiments.load("imagereward", "miniature"), prompts.load, suites.load
    task = replace(own.tasks[0], batch=8)
    update = replace(own.update, trained_steps=1, skip_last=0, micro_batch=8, warmup=0)
    tiny = replace(
        own,
        tasks=(task,),
        update=update,
        sampling=replace(own.sampling, steps=2, micro_batch=8),
        iterations=4,
    )
    monkeypatch.setattr(experiments, "load", lambda *_: tiny)
    monkeypatch.setattr(suites, "load", lambda name: SMALL if name in (SUITE, TUNING_SUITE) else load(name))
    few = (QUESTION.prompt_set, QUESTION.tuning_set)
    monkeypatch.setattr(prompts, "load", lambda name: real(name)[:4] if name in few else real(name))
    work._source_of.cache_clear()
    monkeypatch.setattr("bench.methods.cells.KL_PROMPTS", 3)
    monkeypatch.setattr("bench.methods.work.KL_PROMPTS", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_cell_that_is_stopped_goes_on_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import start

    made = cells("imagereward", "ppo", [0], 96, 2)
    assert not isinstance(made, Refusal)
    (cell,) = made
    assert (cell.experiment.iterations, cell.points) == (4, 2)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert work.do(cell, whole, 1, "c") == 0

    prepare, before = start.prepare, signal.getsignal(signal.SIGTERM)

    def prepared_and_told_to_stop(*given: Any, **more: Any) -> Any:
        run = prepare(*given, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return run

    monkeypatch.setattr(start, "prepare", prepared_and_told_to_stop)
    assert work.do(cell, pieces, 1, "c") == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert not work.is_done(cell, pieces)
    monkeypatch.setattr(start, "prepare", prepare)
    assert work.do(cell, pieces, 1, "c") == 0
    assert work.is_done(cell, pieces)
    assert [training["jobs"] for training in work.trainings_of(cell, pieces)] == [1, 1]  # in two parts

    one, other = ((root / cell.key / work.SCORES).read_bytes() for root in (whole, pieces))
    assert one == other
    assert list(rows.read([whole / cell.key / work.SCORES])["experiment"].unique()) == [
        *("base", "imagereward@2", "imagereward")
    ]
    record, unbroken = work.record_of(cell, pieces), work.record_of(cell, whole)
    assert record is not None
    assert unbroken is not None
    assert [p["nats"] for p in record["points"]] == [p["nats"] for p in unbroken["points"]]
    assert [p["denoiser_evaluations"] for p in record["points"]] == [0, 48, 96]

    # nothing is done twice; what is needed no more is gone, and is made again where it is needed
    trained = []
    monkeypatch.setattr(
        start, "prepare", lambda *given, **more: (trained.append(1), prepare(*given, **more))[1]
    )
    assert work.do(cell, pieces, 1, "c") == 0
    assert trained == []
    run = pieces / cell.key / work.RUN
    assert not (run / "snapshots").exists()
    assert not (run / "state").exists()
    assert (run / "unet").is_dir()
    (pieces / cell.key / work.DONE).unlink()
    (pieces / cell.key / work.SCORES).unlink()
    assert work.do(cell, pieces, 1, "c") == 0
    assert trained == [1]
    assert (pieces / cell.key / work.SCORES).read_bytes() == one
    # a page reads two files of it and nothing else: those that the repository keeps
    for path in (pieces / cell.key).iterdir():
        if path.name not in (work.DONE, work.SCORES):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert work.is_done(cell, pieces)
    found = standing(QUESTION, [cell], [], pieces, resamples=100)
    (track,) = found.tracks
    assert track.nats_TRP.shape == (3, 1, 3)
    assert (track.nats_TRP[1:] > 0).all()
    assert track.pictures["win_rate_gold"] == 8
    assert track.seconds_RT[0, -1] > track.seconds_RT[0, 1] > 0
    assert work.seconds_each([cell], pieces)["ppo"] == pytest.approx(track.seconds_RT[0, -1] / 96)
    assert "nan" not in pages.markdown(found, "c", "methods-imagereward")


@pytest.mark.usefixtures("small")
def test_training_that_stops_by_itself_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import loop
    from train.loop import Stopped

    def diverges(_run: Any) -> None:
        raise Stopped("the weights diverged in iteration 1")

    monkeypatch.setattr(loop, "train", diverges)
    made = cells("imagereward", "ppo", [0], 96, 2)
    assert not isinstance(made, Refusal)
    assert work.do(made[0], tmp_path, 1, "c") == 0
    assert work.stopped_of(made[0], tmp_path) == "the weights diverged in iteration 1"
    assert work.is_done(made[0], tmp_path)
    assert work.record_of(made[0], tmp_path) is None
    (training,) = work.trainings_of(made[0], tmp_path)
    assert training["code"] == code.code_of(made[0])


def test_scores_by_another_scorer_are_made_again(tmp_path: Path) -> None:
    cell = papers_cell()
    made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    assert work.is_done(cell, tmp_path)
    path = tmp_path / cell.key / work.DONE
    record = json.loads(path.read_text())
    record["source"]["versions"]["vendi"] = "00000000"
    path.write_text(json.dumps(record))
    assert not work.is_done(cell, tmp_path)
    path.write_text("half a f")
    with pytest.raises(ValueError, match=r"cell\.json is damaged .*: delete it, and it is made again"):
        work.is_done(cell, tmp_path)


def test_what_was_trained_with_another_default_is_another_cell(tmp_path: Path) -> None:
    cell = papers_cell()
    made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    path = tmp_path / cell.key / work.DONE
    record = json.loads(path.read_text())
    del record["experiment"]["task_order"]  # from before there was such a field
    path.write_text(json.dumps(record))
    assert work.is_done(cell, tmp_path)
    record["experiment"]["update"]["betas"] = [0.5, 0.5]
    path.write_text(json.dumps(record))
    assert not work.is_done(cell, tmp_path)
    (tmp_path / cell.key / work.STOPPED).write_text(json.dumps(record | {"sentence": "diverged"}))
    assert work.stopped_of(cell, tmp_path) is None
    del record["experiment"]
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"cell\.json is damaged \(it lacks experiment, or part .*: delete it"
    ):
        work.is_done(cell, tmp_path)
    path.write_text(json.dumps(record | {"experiment": {"tasks": 3}}))
    with pytest.raises(
        ValueError, match=r"cell\.json is damaged \(it lacks experiment, or part .*: delete it"
    ):
        work.is_done(cell, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_what_was_begun_before_a_default_changed_is_forgotten(tmp_path: Path) -> None:
    (cell,) = only_cells(cells("imagereward", "ppo", [0], 96, 2))
    before = replace(cell, experiment=override(cell.experiment, ["update.betas=0.5,0.9"]))
    assert before.key != cell.key
    assert work.do(before, tmp_path, 1, "c") == 0
    (tmp_path / before.key / work.DONE).rename(tmp_path / before.key / work.STOPPED)
    (tmp_path / before.key).rename(tmp_path / cell.key)  # as if both were the default of their time
    assert work.do(cell, tmp_path, 1, "c") == 0
    assert work.is_done(cell, tmp_path)
    assert not (tmp_path / cell.key / work.STOPPED).exists()
    assert len(work.trainings_of(cell, tmp_path)) == 1


@pytest.mark.parametrize("column", ["prompts", "version"])
def test_seeds_that_were_scored_otherwise_are_refused(tmp_path: Path, column: str) -> None:
    made = [replace(papers_cell(), seed=seed) for seed in (0, 1)]
    for cell in made:
        made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    file, record = tmp_path / made[1].key / work.SCORES, tmp_path / made[1].key / work.DONE
    other = rows.read([file])
    rows.write(other.assign(**{column: "f" * 8}), file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"scores": sha}))
    told = {"prompts": "its file has changed", "version": "different versions"}
    with pytest.raises(ValueError, match=told[column]):
        standing(QUESTION, made, [], tmp_path, resamples=20)


@pytest.mark.usefixtures("small")
def test_data_that_cannot_be_read_is_a_mistake_to_mend_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import loop
    from train.data import DataFailed
    from train.loop import Stopped
    from train.rewards import RewardFailed

    def fails(reason: Exception) -> None:
        def train(_run: Any) -> None:
            raise Stopped(f"{reason}; and the same command resumes") from reason

        monkeypatch.setattr(loop, "train", train)

    (cell,) = only_cells(cells("imagereward", "ppo", [0], 96, 2))
    fails(DataFailed("pictures cannot be read"))
    with pytest.raises(ValueError, match=r"^pictures cannot be read; and the same command resumes$"):
        work.do(cell, tmp_path, 1, "c")
    assert not work.is_done(cell, tmp_path)
    fails(RewardFailed("the reward is NaN for all"))
    assert work.do(cell, tmp_path, 1, "c") == 0
    assert work.stopped_of(cell, tmp_path) == "the reward is NaN for all"
    assert len(work.trainings_of(cell, tmp_path)) == 2


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("cell.json", "[]", r"cell\.json is damaged \(it is no record\): delete it, and it is made again"),
        ("cell.json", '{"points": []}', r"cell\.json is damaged \(it lacks command, date, trainings, machine, points, or part of it\)"),
        ("scores.csv.xz", None, r"scores\.csv\.xz is gone: delete .*-0-\w{8}, and the cell is made again$"),
        ("scores.csv.xz", "half", r"scores\.csv\.xz has changed since: delete .*-0-\w{8}, and the cell is made again$"),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_is_named_and_what_helps(
    tmp_path: Path, file: str, content: str | None, told: str
) -> None:
    cell = papers_cell()
    made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    path = tmp_path / cell.key / file
    assert path.is_file()
    if content is None:
        path.unlink()
    else:
        source = json.dumps(work.source_of(cell))
        trained = json.dumps(as_json(cell.experiment))
        content = content.replace('{"points"', f'{{"experiment": {trained}, "source": {source}, "points"')
        path.write_text(content)
    with pytest.raises(ValueError, match=told):
        standing(QUESTION, [cell], [], tmp_path, resamples=20)


def test_a_seed_stands_beside_the_base_that_was_drawn_with_it(tmp_path: Path) -> None:
    """Another machine rounds otherwise, so that its base is not the same picture for picture."""
    made = [replace(papers_cell(), seed=seed) for seed in (0, 1)]
    for cell in made:
        made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    (before,) = standing(QUESTION, made, [], tmp_path, resamples=20).tracks
    file, record = tmp_path / made[1].key / work.SCORES, tmp_path / made[1].key / work.DONE
    other = rows.read([file])
    higher = other["value"] + 0.5 * (other["scorer"] == "imagereward")
    rows.write(other.assign(value=higher), file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"scores": sha}))
    (after,) = standing(QUESTION, made, [], tmp_path, resamples=20).tracks
    assert gains_RT(after, "reward_mean") == pytest.approx(gains_RT(before, "reward_mean"), abs=1e-5)
    assert after.pictures == before.pictures == dict.fromkeys(before.pictures, 4)


def test_records_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    cell = papers_cell()
    made_cell(tmp_path, cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    path = tmp_path / cell.key / work.DONE
    record = json.loads(path.read_text())
    record["points"][-1]["nats"] = [1.0]
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"no longer whole \(the divergences are not of one number of prompts"
    ):
        standing(QUESTION, [cell], [], tmp_path, resamples=20)
    record["points"][-1]["nats"] = "far"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"cell\.json is damaged \(it lacks points, or part of it\)"):
        standing(QUESTION, [cell], [], tmp_path, resamples=20)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"date": "2026-', r"trainings\.jsonl is damaged \(Unterminated .*: delete .*-0-\w{8}, and the cell is made again"),
        ("[1]\n", r"trainings\.jsonl is damaged \(a line lacks one of date, seconds, "),
    ],
)  # fmt: skip
def test_a_record_of_trainings_that_is_damaged_is_named(tmp_path: Path, content: str, told: str) -> None:
    cell = papers_cell()
    (tmp_path / cell.key).mkdir()
    (tmp_path / cell.key / work.TRAININGS).write_text(content)
    with pytest.raises(ValueError, match=told):
        work.trainings_of(cell, tmp_path)


def test_a_page_is_not_written_over_one_that_has_more(tmp_path: Path) -> None:
    out, levels = tmp_path / "page.md", {"ppo": (0.4, 1.0), "slow": (0.1, 0.2)}
    whole = made_standing(tmp_path / "a", levels)
    assert pages.write(whole, out, "c")[:2] == [out, tmp_path / "page.csv"]
    assert "are in `page.csv` beside this file" in out.read_text()
    before = {path: path.read_bytes() for path in tmp_path.glob("page*")}
    assert len(before) == 3
    for name, of, seeds, told in (
        ("a method less", {"ppo": (0.4, 1.0)}, (0, 1, 2), "slow on imagereward, seeds 0, 1, 2"),
        ("a seed less", levels, (0, 2), "ppo on imagereward, seed 1; slow on imagereward, seed 1"),
        ("a checkpoint less", {"ppo": (0.4,), "slow": (0.1, 0.2)}, (0, 1, 2), "ppo on imagereward of 345,600 evaluations and 2 checkpoints, seeds 0, 1, 2"),
    ):  # fmt: skip
        less = made_standing(tmp_path / name, of, seeds=seeds)
        with pytest.raises(
            ValueError,
            match=rf"page\.md and page\.csv have runs that are not among [^(]* \({told}\): choose another",
        ):
            pages.write(less, out, "c")
    shorter = {run: extent._replace(budget=5000) for run, extent in pages.runs_of(whole).items()}
    with pytest.raises(
        ValueError, match=r"have runs that are shorter \(ppo on imagereward of 345,600 evaluations and 2 ch"
    ):
        pages.refuse_loss(shorter, out, "are shorter")
    assert {path: path.read_bytes() for path in tmp_path.glob("page*")} == before
    # one that stopped by itself is told of, which is no loss; and is not forgotten either
    (tmp_path / "a" / papers_cell().key / work.DONE).unlink()
    cell = papers_cell()
    told = {"sentence": "the weights diverged", "experiment": as_json(cell.experiment)}
    (tmp_path / "a" / cell.key / work.STOPPED).write_text(json.dumps(told))
    cells_of = [replace(cell, method=method, seed=seed) for method in levels for seed in (0, 1, 2)]
    pages.write(standing(QUESTION, cells_of, [], tmp_path / "a", resamples=50), out, "d")
    assert "Made by `d`" in out.read_text()
    assert "the weights diverged" in out.read_text()
    known = {
        pages.Run("imagereward", m, seed): pages.Extent(345_600, 2) for m in levels for seed in (0, 1, 2)
    }
    pages.refuse_loss(known, out, "")
    del known[pages.Run("imagereward", "ppo", 0)]
    with pytest.raises(
        ValueError, match=r" \(ppo on imagereward, seed 0\): choose another --out, or remove the two"
    ):
        pages.refuse_loss(known, out, "")
    out.with_suffix(".csv").unlink()
    with pytest.raises(
        ValueError, match=r"page\.md is there without page\.csv, which says what runs it has: "
    ):
        pages.refuse_loss(known, out, "")


@pytest.mark.parametrize("somebodys", ["methods-tuning.csv", "miniature-scorers.csv", None])
def test_numbers_of_something_else_are_not_written_over(tmp_path: Path, somebodys: str | None) -> None:
    other = tmp_path / "other.csv"
    content = (Path(__file__).parents[1] / "results" / somebodys).read_bytes() if somebodys else b""
    other.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"other\.csv, where the numbers go, holds something else \(.+\): choose another --out",
    ):
        pages.refuse_loss({}, tmp_path / "other.md", "")
    assert other.read_bytes() == content


def test_a_page_has_what_is_done_of_the_methods_that_were_not_asked_for(tmp_path: Path) -> None:
    for method in ("ppo", "grpo"):
        for cell in only_cells(
            cells("imagereward", method, [0], 34_560, settings=methods.chosen(method, "imagereward") or ())
        ):
            made_cell(tmp_path / "cells", cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    asked = ["--methods", "ppo", "--rewards", "imagereward", "--root", str(tmp_path / "cells")]
    asked += ["--out", str(tmp_path), "--only-table"]
    result = CliRunner().invoke(main, [*asked, "--seeds", "0"])
    assert result.exit_code == 0, result.output
    page = pages.page_of(tmp_path, "imagereward").read_text()
    assert "| grpo " in page
    assert "awm" not in page  # neither asked for nor done


def test_what_is_planned_is_held_against_the_page_before_anything_is_trained(tmp_path: Path) -> None:
    whole = made_standing(tmp_path / "a", {"ppo": (0.4, 1.0), "slow": (0.1, 0.2)})
    pages.write(whole, pages.page_of(tmp_path, "imagereward"), "c")
    asked = ["--methods", "ppo", "--rewards", "imagereward", "--root", str(tmp_path / "b")]
    asked += ["--out", str(tmp_path)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert (
        "have runs that this command leaves out (ppo on imagereward of 345,600 evaluations and 2 checkpoints, "
        "seeds 0, 1, 2; slow on imagereward, seeds 0, 1, 2): choose another --out" in result.output
    )
    assert not (tmp_path / "b").exists()
    assert CliRunner().invoke(main, [*asked, "--dry-run"]).exit_code == 0
    # the page of one reward is nothing to the runs of another
    asked[asked.index("imagereward")] = "fairness"
    assert CliRunner().invoke(main, [*asked, "--only-table"]).exit_code == 0
    assert "Nothing has been run yet." in pages.page_of(tmp_path, "fairness").read_text()
    assert not pages.page_of(tmp_path, "fairness").with_suffix(".svg").exists()


def test_a_table_without_all_of_its_cells_says_which_it_lacks_and_leaves_a_page_that_has_them(
    tmp_path: Path,
) -> None:
    settings = methods.chosen("ppo", "imagereward") or ()
    made = only_cells(cells("imagereward", "ppo", [0, 1, 2], 34_560, settings=settings))
    for cell in made:
        made_cell(tmp_path / "cells", cell, (0.1, 0.2), (0.1, 0.2), 1.0, prompt_count=2)
    asked = ["--methods", "ppo", "--rewards", "imagereward", "--root", str(tmp_path / "cells")]
    asked += ["--out", str(tmp_path), "--only-table"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    said = [line for line in result.output.splitlines() if line.startswith("not in ")]
    assert said == [f"not in {tmp_path / 'cells'}: imagereward, ppo in full, seeds 0, 1, 2"]
    before = {path: path.read_bytes() for path in tmp_path.glob("methods-*")}
    assert len(before) == 3
    shutil.rmtree(tmp_path / "cells" / made[0].key)
    otherwise, at_other_default = (tmp_path / "cells" / cell.key / work.DONE for cell in made[1:])
    otherwise.write_text(json.dumps(json.loads(otherwise.read_text()) | {"source": {}}))
    record = json.loads(at_other_default.read_text())
    record["experiment"]["update"]["betas"] = [0.5, 0.5]
    at_other_default.write_text(json.dumps(record))
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    for line in (
        "ppo, seed 0",
        "ppo, seed 1 (scored by other scorers or on other prompts than today's)",
        "ppo, seed 2 (trained when a default was another)",
    ):
        assert f"not in {tmp_path / 'cells'}: imagereward, {line}" in result.output.splitlines()
    assert "are not among those that are done in --root (ppo on imagereward, seeds 0, 1, 2)" in result.output
    assert {path: path.read_bytes() for path in tmp_path.glob("methods-*")} == before


def test_where_no_settings_were_tried_the_page_says_so(tmp_path: Path) -> None:
    found = made_standing(tmp_path, {"ppo": (0.4, 1.0), "slow": (0.1, 0.2)})
    assert all(not track.settings for track in found.tracks)
    page = pages.markdown(found, "c", "methods-imagereward")
    # the paper's method at the length of its experiment has the settings of that
    assert "No settings have been tried for slow: " in page
    assert "has the best of an equal number" not in page
    ppo, slow = found.tracks
    tried = replace(ppo, settings=("update.lr=1",), budget=100)
    page = pages.markdown(replace(found, tracks=(tried, slow)), "c", "methods-imagereward")
    assert "Each but slow has the best of an equal number of settings" in page


def crew(root: Path, program: str) -> work.Crew:
    return work.Crew(lambda cell: [sys.executable, "-c", program, cell.key], root, threads=1)


def test_so_many_at_a_time_and_what_failed_is_said(tmp_path: Path) -> None:
    made = only_cells(plan(["ppo"], ["fairness"], [0, 1, 2, 3], 92_160))
    program = f"""if True:
        import os, sys, time
        key, root = sys.argv[1], {str(tmp_path)!r}
        open(os.path.join(root, key + ".at-work"), "w").close()
        at_work = sum(name.endswith(".at-work") for name in os.listdir(root))
        open(os.path.join(root, key + ".seen"), "w").write(str(at_work))
        assert os.environ["OMP_NUM_THREADS"] == "1"
        time.sleep(0.3)
        os.remove(os.path.join(root, key + ".at-work"))
        sys.exit("error: out of luck" if "-2-" in key else 0)
    """
    failed = crew(tmp_path, program).run(made, jobs=2)
    assert failed == [f"{made[2].key}: out of luck"]
    seen = [int(path.read_text()) for path in tmp_path.glob("*.seen")]
    assert len(seen) == 4
    assert max(seen) <= 2


def test_a_signal_is_passed_on_and_everybody_waited_for(tmp_path: Path) -> None:
    made = only_cells(plan(["ppo"], ["fairness"], [0, 1], 92_160))
    program = f"""if True:
        import os, signal, sys, time
        def stop(*_):
            open(os.path.join({str(tmp_path)!r}, "saved"), "w").close()
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        os.kill(os.getppid(), signal.SIGTERM)
        while True:
            time.sleep(0.05)
    """
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        crew(tmp_path, program).run(made, jobs=1)
    assert ended.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "saved").is_file()
    assert not (tmp_path / made[1].key).exists(), "a second one was begun"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("by", ["error", "hangup"])
def test_nobody_is_left_at_work(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the next cannot be begun, nor where the terminal is closed."""
    made = only_cells(plan(["ppo"], ["fairness"], [0, 1], 92_160))
    hang_up = "os.kill(os.getppid(), signal.SIGHUP)" if by == "hangup" else ""
    program = f"""if True:
        import os, signal, sys, time
        def stop(*_):
            open(os.path.join({str(tmp_path)!r}, "saved"), "w").close()
            sys.exit(143)
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, stop)
        open(os.path.join({str(tmp_path)!r}, "begun"), "w").close()
        {hang_up}
        while True:
            time.sleep(0.05)
    """
    if by == "hangup":
        left: list[bool] = []  # the terminal, on which nothing can be said any more; here it is everybody's
        monkeypatch.setattr(signals, "leave_terminal", lambda: left.append(True))
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the suite ignores it
        try:
            with pytest.raises(SystemExit) as ended:
                crew(tmp_path, program).run(made, jobs=1)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert ended.value.code == 128 + signal.SIGHUP
        assert left == [True]
    else:
        (tmp_path / made[1].key).write_text("in the way of a folder")

        class Slow(work.Crew):
            def _start(self, cell: Cell) -> None:
                super()._start(cell)
                while not (tmp_path / "begun").is_file():
                    time.sleep(0.05)

        with pytest.raises(OSError, match="exists"):
            Slow(lambda cell: [sys.executable, "-c", program, cell.key], tmp_path, threads=1).run(
                made, jobs=2
            )
    assert (tmp_path / "saved").is_file()


# --------------------------------------------------------------------------------------------------------------------- tries


def tuned() -> list[str]:
    return [n for n in methods.names() if hasattr(importlib.import_module(f"train.methods.{n}"), "TUNING")]


@pytest.mark.parametrize("reward", QUESTIONS)
@pytest.mark.parametrize("method", tuned())
def test_every_method_is_tried_as_often_and_at_equal_cost(method: str, reward: str) -> None:
    if isinstance(cells(reward, method, [0], 90_000), Refusal):
        with pytest.raises(ValueError, match=f"^{method} cannot train on {reward}: "):
            tune.tries(method, reward, 90_000)
        return
    made = tune.tries(method, reward, 90_000)
    assert len({cell.key for cell in made}) == methods.TRIES
    for cell in made:
        assert cell.settings[: len(methods.SHORT)] == methods.SHORT
        assert (cell.seed, cell.suite, cell.points) == (11, TUNING_SUITE, 1)
        assert cell.prompt_set == QUESTIONS[reward].tuning_set
        assert 0.8 * 90_000 < cell.evaluations <= 90_000


def test_a_method_without_its_number_of_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import train.methods.ppo

    assert "ppo" in tuned()
    monkeypatch.setattr(train.methods.ppo, "TUNING", ((),))
    with pytest.raises(
        ValueError, match=r"train/methods/ppo\.py has 1 settings in TUNING, but every .* with 4: "
    ):
        methods.tuning("ppo")


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_tries_are_kept_and_the_held_out_judge_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train.methods.ppo

    monkeypatch.setattr(methods, "TRIES", 2)
    monkeypatch.setattr(tune, "FINALISTS", 1)
    monkeypatch.setattr(train.methods.ppo, "TUNING", ((), ("update.lr=3e-3",)))

    def here(self: work.Crew, cells_of: Sequence[Cell], jobs: int) -> list[str]:
        for cell in cells_of:
            words = self.arguments(cell)
            assert words[1:4] == ["-m", "bench.methods", "cell"]
            result = CliRunner().invoke(main, words[3:])
            assert result.exit_code == 0, result.output
        return []

    monkeypatch.setattr(work.Crew, "run", here)
    root, path = tmp_path / "root", tmp_path / "tuning.csv"
    asked = [
        "tune",
        "ppo",
        "--reward",
        "imagereward",
        "--budget",
        "30",
        "--root",
        str(root),
        "--out",
        str(path),
    ]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^update\.warmup=10 ema\.decay=0\.95: held-out gain [+-]0\.\d{4}", result.output, re.MULTILINE
    )
    assert result.output.count("(best)") >= 1
    found = pd.read_csv(path)
    first, last = found[found["budget"] == 30], found[found["budget"] == 48]
    assert len(first) + len(last) == len(found)
    assert first["settings"].tolist() == [
        " ".join(methods.SHORT),
        " ".join((*methods.SHORT, "update.lr=3e-3")),
    ]
    assert found["prompt_set"].tolist() == [QUESTION.tuning_set] * 3
    assert found["seed"].tolist() == [tune.SEED] * 3
    assert found["evaluations"].tolist() == [24, 24, 48]
    assert first.loc[first["best"] == 1, "held_out"].min() == first["held_out"].max()
    assert first["kl"].iloc[1] > first["kl"].iloc[0] > 0
    # the best of the first goes on, at full length
    assert last["settings"].item() == first.loc[first["held_out"].idxmax(), "settings"]

    before = path.read_bytes()
    with monkeypatch.context() as changed:
        changed.setattr(work.Crew, "run", lambda *_: pytest.fail("done again"))
        assert CliRunner().invoke(main, asked).exit_code == 0
    assert path.read_bytes() == before
    # of tries of which one has failed nothing is kept, and none is the best
    (root / tune.tries("ppo", "imagereward", 30)[0].key / work.DONE).unlink()
    monkeypatch.setattr(work.Crew, "run", lambda *_: ["out of luck"])
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert "error: out of luck" in result.output
    assert "(best)" not in result.output
    assert path.read_bytes() == before


def test_where_all_tries_stop_by_themselves_there_is_no_best(tmp_path: Path) -> None:
    """A sentence, after what came of them is kept."""
    root, path = tmp_path / "root", tmp_path / "tuning.csv"
    for cell in tune.tries("ppo", "imagereward", 21_600):
        (root / cell.key).mkdir(parents=True)
        told = {"sentence": "the weights diverged", "experiment": as_json(cell.experiment)}
        (root / cell.key / work.STOPPED).write_text(json.dumps(told))
    asked = ["tune", "ppo", "--reward", "imagereward", "--root", str(root), "--out", str(path)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2, result.output
    assert "error: none of the settings of ppo on imagereward has a held-out gain" in result.output
    held = pd.read_csv(path)
    assert held["best"].tolist() == [0] * methods.TRIES
    assert held["note"].tolist() == ["stopped by itself: the weights diverged"] * methods.TRIES


def test_a_second_try_stands_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reward, budget = tmp_path / "tuning.csv", "compositionality", 9_600
    again = tune.second("nft", reward, budget)
    assert [cell.settings for cell in again] == [
        (*methods.SHORT, *of) for of in methods.second_try("nft", reward)
    ]
    assert {(cell.seed, cell.budget, cell.suite) for cell in again} == {(tune.SEED, budget, TUNING_SUITE)}

    def reached(settings: Sequence[tuple[str, ...]], *gains: float) -> pd.DataFrame:
        held_out = np.array(gains)
        found = {"reward": reward, "method": "nft", "budget": budget, "seed": tune.SEED, "held_out": held_out}
        found |= {
            "settings": [" ".join((*methods.SHORT, *of)) for of in settings],
            "best": (held_out == held_out.max()).astype(int),
        }
        return pd.DataFrame(found).reindex(columns=list(tune.COLUMNS))

    first, second = methods.tuning("nft")[:2], methods.second_try("nft", reward)
    assert tune.keep(reached(first, 0.1, 0.2), path)["best"].tolist() == [0, 1]
    assert tune.keep(reached(second, 0.3, 0.1), path)["best"].tolist() == [1, 0]
    assert pd.read_csv(path)[["held_out", "best"]].to_numpy().tolist() == [
        [0.1, 0],
        [0.2, 0],
        [0.3, 1],
        [0.1, 0],
    ]
    assert tune.keep(reached(second, 0.15, 0.1), path)["best"].tolist() == [0, 0]  # in place of what it was
    tune.keep(reached(first, 0.1, 0.5), path)
    held = pd.read_csv(path)
    assert held["held_out"].tolist() == [0.15, 0.1, 0.1, 0.5]
    assert held["best"].tolist() == [0, 0, 0, 1]
    # the first try's settings are exchanged in the method's file, and the second try is made again
    monkeypatch.setattr("train.methods.nft.TUNING", methods.tuning("nft")[::-1][:2] * 2)
    tune.keep(reached(second, 0.6, 0.1), path)
    held = pd.read_csv(path)
    assert held["held_out"].tolist() == [0.1, 0.5, 0.6, 0.1]
    assert held["best"].tolist() == [0, 0, 1, 0]
    for again in (second[:1] * 2, (second[0], methods.tuning("nft")[0])):
        monkeypatch.setattr("train.methods.nft.AGAIN", {reward: again})
        with pytest.raises(
            ValueError, match=r"nft\.py has a setting twice in AGAIN for compositionality, or "
        ):
            tune.second("nft", reward, budget)


@pytest.mark.parametrize(
    "again", ["update.lr=3e-5", ("update.lr=3e-5", "update.lr=1e-5"), (("update.lr=3e-5", 3),)]
)
def test_settings_that_lack_a_comma_are_told_with_their_file(
    again: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.methods.nft.AGAIN", {"compositionality": again})
    with pytest.raises(
        ValueError, match=r"train/methods/nft\.py: AGAIN\['compositionality'\] has something that is no tuple"
    ):
        methods.second_try("nft", "compositionality")
    monkeypatch.setattr("train.methods.nft.BEST", {"compositionality": ("update.lr=3e-5")})
    with pytest.raises(ValueError, match=r"train/methods/nft\.py: BEST\['compositionality'\] has something"):
        methods.chosen("nft", "compositionality")


def test_second_tries_are_of_rewards_that_there_are() -> None:
    for name in methods.names():
        again = vars(importlib.import_module(f"train.methods.{name}")).get("AGAIN", {})
        assert {*again} <= {*QUESTIONS}, name
        for reward in again:
            length = methods.EVALUATIONS[reward]
            assert len({cell.key for cell in tune.second(name, reward, length)}) == tune.FINALISTS


def test_the_page_says_who_had_a_second_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ppo,) = (found := made_standing(tmp_path, {"ppo": (0.4, 1.0)})).tracks
    racing = replace(found, tracks=(replace(ppo, settings=("update.lr=1",), budget=100),))
    assert "`AGAIN`" not in pages.markdown(racing, "c", "methods-imagereward")
    monkeypatch.setattr("train.methods.ppo.AGAIN", {"imagereward": ((), ())}, raising=False)
    told = "ppo has the best of these and of two settings more (`AGAIN`)."
    assert told in pages.markdown(racing, "c", "methods-imagereward")


def test_settings_of_the_last_round_are_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, (first, *_, last) = tmp_path / "tuning.csv", methods.tuning("ppo")
    settings = [" ".join((*methods.SHORT, *of)) for of in (last, first)]
    tried = pd.DataFrame({"reward": "imagereward", "method": "ppo", "settings": settings, "seed": 11})
    length = methods.EVALUATIONS["imagereward"]
    for other in (
        tried.assign(budget=length // 2),
        tried.assign(budget=length, method="ddpo"),
        tried.assign(budget=length, reward="compositionality"),
    ):
        tune.keep(other.reindex(columns=list(tune.COLUMNS)), path)
    with pytest.raises(
        ValueError,
        match=r"has 0 settings of ppo at full length on imagereward, of which its file has 0 today: ",
    ):
        tune.finals_of("ppo", "fairness", "imagereward", 20_000, path)
    tune.keep(tried.assign(budget=length).reindex(columns=list(tune.COLUMNS)), path)
    found = tune.finals_of("ppo", "fairness", "imagereward", 20_000, path)
    assert [cell.settings for cell in found] == [(*methods.SHORT, *of) for of in (first, last)]
    assert {(cell.reward, cell.budget, cell.seed, cell.prompt_set) for cell in found} == {
        ("fairness", 20_000, tune.SEED, QUESTIONS["fairness"].tuning_set)
    }
    more = ((), ("update.lr=2",))
    monkeypatch.setattr("train.methods.ppo.AGAIN", {"imagereward": more}, raising=False)
    second = tried.assign(budget=length, settings=[" ".join((*methods.SHORT, *of)) for of in more])
    assert len(tune.keep(second.reindex(columns=list(tune.COLUMNS)), path)) == 2
    again = tune.finals_of("ppo", "fairness", "imagereward", 20_000, path)
    assert [cell.key for cell in again] == [cell.key for cell in found]
    exchanged = tried.assign(budget=length, settings=[settings[0], "update.lr=1"])
    tune.keep(exchanged.reindex(columns=list(tune.COLUMNS)), path)
    with pytest.raises(
        ValueError,
        match=r"has 2 settings .*, of which its file has 1 today: `python -m bench\.methods tune ppo --reward imagereward` first",
    ):
        tune.finals_of("ppo", "fairness", "imagereward", 20_000, path)
    rounds = [tried.assign(reward="fairness", budget=budget) for budget in (10, 16)]
    tune.keep(rounds[0].reindex(columns=list(tune.COLUMNS)), path)
    tune.keep(rounds[1].reindex(columns=list(tune.COLUMNS)), path)
    with pytest.raises(
        ValueError, match=r"has 2 rounds of ppo on fairness already, .*: leave --finalists-of out"
    ):
        tune.finals_of("ppo", "fairness", "imagereward", 20_000, path)


def test_tries_that_end_at_one_instant_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held = tmp_path / "tuning.csv", tune._held
    reading = threading.Event()

    def slowly(where: Path) -> pd.DataFrame:
        found = held(where)
        reading.set()
        time.sleep(0.3)  # of two that do not wait for each other the other one reads now
        return found

    monkeypatch.setattr(tune, "_held", slowly)
    found = pd.DataFrame({"reward": "fairness", "settings": [""], "budget": 9, "seed": 11})
    found = found.reindex(columns=list(tune.COLUMNS)).assign(held_out=[0.1])
    first = threading.Thread(target=tune.keep, args=(found.assign(method="ppo"), path))
    first.start()
    assert reading.wait(10)
    tune.keep(found.assign(method="grpo"), path)
    first.join()
    assert pd.read_csv(path)["method"].tolist() == ["grpo", "ppo"]


def test_tries_take_the_place_of_their_own_kind_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuning.csv"
    found = pd.DataFrame(
        {"reward": "fairness", "method": "ppo", "settings": ["", "a=1"], "budget": 9, "seed": 11}
    )
    found = found.reindex(columns=list(tune.COLUMNS)).assign(best=[0, 1], held_out=[0.1, 0.2])
    tune.keep(found, path)
    tune.keep(found.assign(method="grpo"), path)
    tune.keep(found.assign(budget=10), path)
    both = path.read_bytes()
    tune.keep(found, path)  # in place of itself
    assert path.read_bytes() == both
    kept = pd.read_csv(path)
    assert list(zip(kept["method"], kept["budget"], strict=True)) == [
        *[("grpo", 9)] * 2,
        *[("ppo", 9)] * 2,
        *[("ppo", 10)] * 2,
    ]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"tuning\.csv is no table of tries"):
        tune.keep(found, path)
