"""Over-optimisation: made-up runs whose proxy and judge part where it is known, or do not; who has a say; and a run with a snapshot from end to end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from scipy import stats as scipy_stats

import evals.curve
import prompts
from evals import compare, harness, stats, suites
from evals.__main__ import main
from evals.curve import (
    Choice,
    Chosen,
    Curve,
    Point,
    Series,
    choose,
    curve,
    divergences,
    markdown,
    simultaneous,
    tidy,
    verdicts,
)
from evals.diffusion import Sampling
from evals.miniature import weights_folder
from evals.rows import Row, table
from evals.stats import Interval, Resampler
from evals.suites import Part, Suite
from tests.synthetic_rows import study

SET = "miniature-preference-unseen"
PROXY = (0.0, 0.4, 0.7, 1.1, 1.2, 1.3)
JUDGE = (0.0, 0.35, 0.7, 0.35, 0.1, -0.2)
AT = (0, 20, 40, 60, 80, 100)


def named(iteration: int) -> str:
    return {0: "base", AT[-1]: "imagereward"}.get(iteration, f"imagereward@{iteration}")


def points(count: int = len(AT)) -> list[Point]:
    return [
        Point(at, named(at), 96 * at, 960 * at, Interval(0.1 * at, 0.09 * at, 0.11 * at)) for at in AT[:count]
    ]


def row(**given: Any) -> Row:
    """A score row of one suite and its prompts."""
    rest = {"suite": "miniature", "prompts": "0a1b2c3d", "picture": "0a1b2c3d4e5f", "version": "0a1b2c3d"}
    return Row(model="miniature", seed=0, **rest, **given)


def run_of(
    levels: Mapping[str, Sequence[float]], seed: int = 0, prompt_count: int = 40, noise: float = 0.6
) -> pd.DataFrame:
    """Rows of a run on imagereward: a level for each scorer and checkpoint, over pictures that are like the base's."""
    generator = np.random.default_rng(seed)
    records = []
    for scorer, of_scorer in levels.items():
        base_PG = generator.normal(size=(prompt_count, 2))
        for at, level in zip(AT, of_scorer, strict=True):
            own_PG = noise * generator.normal(size=(prompt_count, 2)) * (at > 0)
            for (prompt, image), value in np.ndenumerate(base_PG + level + own_PG):
                trained = int(scorer == "imagereward" and at > 0)
                at_picture = {"prompt_set": SET, "prompt_id": f"p{prompt:03d}", "image": image}
                records.append(
                    row(experiment=named(at), scorer=scorer, trained_on=trained, value=value, **at_picture)
                )
    return table(records)


def found_in(levels: Mapping[str, Sequence[float]], **more: Any) -> Curve:
    return curve(run_of(levels, **more), points(), resamples=1000)


def kept(found: Curve) -> int:
    assert found.choice is not None
    return found.points[found.choice.kept].iteration


# ------------------------------------------------------------------------------------------------------- where they part


def test_where_proxy_and_judge_part_is_found_and_what_to_keep_named() -> None:
    found = found_in({"imagereward": PROXY, "clip_judge": JUDGE, "gold_utility": JUDGE})
    assert {(s.role, s.metric) for s in found.series} == {
        ("proxy", "reward_mean"),
        ("judge", "win_rate_judge"),
        ("gold", "win_rate_gold"),
    }
    assert found.choice == Choice(2, ())
    for parting in found.partings:
        assert [found.points[t].iteration for t in parting.apart] == [60, 80, 100]
    told = verdicts(found)
    assert told[0] == "**Keep iteration 40**. All others are distinguished from it."
    assert re.search(
        r"proxy \(reward model score\) and judge \(win rate \(held-out judge\)\) part after iteration 40",
        told[1],
    )
    assert "(KL 4), seen at 60, 80, 100: from 40 to 60 the proxy gains +0." in told[1]
    assert "the judge −" in told[1]
    assert re.match(
        r"Held to gold \(win rate \(gold\)\) on .*, which had no say: its best is iteration 40, the one to keep, which has "
        r"\+\d\d\.\d \[.*\] beside the end of the run\.$",
        told[-1],
    )


def test_where_they_do_not_part_it_says_so() -> None:
    level = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
    found = found_in({"imagereward": PROXY, "clip_judge": level})
    assert kept(found) == 100
    assert [parting.apart for parting in found.partings] == [()]
    assert ", the end of the run. " in verdicts(found)[0]
    assert "are not seen to part (best of the judge: iteration 100)" in verdicts(found)[1]


def test_a_judge_that_falls_while_the_proxy_does_not_rise_is_no_over_optimisation() -> None:
    proxy = (0.0, 0.4, 1.0, 0.5, 0.4, 0.2)
    found = found_in({"imagereward": proxy, "clip_judge": JUDGE})
    (parting,) = found.partings
    assert parting.fallen == (3, 4, 5)
    assert parting.apart == ()
    assert (
        "though the judge is below its best at 60, 80, 100, where the proxy has not risen"
        in verdicts(found)[1]
    )


def test_where_every_snapshot_is_worse_the_base_is_kept() -> None:
    found = found_in({"imagereward": PROXY, "clip_judge": (0.0, -0.6, -0.7, -0.8, -0.9, -1.0)})
    assert kept(found) == 0
    assert verdicts(found)[0].startswith("**Keep iteration 0**, the base: no checkpoint is better.")
    assert found.partings[0].apart == (1, 2, 3, 4, 5)


def test_neither_gold_nor_proxy_has_a_say() -> None:
    levels = [{"clip_judge": JUDGE, "imagereward": o, "gold_utility": o} for o in (PROXY, JUDGE, PROXY[::-1])]
    found = [found_in(each) for each in levels]
    assert len({each.choice for each in found}) == 1
    assert [kept(each) for each in found] == [40] * 3


def test_a_judge_that_was_trained_on_is_a_proxy() -> None:
    rows = run_of({"imagereward": PROXY, "clip_judge": JUDGE})
    rows.loc[rows["experiment"] != "base", "trained_on"] = 1
    found = curve(rows, points(), resamples=200)
    assert {s.role for s in found.series} == {"proxy"}
    assert found.choice is None
    told = verdicts(found)
    assert told[0] == "No judge is held out from this run's rewards, so no checkpoint can be named."
    assert "no judge is held out, so nothing says whether" in told[1]
    assert len(told) == 2
    assert "keep" not in markdown(found, "x", "y").split("## How")[0]


def test_without_a_proxy_there_is_nothing_to_follow() -> None:
    rows = run_of({"clip_judge": JUDGE})
    with pytest.raises(
        ValueError, match="no metric of the suite reads a reward that imagereward was trained on"
    ):
        curve(rows, points(), resamples=200)


def test_questions_that_the_run_was_not_trained_for_are_left_out() -> None:
    found = found_in({"imagereward": PROXY, "clip_judge": JUDGE, "objects": [0.5] * 6, "vendi": [2.0] * 6})
    assert found.questions() == ["imagereward"]


def test_where_less_is_better_a_gain_is_still_above_zero() -> None:
    rows = study(experiments=("base", "fairness"), prompts=20, images=8, seeds=(0,))
    rows["experiment"] = rows["experiment"].replace("fairness", "fairness@10")
    ends = [Point(0, "base", 0, 0, Interval(0, 0, 0)), Point(10, "fairness@10", 1, 1, Interval(1, 1, 1))]
    (series,) = curve(rows, ends, resamples=500).series
    assert (series.metric, series.role) == ("parity", "proxy")
    assert series.gain_T[1].low > 0
    assert series.value_T[1].value - series.value_T[0].value == pytest.approx(-series.gain_T[1].value)


def test_a_judge_that_every_prompt_wins_has_wilsons_interval() -> None:
    found = curve(
        run_of({"imagereward": PROXY, "clip_judge": [0, 9, -9, 0.1, 9, 9]}), points(), resamples=200
    )
    (judge,) = (s for s in found.series if s.role == "judge")
    high, low = stats.wilson(40, 40), stats.wilson(0, 40)
    assert judge.value_T[1] == pytest.approx(high)
    assert judge.value_T[2] == pytest.approx(low)
    assert judge.gain_T[0] == (0, 0, 0)
    assert judge.gain_T[1] == pytest.approx((0.5, high.low - 0.5, 0.5))
    assert judge.gain_T[2] == pytest.approx((-0.5, -0.5, low.high - 0.5))
    assert "| +50.0 [+41.2, +50.0]" in markdown(found, "x", "y")


def test_a_prompt_with_nothing_applicable_is_left_out_everywhere_and_counted() -> None:
    rows = run_of({"imagereward": PROXY, "clip_judge": JUDGE})
    lost = (
        (rows["experiment"] == "imagereward@60")
        & (rows["prompt_id"] == "p003")
        & (rows["scorer"] == "clip_judge")
    )
    rows.loc[lost, "value"] = np.nan
    found = curve(rows, points(), resamples=200)
    assert [s.left_out for s in found.series if s.role == "judge"] == [1]
    without = curve(rows[rows["prompt_id"] != "p003"], points(), resamples=200)
    gains = [[s.gain_T for s in c.series if s.role == "judge"] for c in (found, without)]
    assert gains[0] == gains[1]
    assert "judge (win rate (held-out judge)) on miniature-preference-unseen: 1." in markdown(found, "x", "y")


def test_prompts_stay_inside_their_strata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of which only one gains: how many of each are drawn is no luck."""

    def half(prompt_set: str, prompt_id: str) -> str:
        return "odd" if int(prompt_id.removeprefix("p")) % 2 else "even"

    rows = run_of({"imagereward": PROXY}, noise=0.1)
    odd = rows["prompt_id"].map(lambda one: half(SET, one)) == "odd"
    rows.loc[odd & (rows["experiment"] == named(100)), "value"] += 5.0
    of = dict[str, Series]()
    for name, stratum in {"whole": None, "inside": half}.items():
        part = Part(SET, 2, (), stratum=stratum)
        monkeypatch.setattr(compare, "parts_of", lambda _suite, part=part: {SET: part})
        found = curve(rows, points(), resamples=400)
        (of[name],) = (s for s in found.series if s.metric == "reward_mean")
        told = f"{SET} is resampled inside its 2 strata, each of which keeps its share of the prompts: even, odd."
        assert (told in markdown(found, "x", "y")) == (name == "inside")
    assert of["inside"].gain_T[-1].value == of["whole"].gain_T[-1].value
    half_width = {name: (s.gain_T[-1].high - s.gain_T[-1].low) / 2 for name, s in of.items()}
    # of 40 prompts half at 5 and half at 0: 1.96 x 2.5 / sqrt(40) where their shares are luck
    assert half_width["whole"] == pytest.approx(0.775, rel=0.15)
    assert half_width["inside"] < 0.2 * half_width["whole"]
    assert of["inside"].error_TT[0, -1] < 0.2 * of["whole"].error_TT[0, -1]


def test_divergence_stays_inside_the_strata_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of the prompts have moved by five nats and half by none: there is nothing to be uncertain of but how many of each are drawn."""
    suite = Suite((Part(SET, 2, ()),), Sampling(steps=2, guidance=2.0), 7)
    ids = [prompt.id for prompt in prompts.load(SET)][::2]
    half = {one: "odd" if place % 2 else "even" for place, one in enumerate(ids)}
    monkeypatch.setattr(
        evals.curve, "nats_to_base", lambda *_: [{SET: [[5.0 * (i % 2)] for i in range(len(ids))]}]
    )
    monkeypatch.setattr(evals.curve, "_spread", lambda *_: [p for p in prompts.load(SET) if p.id in half])
    width = {}
    for name, strata in {"whole": {}, "inside": {SET: half}}.items():
        base, moved = divergences([], suite, tmp_path, len(ids), 1, Resampler(400, 0, strata))
        assert base == Interval(0.0, 0.0, 0.0)
        assert moved.value == pytest.approx(5 * (len(ids) // 2) / len(ids))
        width[name] = moved.high - moved.low
    assert width["whole"] == pytest.approx(2 * 1.96 * 2.5 / np.sqrt(len(ids)), rel=0.15)
    assert width["inside"] < 1e-9


def test_divergence_on_few_prompts_has_students_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    some = prompts.load(SET)[:4]
    suite, nats = Suite((Part(SET, 2, ()),), Sampling(steps=2, guidance=2.0), 7), [11.0, 12.0, 14.0, 19.0]
    monkeypatch.setattr(evals.curve, "nats_to_base", lambda *_: [{SET: [[one] for one in nats]}])
    monkeypatch.setattr(evals.curve, "_spread", lambda *_: some)
    _, moved = divergences([], suite, tmp_path, 4, 1, Resampler(4000, 0, {}))
    half = scipy_stats.t.ppf(0.975, 3) * np.std(nats, ddof=1) / 2
    assert moved == pytest.approx((14.0, 14.0 - half, 14.0 + half), rel=0.02)


def test_divergence_on_a_single_prompt_has_no_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = Suite((Part(SET, 2, ()),), Sampling(steps=2, guidance=2.0), 7)
    monkeypatch.setattr(evals.curve, "nats_to_base", lambda *_: [{SET: [[5.0]]}])
    base, moved = divergences([], suite, tmp_path, 1, 1, Resampler(50, 0, {}))
    assert moved.value == 5.0 and np.isnan([moved.low, moved.high]).all()
    ends = [Point(0, "base", 0, 0, base), Point(20, "imagereward@20", 1, 1, moved)]
    page = markdown(curve(run_of({"imagereward": PROXY}), ends, resamples=50), "x", "y")
    assert re.search(r"\| 20 +\| 5 +\|", page)


@pytest.mark.parametrize("prompt_count", [6, 40])
def test_a_checkpoint_by_itself_has_the_intervals_of_the_table(prompt_count: int) -> None:
    rows = run_of({"imagereward": PROXY, "clip_judge": JUDGE}, prompt_count=prompt_count)
    found = curve(rows, points(), resamples=500)
    table = {(e.experiment, e.metric): e for e in compare.compare(rows, 500).estimates}
    for series in found.series:
        for t in range(1, len(AT)):
            e = table[named(AT[t]), series.metric]
            assert (series.value_T[t], series.gain_T[t]) == (e.value, e.difference)


def test_strata_that_are_not_here_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(prompt_set: str, prompt_id: str) -> str:
        raise ValueError("its file is not on this machine")

    monkeypatch.setattr(compare, "parts_of", lambda _suite: {SET: Part(SET, 2, (), stratum=nowhere)})
    page = markdown(curve(run_of({"imagereward": PROXY}), points(), resamples=50), "x", "y")
    assert f"- {SET} is resampled as a whole, not inside its strata: its file is not on this machine" in page


def test_a_checkpoint_whose_portraits_lose_their_faces_is_refused_and_not_kept() -> None:
    """Few faces are left at iteration 40, as even as can be, and the judge likes it best of all."""
    uneven, mixed = [0.0] * 14 + [3.0] * 2, [0.0] * 8 + [1.0, 2.0, 3.0, 3.0] * 2
    groups = {0: uneven, 20: mixed, 40: [np.nan] * 12 + [0.0, 1.0, 2.0, 3.0]}
    records = []
    for at, of_prompt in groups.items():
        for prompt in range(12):
            # of every third prompt no face is left at all
            tones = [np.nan] * 16 if at == 40 and prompt % 3 == 0 else of_prompt
            for image, tone in enumerate(tones):
                where = {"prompt_set": SET, "prompt_id": f"p{prompt:03d}", "image": image}
                trained = {"experiment": named(at), "trained_on": int(at > 0)}
                records.append(row(scorer="skin_tone", value=tone, **trained, **where))
                level = {0: 0.0, 20: 1.0 if prompt else -1.0, 40: 2.0}[at]
                judged = {"experiment": named(at), "trained_on": 0}
                records.append(row(scorer="clip_judge", value=level, **judged, **where))
    rows = table(records)
    chosen: list[Chosen] = [
        ("fairness", "proxy", "parity_excess", SET),
        ("preference", "judge", "win_rate_judge", SET),
    ]
    found = curve(rows, points(3), resamples=200, chosen=chosen)
    parity, judge = found.series
    assert [parity.is_refused(t) for t in range(3)] == [False, False, True]
    assert judge.gain_T[2].value > judge.gain_T[1].value
    assert (judge.best, found.choice, found.unfit) == (1, Choice(1, ()), (2,))
    told = markdown(found, "x", "y")
    assert "**Keep iteration 20**. " in told
    assert "Not to be kept, as a metric is refused there: 40." in told
    assert re.search(r"\| 40 +\|.*\| refused +\|", told)
    assert (
        "Refused on miniature-preference-unseen: 83.3 % of the images of iteration 40 have no skin_tone"
        in told
    )
    assert np.isnan(tidy(found)["gain"].iloc[2])
    assert tidy(found)["missing"].tolist()[:3] == pytest.approx([0, 0, 5 / 6])
    # the others are as they were without it, and no prompt is lost by it
    without = curve(rows[rows["experiment"] != named(40)], points(2), resamples=200, chosen=chosen)
    assert without.series[0].gain_T == parity.gain_T[:2]
    assert parity.left_out == 0
    # of a base without faces there is no parity to follow, but a judge all the same
    other_way = {named(0): named(40), named(40): named(0)}
    swapped = rows.assign(experiment=rows["experiment"].map(other_way).fillna(named(20)))
    found = curve(swapped, points(3), resamples=200, chosen=chosen)
    assert [s.metric for s in found.series] == ["win_rate_judge"]
    assert "left out: 83.3 % of the images of the base have no skin_tone" in markdown(found, "x", "y")
    with pytest.raises(ValueError, match=r"left out: 83.3 % of the images of the base"):
        curve(swapped, points(3), resamples=200, chosen=chosen[:1])


def test_one_training_seed_without_faces_refuses_a_checkpoint() -> None:
    """Of three seeds a third is missing, which is not half; but of one all are."""
    seeds = []
    for seed in range(3):
        records = [
            row(
                experiment=named(at),
                scorer="skin_tone",
                trained_on=int(at > 0),
                value=np.nan if at == 40 and seed == 2 else float((image + at // 20) % 4 if image < 6 else 0),
                prompt_set=SET,
                prompt_id=f"p{prompt:03d}",
                image=image,
            )
            for at in AT[:3]
            for prompt in range(6)
            for image in range(16)
        ]
        seeds.append(table(records).assign(seed=seed))
    found = curve(
        pd.concat(seeds, ignore_index=True),
        points(3),
        resamples=100,
        chosen=[("fairness", "proxy", "parity_excess", SET)],
    )
    assert found.unfit == (2,)
    assert found.series[0].missing_T == (0.0, 0.0, 1.0)


# ---------------------------------------------------------------------------------------------------- several, and by chance


def series(gains: Sequence[float], errors: float = 1.0, critical: float = 2.5) -> Series:
    """A judge with independent checkpoints of one standard error."""
    gain_T = tuple(Interval(gain, gain, gain) for gain in gains)
    error_TT = np.full((len(gains), len(gains)), errors) * (1 - np.eye(len(gains)))
    return Series(
        "q", "judge", "win_rate_judge", SET, gain_T, gain_T, error_TT, critical, 0, (0.0,) * len(gain_T)
    )


def test_of_several_judges_the_smallest_largest_shortfall_is_kept() -> None:
    one, other = series([0, 9, 7, 1]), series([0, 3, 8, 9])
    assert choose([one]) == Choice(1, (2,))
    assert choose([other]) == Choice(3, (2,))
    assert choose([one, other]) == Choice(2, ())
    # in standard errors: a judge that hardly distinguishes anything has little to say
    assert choose([one, series([0, 3, 8, 9], errors=10.0)]) == Choice(1, (2,))
    assert choose([series([1, 1, 1])]) == Choice(0, (1, 2))  # of equal ones the earliest
    assert choose([series([0, 1, 0.5], errors=0.0)]) == Choice(1, ())


def test_simultaneous_intervals_are_tukeys_where_his_hold() -> None:
    draws_TN = 3.0 * np.random.default_rng(0).normal(size=(6, 40_000))
    error_TT, critical = simultaneous(draws_TN)
    assert error_TT[0, 1] == pytest.approx(3 * np.sqrt(2), rel=0.02)
    assert np.array_equal(error_TT, error_TT.T)
    assert not error_TT.diagonal().any()
    assert critical == pytest.approx(
        scipy_stats.studentized_range.ppf(0.95, 6, np.inf) / np.sqrt(2), rel=0.02
    )
    assert simultaneous(draws_TN[:2])[1] == pytest.approx(1.96, rel=0.02)
    # two checkpoints of the same pictures, and a resample that is not there
    draws_TN[1] = draws_TN[0]
    draws_TN[2, 5] = np.nan
    error_TT, critical = simultaneous(draws_TN)
    assert error_TT[0, 1] == 0
    assert 1.96 < critical < 2.9


@pytest.mark.parametrize("prompt_count", [4, 8])
def test_intervals_of_few_prompts_hold_all_pairs_as_often_as_promised(prompt_count: int) -> None:
    """Nothing differs: with standard errors taken for known all pairs were held in 39 of 100 runs of 4 prompts and 73 of 8."""
    held, runs = 0, 40
    for seed in range(runs):
        level = {"imagereward": (0.0,) * 6}
        rows = run_of(level, seed=seed, prompt_count=prompt_count)
        found = curve(rows, points(), 400, [("imagereward", "proxy", "reward_mean", SET)]).series[0]
        pairs = [found.difference(one, other) for one in range(6) for other in range(one)]
        held += all(pair.low <= 0 <= pair.high for pair in pairs)
    assert held / runs > 0.85


def test_luck_among_many_snapshots_is_seldom_taken_for_parting() -> None:
    """The judge stays level and the proxy rises: at most one in twenty is called over-optimised; intervals of one pair call many so."""
    flat, alarms, naive, repeats = (0.0, 0.5, 0.5, 0.5, 0.5, 0.5), 0, 0, 40
    for seed in range(repeats):
        found = curve(
            run_of({"imagereward": PROXY, "clip_judge": flat}, seed, prompt_count=20), points(), resamples=200
        )
        (judge,), (parting,) = [s for s in found.series if s.role == "judge"], found.partings
        alarms += bool(parting.apart)
        later = range(judge.best + 1, len(AT))
        naive += any(
            judge.difference(t, judge.best).value < -1.96 * judge.error_TT[t, judge.best] for t in later
        )
    assert alarms <= scipy_stats.binom.ppf(0.99, repeats, 0.05)
    assert naive > scipy_stats.binom.ppf(0.99, repeats, 0.05)


# ------------------------------------------------------------------------------------------------------------- what is written


def test_the_page_and_the_columns() -> None:
    found = found_in({"imagereward": PROXY, "clip_judge": JUDGE, "gold_utility": JUDGE})
    page = markdown(found, "imagereward-miniature-0", "python -m evals curve x")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [str(at) for at in AT]
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["", "", "keep", "apart", "apart", "apart"]
    assert len({len(line) for line in lines}) == 1
    numbers = tidy(found)
    assert len(numbers) == 3 * len(AT)
    assert tidy.__doc__ is not None
    for column in numbers.columns:
        assert re.sub("_(low|high)$", "", column) in tidy.__doc__, column
    judge = numbers[numbers["role"] == "judge"].set_index("iteration")
    assert judge["apart"].tolist() == [0, 0, 0, 1, 1, 1]
    assert judge["kept"].tolist() == [0, 0, 1, 0, 0, 0]
    assert (judge["from_best"] <= 0).all()
    assert judge.loc[60, "from_best_high"] < 0
    assert judge.loc[20, "kl"] == 2.0
    assert judge.loc[0, ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ from end to end

SMALL = Suite(
    parts=(Part(SET, 1, ("imagereward", "clip_judge", "gold_utility")),),
    sampling=Sampling(steps=2, eta=1.0, guidance=None, micro_batch=8),
    seed=3,
    domain="miniature",
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two iterations that ends as it began, with another denoiser in between; eight prompts to score it on."""
    some = prompts.load(SET)[:8]
    monkeypatch.setattr(suites, "load", lambda _name: SMALL)
    monkeypatch.setattr(prompts, "load", lambda _name: some)
    folder, pipeline = tmp_path / "runs" / "imagereward-miniature-0", weights_folder("pipeline")
    folder.mkdir(parents=True)
    for part in pipeline.iterdir():
        (folder / part.name).symlink_to(part)
    record = {
        "name": "imagereward-miniature-0",
        "model": "miniature",
        "seed": 0,
        "rewards": ["imagereward"],
        "base": str(pipeline),
        "experiment": {"domain": "miniature", "iterations": 2},
        "cost": {"images": 20, "denoiser_evaluations": 200},
    }
    (folder / "run.json").write_text(json.dumps(record))
    snapshot = folder / "snapshots" / "000001"
    (snapshot / "unet").mkdir(parents=True)
    cost = {"cost": {"images": 10, "denoiser_evaluations": 100}}
    (snapshot / "snapshot.json").write_text(json.dumps({"iteration": 1} | cost))
    shutil.copy(pipeline / "unet" / "config.json", snapshot / "unet")
    move(snapshot, pipeline, 1.02)
    return folder


def move(snapshot: Path, pipeline: Path, factor: float) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(pipeline / name)
    weights["conv_out.weight"] = factor * weights["conv_out.weight"]
    save_file(weights, snapshot / name)


def called(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["curve", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_run_is_scored_once_and_told_the_same_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "curve.md"
    code, told = called(run, "--out", out, "--kl-prompts", 3, "--kl-images", 2)
    assert code == 0, told
    assert "Keep iteration" in told
    assert f"wrote {out} and " in told
    numbers = pd.read_csv(out.with_suffix(".csv"))
    assert set(numbers["experiment"]) == {"base", "imagereward@1", "imagereward"}
    at = numbers[numbers["role"] == "judge"].set_index("iteration")
    assert at["images"].tolist() == [0, 10, 20]
    assert at.loc[2, ["kl", "kl_high", "gain"]].tolist() == [0, 0, 0]  # the end is the base again
    assert at.loc[1, "kl_low"] > 0
    assert numbers.loc[(numbers["role"] == "proxy") & (numbers["iteration"] == 1), "gain"].item() != 0
    nats = json.loads((tmp_path / "curves" / "imagereward@1-miniature-0.kl.json").read_text())["kept"][SET]
    assert (len(nats), len(nats[0])) == (3, 2)
    rows = pd.read_csv(tmp_path / "curves" / "imagereward@1-miniature-0.csv")
    assert set(rows.loc[rows["trained_on"] == 1, "scorer"]) == {"imagereward"}
    before = {path: path.read_bytes() for path in (out, out.with_suffix(".csv"))}

    asked: list[str] = []
    real = harness.score
    monkeypatch.setattr(
        harness, "score", lambda target, *rest, **more: (asked.append(target), real(target, *rest, **more))
    )
    assert called(run, "--out", out, "--kl-prompts", 3, "--kl-images", 2)[0] == 0
    assert asked == []
    assert {path: path.read_bytes() for path in before} == before
    # another denoiser under the same name is another checkpoint
    move(run / "snapshots" / "000001", weights_folder("pipeline"), 1.05)
    code, told = called(run, "--out", out, "--kl-prompts", 3, "--kl-images", 2)
    assert code == 0, told
    assert asked == [f"{run}@1"]
    later = pd.read_csv(out.with_suffix(".csv")).set_index(["role", "iteration"])
    assert later.loc[("judge", 1), "kl"] > 2 * at.loc[1, "kl"]

    # files that somebody has spoilt
    damaged = tmp_path / "curves" / "imagereward@1-miniature-0.kl.json"
    damaged.write_text("half a f")
    code, told = called(run, "--out", out, "--kl-prompts", 3, "--kl-images", 2)
    assert code == 2
    assert told.splitlines()[-1].startswith(f"error: {damaged} is damaged")
    damaged.unlink()
    card = run / "snapshots" / "000001" / "snapshot.json"
    card.write_text("{}")
    code, told = called(run, "--out", out, "--kl-prompts", 3, "--kl-images", 2)
    assert code == 2
    assert told.splitlines()[-1].startswith(f"error: {card} is damaged")
    assert told.splitlines()[-1].endswith("it does not say what training had taken")


def test_what_cannot_be_told_is_one_sentence(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve.md"
    for arguments, sentence in (
        (
            (run, "--out", out, "--every", 7),
            f"error: {run} has no snapshots of every 7 iterations: `--set snap",
        ),
        (
            (tmp_path / "nowhere", "--out", out),
            f"error: {tmp_path / 'nowhere'} is no finished run of this project (it has no run.json)",
        ),
        (
            (tmp_path, "--out", out),
            f"error: {tmp_path} is no finished run of this project (it has no run.json)",
        ),
        (
            (weights_folder("pipeline"), "--out", out),
            f"error: {weights_folder('pipeline')} is no finished run of this",
        ),
        ((run, "--out", tmp_path / "curve.csv"), f"error: --out {tmp_path / 'curve.csv'} must end in .md"),
    ):
        code, told = called(*arguments)
        assert code == 2
        assert told.startswith(sentence), told
        assert len(told.splitlines()) == 1
