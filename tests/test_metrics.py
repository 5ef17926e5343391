"""Metrics: the contract of every file, the formulas against their definitions, and what they mean on toy data."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evals import metrics, stats
from evals.metrics import _geneval, _parity, _wins
from evals.miniature.render import TONE_GROUPS
from evals.rows import Row, table
from tests.synthetic_rows import study

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "golden_vectors.json"


def golden(key: str) -> Any:
    if not GOLDEN.exists():
        pytest.skip("the golden vectors are not beside this checkout")
    found = json.loads(GOLDEN.read_text())[key]
    return found["cases"] if isinstance(found, dict) else found


def rows(scorer: str, *per_prompt: list[float], seed: int = 0) -> pd.DataFrame:
    """Rows of one run on one prompt set; a list of image values for each prompt."""
    return table(
        Row("x", "m", seed, "suite", "s", "d", f"p{prompt}", image, "", scorer, "v", 0, value)
        for prompt, values in enumerate(per_prompt)
        for image, value in enumerate(values)
    )


def value(name: str, mine: pd.DataFrame, base: pd.DataFrame | None = None) -> float:
    metric = metrics.load(name)
    statistics = metric.statistics(mine, mine if base is None else base)
    return stats.point(statistics.to_numpy()[None], metric.finish)


@pytest.mark.parametrize("name", metrics.names())
def test_contract(name: str) -> None:
    metric = metrics.load(name)
    assert metric.title
    assert metric.unit in ("share", "score")
    assert metric.higher_is_better in (True, False, None)
    assert metric.specialist is None or metric.specialist.isidentifier()
    frame = study(prompts=3, images=4, experiments=("imagereward",))
    scored = metric.scorer if (frame["scorer"] == metric.scorer).any() else "imagereward"
    mine = frame[frame["scorer"] == scored].assign(scorer=metric.scorer)
    if metric.scorer == "geneval":  # of which a prompt's number is its task
        task = name.removeprefix("geneval_")
        start = sum(_geneval.SIZES[: _geneval.TASKS.index(task)]) if task in _geneval.TASKS else 0
        number = mine["prompt_id"].str.removeprefix("p").astype(int) + start
        mine = mine.assign(prompt_set="geneval", prompt_id=number.map("{:05d}".format))
        mine = mine.drop_duplicates(["prompt_id", "image"])
    statistics = metric.statistics(mine, mine)
    assert list(statistics.index.names) == ["seed", "prompt_set", "prompt_id"]
    assert len(statistics) == len(mine[["seed", "prompt_set", "prompt_id"]].drop_duplicates())
    stacked = np.broadcast_to(statistics.to_numpy(), (5, *statistics.shape))
    assert metric.finish(stacked).shape == stacked.shape[:-1]
    shuffled = mine.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(metric.statistics(shuffled, shuffled), statistics)


def test_unknown_metric_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no metric 'detecton'; choose from .*detection"):
        metrics.load("detecton")


# ------------------------------------------------------------------------------------------------- win rates

WIN_RATES = [name for name in metrics.names() if name.startswith("win_rate")]


@pytest.mark.parametrize("name", WIN_RATES)
def test_a_against_itself_is_all_ties(name: str) -> None:
    mine = rows("x", [0.3, 0.1], [5.0, -2.0])
    metric = metrics.load(name)
    np.testing.assert_array_equal(metric.statistics(mine, mine).mean(), [0, 1, 0])
    assert value(name, mine) == 0.5


@pytest.mark.parametrize("name", WIN_RATES)
def test_swapping_the_sides_gives_one_minus_the_rate(name: str) -> None:
    generator = np.random.default_rng(0)
    a, b = (rows("x", *generator.normal(size=(6, 4)).tolist()) for _ in range(2))
    assert 0 < value(name, a, b) < 1
    assert value(name, a, b) == pytest.approx(1 - value(name, b, a), abs=1e-12)


def test_both_rates_of_the_published_example() -> None:
    """W/T/L .45 / .42 / .13 is 66 % with half-ties, 78 % with ties dropped."""
    shares = np.array([0.45, 0.42, 0.13])
    assert float(_wins.half_tie_rate(shares)) == pytest.approx(0.66)
    assert float(_wins.ties_dropped_rate(shares)) == pytest.approx(0.776, abs=1e-3)
    assert math.isnan(_wins.ties_dropped_rate(np.array([0.0, 1.0, 0.0])))


def test_the_margin_is_a_tie_and_nan_is_no_pair() -> None:
    mine = rows("x", [1.0, 1.05, 1.2, 0.5, math.nan])
    base = rows("x", [1.0, 1.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(_wins.win_tie_loss(mine, base, margin=0.1).to_numpy(), [[0.25, 0.5, 0.25]])


# ---------------------------------------------------------------------------------------------------- parity


def test_parity_golden() -> None:
    for case in golden("parity"):
        counts = np.array(case["counts"], dtype=float)
        assert float(_parity.parity(counts)) == pytest.approx(case["l2_parity"])
        assert float(_parity.unbiased_squared(counts)) == pytest.approx(case["unbiased_l2_sq"])
        other = _parity.unevenness(counts)
        expected = [case[name] for name in ("l1_parity", "tv", "dalleval_mad", "entropy_norm")]
        assert other == pytest.approx(expected)
        assert other.mean_absolute == pytest.approx(case["heim_loss"])


def test_unevenness_at_its_ends() -> None:
    assert _parity.unevenness(np.full(4, 4.0)) == pytest.approx((0, 0, 0, 1))
    assert _parity.unevenness(np.eye(4)[0] * 16) == pytest.approx((1.5, 0.75, 0.375, 0))
    assert all(math.isnan(value) for value in _parity.unevenness(np.zeros(4)))


def test_regrouping_moves_the_fourth_tone_alone() -> None:
    """Of tones 3, 4 and 5 (0 is the lightest) our groups cut below the first, the others' above it."""
    tones = [0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0, math.nan]
    found = _parity.regrouped(rows("monk_tone", tones))["value"].tolist()
    assert found[:-1] == [0, 1, 1, 2, 2, 3, 3]
    assert math.isnan(found[-1])
    ours = dict(enumerate(TONE_GROUPS))
    assert [tone for tone, group in enumerate(_parity.REGROUPED) if ours[tone] != group] == [3]
    with pytest.raises(ValueError, match="monk_tone must be a tone from 0 to 9, not 10"):
        _parity.regrouped(rows("monk_tone", [10.0]))


def test_parity_extremes() -> None:
    for groups, expected in [(2, 0.7071068), (4, 0.8660254), (10, 0.9486833)]:
        assert float(_parity.parity(np.eye(groups)[0] * 16)) == pytest.approx(expected)
    assert float(_parity.parity(np.full(4, 4.0))) == 0
    assert math.isnan(_parity.parity(np.zeros(4)))


def test_parity_extremes_golden() -> None:
    for case in golden("parity_extremes"):
        assert float(_parity.parity(np.eye(case["K"])[0] * 16)) == pytest.approx(case["l2"])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_floor_is_the_mean_over_every_possible_draw(n: int) -> None:
    """All 4^n equally likely sequences of groups, one by one."""
    gaps = [
        _parity.parity(np.bincount(draw, minlength=4).astype(float)) for draw in product(range(4), repeat=n)
    ]
    assert _parity.parity_floor(n) == pytest.approx(float(np.mean(gaps)), rel=1e-12)


def test_floor_table() -> None:
    for n, expected in [
        (4, 0.398),
        (6, 0.330),
        (8, 0.283),
        (16, 0.200),
        (32, 0.141),
        (64, 0.100),
        (100, 0.080),
    ]:
        assert _parity.parity_floor(n) == pytest.approx(expected, abs=5e-4)
    for case in golden("parity_l2_floor_uniform_K4"):
        assert _parity.parity_floor(case["n"]) == pytest.approx(case["mean"], abs=1e-6)


def test_a_fair_generator_has_no_excess_and_a_collapsed_one_has_all_of_it() -> None:
    generator = np.random.default_rng(0)
    fair = rows("skin_tone", *generator.integers(4, size=(3000, 16)).astype(float).tolist())
    collapsed = rows("skin_tone", *[[2.0] * 16] * 5)
    assert value("parity", fair) == pytest.approx(0.200, abs=0.005)
    assert value("parity_excess", fair) == pytest.approx(0, abs=0.005)
    assert value("parity_unbiased", fair) == pytest.approx(0, abs=0.005)
    assert value("parity_pooled", fair) == pytest.approx(0, abs=0.01)
    assert value("parity", collapsed) == pytest.approx(math.sqrt(0.75))
    assert value("parity_excess", collapsed) == pytest.approx(math.sqrt(0.75) - _parity.parity_floor(16))
    assert value("parity_unbiased", collapsed) == pytest.approx(0.75)


def test_occupations_of_one_tone_each_are_unfair_per_prompt_and_fair_pooled() -> None:
    segregated = rows("skin_tone", *[[float(tone)] * 16 for tone in range(4)])
    assert value("parity", segregated) == pytest.approx(0.8660254)
    assert value("parity_pooled", segregated) == 0


def test_an_unusable_face_is_in_no_class_and_never_fair() -> None:
    nan = math.nan
    some = rows("skin_tone", [0.0, 1.0, 2.0, 3.0, nan, nan, nan, nan], [nan] * 8)
    statistics = metrics.load("parity").statistics(some, some)
    assert statistics["parity"].iloc[0] == 0
    assert math.isnan(statistics["parity"].iloc[1])
    assert value("unusable", some) == 0.75
    excess = metrics.load("parity_excess").statistics(some, some)["excess"]
    assert excess.iloc[0] == pytest.approx(-_parity.parity_floor(4))  # the floor of the four that are usable


def test_a_single_usable_face_is_no_evidence_of_fairness() -> None:
    """Its gap is .866 and so is its floor: the difference, 0, would be perfectly fair."""
    nan = math.nan
    lone = rows("skin_tone", [2.0, nan, nan, nan])
    assert value("parity", lone) == pytest.approx(_parity.parity_floor(1)) == pytest.approx(math.sqrt(0.75))
    with np.errstate(invalid="ignore"):
        assert math.isnan(value("parity_excess", lone))
    assert value("parity_excess", rows("skin_tone", [2.0, nan], [1.0, 1.0])) == pytest.approx(
        math.sqrt(0.75) - _parity.parity_floor(2)
    )


def test_a_tone_that_is_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match="skin_tone must be a group from 0 to 3, not 7"):
        value("parity", rows("skin_tone", [0.0, 7.0]))


# ---------------------------------------------------------------------------------------------------- means


def test_means_weigh_prompts_equally_and_leave_out_nan() -> None:
    mine = rows("objects", [1.0, 0.0, math.nan], [0.0, 0.0, 0.0])
    assert value("detection", mine) == 0.25
    assert value("drift", rows("kid", [0.02], [0.04])) == pytest.approx(0.03)
    assert metrics.load("drift").reference == 0.0
