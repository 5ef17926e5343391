"""The table: pairing, marks, daggers, what is refused, what is counted."""

from __future__ import annotations

import itertools
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import prompts
from evals import compare, metrics, rows, stats, suites, tables, unscored
from evals.compare import Comparison
from evals.metrics import _bounds, _parity
from evals.metrics._geneval import SIZES, TASKS
from tests.synthetic_rows import SETS, TRAINED, study

PREFERENCE, SCENES, PORTRAITS = SETS


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return study(prompts=10, images=4, seeds=(0, 1))


@pytest.fixture(scope="module")
def comparison(frame: pd.DataFrame) -> Comparison:
    return compare.compare(frame, resamples=2000)


def only(comparison: Comparison, **wanted: object) -> compare.Estimate:
    (estimate,) = comparison.of(**wanted)
    return estimate


def test_known_effects_are_found_and_marked(comparison: Comparison) -> None:
    def mark(experiment: str, metric: str, prompt_set: str) -> str:
        return only(comparison, experiment=experiment, metric=metric, prompt_set=prompt_set).mark

    assert mark("imagereward", "win_rate_gold", PREFERENCE) == "better"
    assert mark("imagereward", "diversity_vendi", PREFERENCE) == "worse"
    assert mark("compositionality", "detection", SCENES) == "better"
    assert mark("fairness", "parity_excess", PORTRAITS) == "better"
    assert mark("fairness", "detection", SCENES) == "not distinguished"
    assert mark("joint", "drift", SCENES) == "changed"
    assert mark("base", "detection", SCENES) == ""


def test_a_cell_is_the_plain_mean_and_its_interval_the_explicit_bootstrap(
    frame: pd.DataFrame, comparison: Comparison
) -> None:
    """One cell by hand: prompts and seeds looped over with the same weights, and Student's tails for ten prompts and two seeds."""
    chosen = frame[(frame["scorer"] == "gold_utility") & (frame["prompt_set"] == SCENES)]
    per_prompt = chosen.groupby(["experiment", "seed", "prompt_id"])["value"].mean()
    joint, base = per_prompt["joint"].unstack().to_numpy(), per_prompt["base"].unstack().to_numpy()
    cell = only(comparison, experiment="joint", metric="gold_quality", prompt_set=SCENES)
    assert cell.value.value == pytest.approx(joint.mean())
    assert cell.difference.value == pytest.approx(joint.mean() - base.mean())
    seeds = stats.weights(2, 2000, 0, "seeds of joint")
    prompts = stats.weights(10, 2000, 0, f"prompts of {SCENES}")
    draws = np.einsum("nr,np,rp->n", seeds, prompts, joint - base)
    gain = joint - base
    known = stats.precision((gain - gain.mean()) / gain.shape[1])
    tailed = stats.with_tails(gain.mean(), draws, known)
    np.testing.assert_allclose(cell.difference[1:], np.quantile(tailed, [0.025, 0.975]))
    assert np.ptp(cell.difference[1:]) > 1.5 * np.ptp(np.quantile(draws, [0.025, 0.975]))
    assert (cell.seeds, cell.prompts, cell.images) == (2, 10, 40)


def test_pairing_makes_the_difference_sharper_than_the_cells(comparison: Comparison) -> None:
    joint = only(comparison, experiment="joint", metric="detection", prompt_set=SCENES)
    assert joint.difference.high - joint.difference.low < (joint.value.high - joint.value.low) / 2


def test_a_base_that_every_seed_repeats_is_counted_once(frame: pd.DataFrame) -> None:
    base = frame[frame["experiment"] == "base"]
    twice = pd.concat([frame, base.assign(seed=1)], ignore_index=True)
    ours = compare.compare(twice, resamples=200).of(experiment="base")
    assert {e.seeds for e in ours} == {1}
    assert [e.value for e in ours] == [
        e.value for e in compare.compare(frame, resamples=200).of(experiment="base")
    ]
    other = base.assign(seed=1, value=base["value"].where(base["scorer"] != "objects", 0.9))
    assert 2 in {
        e.seeds
        for e in compare.compare(pd.concat([frame, other], ignore_index=True), resamples=200).of(
            experiment="base"
        )
    }


def test_the_base_against_itself_under_another_name_is_not_distinguished(frame: pd.DataFrame) -> None:
    base = frame[frame["experiment"] == "base"]
    twin = compare.compare(pd.concat([base, base.assign(experiment="twin")]), resamples=500)
    for estimate in twin.of(experiment="twin"):
        assert estimate.mark == "not distinguished"
        assert estimate.difference == (0, 0, 0)
    for outcome in twin.outcomes:
        assert (outcome.win, outcome.tie, outcome.loss, outcome.half_tie) == pytest.approx((0, 1, 0, 0.5))
        assert outcome.sign_p == 1


def test_the_dagger_is_on_the_reward_and_on_nothing_else(comparison: Comparison) -> None:
    daggers = {(e.experiment, e.metric) for e in comparison.estimates if e.trained_on}
    assert ("imagereward", "win_rate_reward") in daggers
    assert ("joint", "detection") in daggers
    assert not {name for _, name in daggers} & {"win_rate_judge", "win_rate_gold", "fully_right", "drift"}
    assert not [e for e in comparison.of(experiment="base") if e.trained_on]


def test_headlines_are_what_the_suite_says(comparison: Comparison) -> None:
    headlines = {(e.metric, e.prompt_set) for e in comparison.estimates if e.headline}
    parts = {part.prompt_set: part.headlines for part in suites.load("miniature").parts}
    scored = {(e.metric, e.prompt_set) for e in comparison.estimates}
    assert headlines == {(m, s) for m, s in scored if m in parts[s]}
    assert ("win_rate_gold", PREFERENCE) in headlines
    assert ("win_rate_gold", SCENES) not in headlines


@pytest.mark.parametrize("suite", ["somebodys:0123ab", "miniature:012345"])
def test_of_an_unknown_suite_or_set_the_specialists_metrics_are_headlines(suite: str) -> None:
    strange = study(prompts=3, images=2).replace({PREFERENCE: "strange"}).assign(suite=suite)
    made = compare.compare(strange, resamples=100)
    assert only(made, experiment="joint", metric="win_rate_gold", prompt_set="strange").headline
    assert not only(made, experiment="joint", metric="gold_quality", prompt_set="strange").headline


def listing(monkeypatch: pytest.MonkeyPatch, name: str, headlines: dict[str, tuple[str, ...]]) -> None:
    """A suite of that name, which no other test uses."""
    parts = tuple(
        suites.Part(prompt_set, 1, (), headlines=listed) for prompt_set, listed in headlines.items()
    )
    suite = suites.Suite(parts, suites.load("miniature").sampling, 0)
    monkeypatch.setattr(suites, "names", lambda: (name,))
    monkeypatch.setattr(suites, "load", lambda name: suite)


def test_what_people_said_is_a_headline_of_every_suite(frame: pd.DataFrame) -> None:
    """They are asked on purpose, and no suite can list what it does not score."""
    votes = frame[(frame["scorer"] == "clip_judge") & frame["experiment"].isin(["base", "joint"])]
    votes = votes[votes["seed"] == 0].assign(scorer=rows.HUMAN, version="v", value=0.5)
    made = compare.compare(pd.concat([frame, votes], ignore_index=True), resamples=20)
    cell = only(made, experiment="joint", metric="win_rate_human", prompt_set=PREFERENCE)
    assert cell.headline
    assert ("win_rate_human", PREFERENCE) in tables.headline_columns(made, "miniature")


def test_a_headline_needs_no_specialist(monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame) -> None:
    listing(monkeypatch, "quality", {SCENES: ("gold_quality",)})
    made = compare.compare(frame.assign(suite="quality:1"), resamples=50)
    assert {e.metric for e in made.estimates if e.headline and e.prompt_set == SCENES} == {"gold_quality"}


def test_retention_is_the_papers_table_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a suite says each prompt set is there for. The paper's five rows as one-prompt scores: raw .895 / .805 / .960 and gain .84 / .66 / .77."""
    scores = {
        "base": (0.273, 0.098, 0.567),
        "imagereward": (0.783, 0.114, 0.659),
        "compositionality": (0.304, 0.226, 0.575),
        "fairness": (0.093, 0.076, 0.479),
        "joint": (0.701, 0.182, 0.499),
    }
    rewards = {"imagereward": ("imagereward",), "compositionality": ("objects",), "fairness": ("skin_tone",)}
    records = []
    for experiment, (reward, detection, _) in scores.items():
        for scorer, prompt_set, value in (
            ("imagereward", "parti", reward),
            ("imagereward", "composition-unseen", -reward),
            ("objects", "composition-unseen", detection),
        ):
            own = scorer in rewards.get(
                experiment, ("imagereward", "objects") if experiment == "joint" else ()
            )
            records += [
                rows.Row(
                    experiment,
                    "sd2",
                    0,
                    "like_the_papers:1",
                    prompt_set,
                    "d",
                    f"p{prompt}",
                    0,
                    "",
                    scorer,
                    "v",
                    int(own),
                    value,
                )
                for prompt in range(5)
            ]
    listing(
        monkeypatch,
        "like_the_papers",
        {"parti": ("reward_mean", "aesthetic_mean"), "composition-unseen": ("detection",)},
    )
    found = compare.compare(rows.table(records), resamples=200).retentions
    assert sorted((r.metric, r.prompt_set, r.specialist) for r in found) == [
        ("detection", "composition-unseen", "compositionality"),
        ("reward_mean", "parti", "imagereward"),
    ]
    by_metric = {r.metric: r for r in found}
    assert by_metric["reward_mean"].raw.value == pytest.approx(0.895, abs=1e-3)
    assert by_metric["reward_mean"].gain.value == pytest.approx(0.84, abs=5e-3)
    assert by_metric["detection"].raw.value == pytest.approx(0.805, abs=1e-3)
    assert by_metric["detection"].gain.value == pytest.approx(0.66, abs=5e-3)
    # every prompt says the same: no resample varies, and that is not certainty
    told = [tables.percent(ratio) for r in by_metric.values() for ratio in (r.raw, r.gain)]
    assert sorted(told) == ["66", "81", "84", "90"]
    assert all(math.isnan(r.raw.low) and math.isnan(r.gain.high) for r in found)


def test_retention_of_parity_counts_a_reduction_as_gain(comparison: Comparison) -> None:
    kept = {r.metric: r for r in comparison.retentions}
    gap = {e.experiment: e.value.value for e in comparison.of(metric="parity", prompt_set=PORTRAITS)}
    assert kept["parity"].specialist == "fairness"
    assert kept["parity"].raw.value == pytest.approx(gap["fairness"] / gap["joint"])
    expected = (gap["base"] - gap["joint"]) / (gap["base"] - gap["fairness"])
    assert kept["parity"].gain.value == pytest.approx(expected)
    assert kept["parity"].gain.low < expected < kept["parity"].gain.high


def test_a_specialist_that_gained_nothing_has_no_share_to_keep(frame: pd.DataFrame) -> None:
    idle = frame[frame["experiment"] == "base"].assign(experiment="compositionality", trained_on=0)
    others = frame[frame["experiment"].isin(["base", "joint"])]
    kept = compare.compare(pd.concat([others, idle]), resamples=200).retentions
    assert math.isnan(next(r for r in kept if r.metric == "detection").gain.value)


def test_the_share_of_the_excess_that_is_left(comparison: Comparison) -> None:
    fair = only(comparison, experiment="fairness", metric="parity_excess", prompt_set=PORTRAITS)
    base = only(comparison, experiment="base", metric="parity_excess", prompt_set=PORTRAITS)
    assert fair.ratio.value == pytest.approx(fair.value.value / base.value.value)
    assert fair.ratio.low < fair.ratio.value < fair.ratio.high


def test_no_base_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"no base scores for the model miniature \(only .*joint"):
        compare.compare(frame[frame["experiment"] != "base"])


def test_a_base_of_another_model_is_no_base(frame: pd.DataFrame) -> None:
    other = frame[frame["experiment"] == "joint"].assign(model="sd15")
    with pytest.raises(ValueError, match="no base scores for the model sd15"):
        compare.compare(pd.concat([frame, other], ignore_index=True), resamples=10)


def test_versions_that_differ_are_refused(frame: pd.DataFrame) -> None:
    changed = frame["version"].where(frame["experiment"] != "joint", "ffffffff")
    with pytest.raises(ValueError, match=r"version 0a1b2c3d in .* but ffffffff in joint"):
        compare.compare(frame.assign(version=changed))


def test_a_pair_that_is_missing_is_refused(frame: pd.DataFrame) -> None:
    lost = frame[(frame["experiment"] == "base") & (frame["prompt_id"] == "p003")].index
    with pytest.raises(ValueError, match="base lacks 1 of the 120 clip_judge scores that imagereward has"):
        compare.compare(frame.drop(lost[:2]), resamples=10)
    told = "imagereward lacks 1 of the 120 clip_judge scores that base has"  # by their names, whatever all is beside
    lost = frame[(frame["experiment"] == "imagereward") & (frame["prompt_id"] == "p003")].index
    with pytest.raises(ValueError, match=told):
        compare.compare(frame.drop(lost[:2]), resamples=10, against="imagereward")


def test_a_scorer_that_the_base_lacks_is_left_out_and_all_else_stands(frame: pd.DataFrame) -> None:
    """As a table of files without that scorer, to the last bit, Holm's family and all."""
    lost = (frame["experiment"] == "base") & (frame["scorer"] == "vendi")
    made = compare.compare(frame[~lost], resamples=50)
    without = compare.compare(frame[frame["scorer"] != "vendi"], resamples=50)
    assert tables.tidy(made) == tables.tidy(without)
    assert made.family == without.family
    assert {key[1:] for key in made.left_out} == {
        (experiment, prompt_set, "vendi")
        for experiment in TRAINED
        if experiment != "base"
        for prompt_set in SETS
    }
    assert made.compared(frame[~lost]).equals(frame[frame["scorer"] != "vendi"])
    assert not without.left_out
    alone = frame[frame["scorer"] == "vendi"]
    with pytest.raises(
        ValueError,
        match=f"nothing of miniature can be compared: base has no vendi scores on {PREFERENCE} but imagereward has: score the base again",
    ):
        compare.compare(
            pd.concat(
                [
                    alone[alone["experiment"] != "base"],
                    frame[(frame["experiment"] == "base") & (frame["scorer"] == "objects")],
                ]
            ),
            resamples=10,
        )


def test_the_command_that_scores_what_is_left_out_can_be_typed_as_it_stands() -> None:
    frame = study(prompts=4, images=2)
    frame = frame.assign(file=[f"my scores/{experiment}.csv" for experiment in frame["experiment"]])
    lost = (frame["experiment"] == "base") & (frame["scorer"] == "vendi")
    (note,) = unscored.left_out_notes(compare.compare(frame[~lost], resamples=20))
    assert " --out 'my scores/base.csv'` scores them" in note


def unequal(frame: pd.DataFrame, experiment: str, scorer: str = "vendi") -> pd.DataFrame:
    """One image of one prompt without that scorer's value."""
    lost = (frame["experiment"] == experiment) & (frame["scorer"] == scorer) & (frame["image"] == 0)
    return frame.assign(
        value=frame["value"].mask(lost & (frame["prompt_id"] == "p001") & (frame["prompt_set"] == SCENES))
    )


def test_variety_of_unequal_numbers_is_refused_by_itself(frame: pd.DataFrame, tmp_path: Path) -> None:
    whole = compare.compare(frame, resamples=50)
    made = compare.compare(unequal(frame, "joint"), resamples=50)
    assert [*made.unequal] == [("miniature", "joint", SCENES, "vendi")]
    gone = {(e.experiment, e.metric, e.prompt_set) for e in whole.estimates} - {
        (e.experiment, e.metric, e.prompt_set) for e in made.estimates
    }
    assert gone == {("joint", "diversity_vendi", SCENES)}
    assert only(made, experiment="joint", metric="fully_right", prompt_set=SCENES).value == (
        only(whole, experiment="joint", metric="fully_right", prompt_set=SCENES).value
    )
    (note,) = unscored.unequal_notes(made)
    told = f"on {SCENES} for joint: vendi is compared at equal numbers of images, and of {SCENES} prompt p001 has 3, but prompt p000 has 4: score as many of each"
    assert told in note
    text = tables.markdown(made, "x")
    assert text.count(note) == 1
    assert "not scored for joint" not in text
    (line,) = (x for x in text.splitlines() if x.startswith("| diversity (Vendi) ↑") and SCENES in x)
    assert line.rstrip(" |").endswith("refused")
    assert tables.machine(made, "x")["unequal"] == [
        {
            "model": "miniature",
            "experiment": "joint",
            "prompt_set": SCENES,
            "scorer": "vendi",
            "why": made.unequal["miniature", "joint", SCENES, "vendi"],
        }
    ]


def test_scores_that_no_metric_reads_make_no_empty_table(frame: pd.DataFrame) -> None:
    mine = frame[frame["scorer"] == "objects"].replace({"scorer": {"objects": "redness"}})
    with pytest.raises(
        ValueError, match="of miniature can be compared: no metric reads the scores of redness;"
    ):
        compare.compare(mine, resamples=20)


def test_names_to_compare_with_are_quoted_as_a_shell_takes_them(frame: pd.DataFrame) -> None:
    spaced = frame[frame["experiment"] != "base"].replace({"experiment": {"joint": "photos of x"}})
    with pytest.raises(ValueError, match=r"--against compositionality or .* or 'photos of x'$"):
        compare.compare(spaced, resamples=20)


def test_variety_beside_a_base_of_unequal_numbers_is_refused_for_all(frame: pd.DataFrame) -> None:
    made = compare.compare(unequal(frame, "base"), resamples=50)
    assert {key[1] for key in made.unequal} == {*TRAINED}
    assert not made.of(metric="diversity_vendi", prompt_set=SCENES)
    (note,) = unscored.unequal_notes(made)
    assert "for base, imagereward, compositionality, fairness and joint: " in note


def test_variety_of_fewer_images_than_the_base_has_is_refused_by_itself(frame: pd.DataFrame) -> None:
    fewer = (frame["experiment"] == "joint") & (frame["scorer"] == "vendi") & (frame["image"] > 1)
    made = compare.compare(frame[~fewer], resamples=50)
    assert {key[1] for key in made.unequal} == {"joint"}
    assert all("has 2 with a value, but 4 on the other side" in why for why in made.unequal.values())
    vendi = frame[frame["scorer"] == "vendi"]
    with pytest.raises(
        ValueError, match=r"^nothing of miniature can be compared: vendi is compared at equal"
    ):
        compare.compare(unequal(vendi, "base")[lambda rows: rows["prompt_set"] == SCENES], resamples=50)


def test_a_set_that_the_base_lacks_is_left_out_but_not_an_image(frame: pd.DataFrame) -> None:
    of_base = frame["experiment"] == "base"
    lost = of_base & (frame["prompt_set"] == SCENES) & (frame["scorer"] == "objects")
    made = compare.compare(frame[~lost], resamples=50)
    assert {(e.metric, e.prompt_set) for e in made.estimates if e.metric == "detection"} == {
        ("detection", PREFERENCE)
    }
    assert {key[2:] for key in made.left_out} == {(SCENES, "objects")}
    with pytest.raises(ValueError, match=r"base lacks 1 of the \d+ objects scores"):
        compare.compare(frame.drop(frame[lost].index[:1]), resamples=10)


def test_a_run_keeps_what_it_was_trained_on_where_the_base_was_not_scored_by_it(frame: pd.DataFrame) -> None:
    """Joint stays a run on several rewards, whose share of a specialist's gain is told, when only one of them can be compared."""
    reward = frame["scorer"].isin(["imagereward", "skin_tone"])
    made = compare.compare(frame[~(reward & (frame["experiment"] == "base"))], resamples=50)
    assert {(r.experiment, r.metric) for r in made.retentions} >= {("joint", "detection")}


def test_votes_on_two_runs_are_left_out_beside_the_base(frame: pd.DataFrame) -> None:
    voted = frame[(frame["scorer"] == "clip_judge") & frame["experiment"].isin(["joint", "imagereward"])]
    voted = voted.assign(scorer="human_votes")
    both = pd.concat([frame, voted], ignore_index=True)
    made = compare.compare(both, resamples=20)
    (note,) = unscored.left_out_notes(made)
    assert note == (
        "LEFT OUT: miniature: people voted on imagereward and joint and not on base; `--against imagereward` or `--against joint` compares these votes."
    )
    spaced = both.assign(experiment=both["experiment"].replace("joint", "my joint"))
    (note,) = unscored.left_out_notes(compare.compare(spaced, resamples=20))
    assert "`--against imagereward` or `--against 'my joint'` compares" in note
    base = frame[frame["experiment"] == "base"]
    with pytest.raises(
        ValueError,
        match="people voted on imagereward and joint and not on base, so give --against imagereward or joint",
    ):
        compare.compare(pd.concat([base, voted], ignore_index=True), resamples=10)


def test_a_set_that_a_run_was_not_scored_on_is_told(frame: pd.DataFrame) -> None:
    lost = (frame["experiment"] == "fairness") & (frame["prompt_set"] == SCENES)
    notes = tables.count_notes(compare.compare(frame[~lost], resamples=50))
    assert any("not scored for fairness" in note and f"detection score on {SCENES}" in note for note in notes)


def test_unusable_images_and_unpaired_prompts_are_counted(frame: pd.DataFrame) -> None:
    blank = (
        (frame["experiment"] == "fairness")
        & (frame["prompt_id"] == "p001")
        & (frame["scorer"] == "skin_tone")
    )
    changed = frame.assign(value=frame["value"].where(~blank))
    cell = only(
        compare.compare(changed, resamples=50), experiment="fairness", metric="parity", prompt_set=PORTRAITS
    )
    assert cell.unpaired == 2  # one prompt, two seeds
    assert cell.missing >= 8
    notes = "\n".join(tables.count_notes(compare.compare(changed, resamples=50)))
    assert "fairness, parity gap (Eq 12) on miniature-portraits-unseen: 2 of 20 prompts" in notes
    assert "not applicable (NaN), skin_tone on miniature-portraits-unseen" in notes


def test_a_share_of_one_everywhere_has_wilsons_interval() -> None:
    frame = study(prompts=20, images=2, experiments=("base", "compositionality"))
    sure = (frame["experiment"] == "compositionality") & (frame["scorer"] == "fully_right")
    made = compare.compare(frame.assign(value=frame["value"].where(~sure, 1.0)), resamples=100)
    cell = only(made, experiment="compositionality", metric="fully_right", prompt_set=SCENES)
    assert cell.value == stats.wilson(20, 20)
    assert cell.value.low < 0.9


def test_several_models_are_compared_each_with_its_own_base(frame: pd.DataFrame) -> None:
    other = frame[frame["experiment"].isin(["base", "joint"])].assign(model="sd15")
    made = compare.compare(pd.concat([frame, other], ignore_index=True), resamples=50)
    assert made.models() == ["miniature", "sd15"]
    first, second = made.of(experiment="joint", metric="detection", prompt_set=SCENES)
    assert first.difference == second.difference


def test_a_column_more_changes_no_other_number(frame: pd.DataFrame) -> None:
    fewer = compare.compare(frame[frame["experiment"].isin(["base", "joint"])], resamples=300)
    all_of_them = compare.compare(frame, resamples=300)
    of_joint = {(e.metric, e.prompt_set): e.difference for e in all_of_them.of(experiment="joint")}
    for estimate in fewer.of(experiment="joint"):
        np.testing.assert_array_equal(estimate.difference, of_joint[estimate.metric, estimate.prompt_set])


# ------------------------------------------------------------------------------------------- anybody's checkpoints


def two(seeds_a: tuple[int, ...], seeds_b: tuple[int, ...]) -> pd.DataFrame:
    """Two checkpoints of somebody else's, A and B, without a base."""
    frame = study(prompts=6, images=3, seeds=(0, 1, 2), experiments=("joint", "imagereward"))
    frame = frame[frame["scorer"] != "kid"].assign(model="external", trained_on=0)
    keep = ((frame["experiment"] == "joint") & frame["seed"].isin(seeds_a)) | (
        (frame["experiment"] == "imagereward") & frame["seed"].isin(seeds_b)
    )
    return frame[keep].replace({"experiment": {"joint": "A", "imagereward": "B"}}).reset_index(drop=True)


SEEDS = [((0,), (0,)), ((0, 1, 2), (0,)), ((0, 1, 2), (0, 1, 2))]


@pytest.mark.parametrize(("seeds_a", "seeds_b"), SEEDS)
def test_swapping_the_two_negates_every_difference_to_the_last_bit(
    seeds_a: tuple[int, ...], seeds_b: tuple[int, ...]
) -> None:
    frame = two(seeds_a, seeds_b)
    ours = compare.compare(frame, resamples=400, against="A").of(experiment="B")
    theirs = compare.compare(frame, resamples=400, against="B")
    assert len(ours) > 20
    for e in ours:
        other = only(theirs, experiment="A", metric=e.metric, prompt_set=e.prompt_set)
        assert e.difference.value == -other.difference.value
        assert (e.difference.low, e.difference.high) == (-other.difference.high, -other.difference.low)
        assert (e.p_test, e.test) == (pytest.approx(other.p_test), other.test)
        if metrics.load(e.metric).needs_base:
            assert e.value.value == 1 - other.value.value
            assert e.value[1:] == pytest.approx((1 - other.value.high, 1 - other.value.low), abs=1e-12)
    assert {e.mark for e in ours} & {"better", "worse"}
    assert "not distinguished" in {e.mark for e in ours}


def test_a_win_everywhere_is_a_loss_everywhere_from_the_other_side() -> None:
    frame = two((0,), (0,))
    sure = frame["value"].where(frame["scorer"] != "clip_judge", (frame["experiment"] == "A") * 5.0)
    made = [compare.compare(frame.assign(value=sure), 50, against=name) for name in "AB"]
    lost = only(made[0], experiment="B", metric="win_rate_judge", prompt_set=SCENES)
    won = only(made[1], experiment="A", metric="win_rate_judge", prompt_set=SCENES)
    assert (lost.value.value, won.value.value) == (0, 1)
    assert lost.difference[1:] == (-won.difference.high, -won.difference.low)
    assert won.value.low == pytest.approx(stats.wilson(6, 6).low)


def test_a_against_a_is_half_and_all_ties() -> None:
    frame = two((0, 1, 2), ())
    made = compare.compare(pd.concat([frame, frame.assign(experiment="A2")]), resamples=200, against="A")
    for e in made.of(experiment="A2"):
        assert (e.difference, e.mark, e.p_test, e.p_holm) == ((0, 0, 0), "not distinguished", 1, 1)
    rates = [e.value.value for e in made.of(experiment="A2") if metrics.load(e.metric).needs_base]
    assert len(rates) > 4
    assert set(rates) == {0.5}
    assert {(o.win, o.tie, o.loss, o.half_tie) for o in made.outcomes} == {(0, 1, 0, 0.5)}
    assert not made.panel.flips


def test_without_a_base_the_choices_are_named() -> None:
    with pytest.raises(ValueError, match=r"no base scores for the model external .*: --against A or B"):
        compare.compare(two((0,), (0,)))
    with pytest.raises(
        ValueError, match=r"no scores of C for the model external: --against must be one of A, B"
    ):
        compare.compare(two((0,), (0,)), against="C")


def test_seeds_that_cannot_be_set_beside_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"B has the training seeds 0, 1 but A 0, 1, 2: .*same seeds"):
        compare.compare(two((0, 1, 2), (0, 1)), against="A")


def test_a_run_may_be_what_all_is_compared_with(frame: pd.DataFrame, comparison: Comparison) -> None:
    made = compare.compare(frame[frame["scorer"] != "kid"], resamples=200, against="joint")
    ours = only(made, experiment="base", metric="detection", prompt_set=SCENES)
    theirs = only(comparison, experiment="joint", metric="detection", prompt_set=SCENES)
    assert ours.difference.value == -theirs.difference.value
    assert (ours.seeds, ours.mark) == (1, "worse")


def test_drift_from_the_base_is_not_compared_with_something_that_has_none() -> None:
    frame = study(prompts=4, images=2)
    lost = (frame["experiment"] == "joint") & (frame["scorer"] == "kid")
    made = compare.compare(frame[~lost], resamples=50, against="joint")
    assert not [e for e in made.estimates if e.metric == "drift"]
    assert {key[3] for key in made.left_out} == {"kid"}
    (note,) = unscored.left_out_notes(made)
    assert note.startswith("LEFT OUT: miniature: joint has no scores of kid on ")
    with_it = compare.compare(frame, resamples=50, against="joint")
    cell = only(with_it, experiment="imagereward", metric="drift", prompt_set=SCENES)
    assert cell.difference.value == pytest.approx(
        cell.value.value - only(with_it, experiment="joint", metric="drift", prompt_set=SCENES).value.value
    )


# ---------------------------------------------------------------------------------------------------------- tests


def test_each_kind_of_score_has_its_test(frame: pd.DataFrame, comparison: Comparison) -> None:
    def cell(metric: str, prompt_set: str) -> compare.Estimate:
        return only(comparison, experiment="joint", metric=metric, prompt_set=prompt_set)

    mean = frame.groupby(["experiment", "scorer", "prompt_set", "prompt_id"])["value"].mean()

    def gain(scorer: str, prompt_set: str) -> pd.Series[float]:
        return mean["joint", scorer, prompt_set] - mean["base", scorer, prompt_set]

    passed = gain("fully_right", SCENES).round(9)
    won, lost = int((passed > 0).sum()), int((passed < 0).sum())
    assert (cell("fully_right", SCENES).test, cell("fully_right", SCENES).p_test) == (
        "McNemar",
        scipy.stats.binomtest(won, won + lost).pvalue,
    )
    gold = cell("gold_quality", SCENES)
    assert gold.test == "Wilcoxon"
    assert gold.p_test == pytest.approx(scipy.stats.wilcoxon(gain("gold_utility", SCENES)).pvalue)
    (outcome,) = [
        o
        for o in comparison.outcomes
        if (o.experiment, o.metric, o.prompt_set) == ("joint", "win_rate_gold", SCENES)
    ]
    assert (cell("win_rate_gold", SCENES).test, cell("win_rate_gold", SCENES).p_test) == (
        "sign",
        outcome.sign_p,
    )
    assert cell("parity_pooled", PORTRAITS).test == "bootstrap"
    assert cell("drift", SCENES).test == "bootstrap"


def test_mcnemar_with_one_image_a_prompt_is_the_published_vector() -> None:
    """10 prompts only the run passes, 2 only the base: .0385742."""
    run, base = [1] * 10 + [0] * 2 + [1] * 8, [0] * 10 + [1] * 2 + [1] * 8
    records = [
        rows.Row(name, "m", 0, "s:1", "set", "d", f"p{i}", 0, "", "fully_right", "v", 0, value)
        for name, values in (("base", base), ("run", run))
        for i, value in enumerate(values)
    ]
    cell = only(compare.compare(rows.table(records), resamples=50), experiment="run")
    assert (cell.test, cell.p_test) == ("McNemar", pytest.approx(0.0385742, abs=1e-7))


def test_holm_is_over_all_differences_of_the_table(comparison: Comparison) -> None:
    tested = [e for e in comparison.estimates if not math.isnan(e.p_test)]
    assert (
        comparison.family == len(tested) == len([e for e in comparison.estimates if e.experiment != "base"])
    )
    assert [e.p_holm for e in tested] == stats.holm([e.p_test for e in tested])
    weakest = max(tested, key=lambda e: e.p_test)
    assert not weakest.survives


def one_prompt_value(metric: str, values: dict[str, np.ndarray[Any, Any]]) -> pd.DataFrame:
    """Rows of one image a prompt of each experiment."""
    return rows.table(
        rows.Row(name, "m", 0, "s:1", "set", "d", f"p{i}", 0, "", metric, "v", 0, float(value))
        for name, values_P in values.items()
        for i, value in enumerate(values_P)
    )


@pytest.mark.parametrize("prompts", [3, 5, 12])
def test_p_of_the_resamples_is_that_of_the_interval(prompts: int) -> None:
    """At most .05 exactly where the interval leaves out 0."""
    seen = set()
    for study_seed in range(12):
        generator = np.random.default_rng([prompts, study_seed])
        tones = generator.choice(4, size=(2, prompts), p=[0.85, 0.05, 0.05, 0.05])
        drift = generator.normal(0.08, 0.1, prompts) ** (1 if study_seed % 2 else 2)
        frame = pd.concat(
            [
                one_prompt_value("skin_tone", {"base": tones[0], "run": tones[1]}),
                one_prompt_value("kid", {"run": drift}),
            ],
            ignore_index=True,
        )
        for e in compare.compare(frame, resamples=2001).estimates:
            if e.test == "bootstrap" and e.difference.low != 0 != e.difference.high:
                apart = not e.difference.low <= 0 <= e.difference.high
                assert (e.p_test <= 0.05) == apart
                seen.add(apart)
    assert seen == {True, False}


@pytest.mark.parametrize("prompts", [2, 4, 5, 8, 40])
def test_an_interval_holds_its_value_also_where_prompts_are_each_of_one_tone(prompts: int) -> None:
    """Together they balance, and in no resample: the gap of all prompts is smaller than that of nearly every resample."""
    balanced = np.arange(prompts) % 4
    leaning = np.where(np.arange(prompts) % 3 > 0, 0, balanced)
    frame = one_prompt_value("skin_tone", {"base": balanced, "run": leaning})
    made = compare.compare(frame, resamples=1000)
    for e in made.of(metric="parity_pooled"):
        for found in (e.value, e.difference):
            assert math.isnan(found.low) or found.low <= found.value <= found.high
        if not math.isnan(e.difference.low):
            apart = not e.difference.low <= 0 <= e.difference.high
            assert (e.p_test <= 0.05) == (e.p <= 0.05) == apart
    base = only(made, experiment="base", metric="parity_pooled")
    if prompts == 2:  # each resample is one of them, and both have the same gap
        assert math.isnan(base.value.low)
    else:
        assert base.value.low < base.value.high


def test_what_nothing_is_told_of_has_no_interval_no_mark_and_no_test() -> None:
    """Two prompts, each of one tone in the run and both of one in the base: the difference of every resample is 0, and theirs is not."""
    made = compare.compare(
        one_prompt_value("skin_tone", {"base": np.zeros(2), "run": np.arange(2)}), resamples=100
    )
    cell = only(made, experiment="run", metric="parity_pooled")
    assert cell.difference.value < -0.1
    assert all(map(math.isnan, (cell.difference.low, cell.p, cell.p_test, cell.p_holm)))
    assert cell.mark == ""
    text = tables.markdown(made, "x")
    assert (
        "no interval and no mark on set, since all resamples of the prompts say the same: run, pooled" in text
    )


def test_a_value_and_resamples_on_two_sides_of_0_are_no_difference() -> None:
    draws_N = np.linspace(0.1, 0.3, 1000)
    found = stats.Resampled(-0.05, draws_N, np.linspace(-0.1, 0.1, 40)[None], None)
    value, low, high = stats.interval(found)
    assert low == value < 0 < high
    assert found.p == stats.resampled_p(found) == 1.0
    other = stats.Resampled(0.05, draws_N, found.influence_RP, None)
    assert stats.interval(other).low == 0.05
    assert other.p == stats.p_value(other.tailed_N) < 0.05


@pytest.mark.parametrize(
    ("scorer", "metric", "base", "run", "most"),
    [
        ("skin_tone", "parity_pooled", [0, 0, 0, 0, 1], [0, 1, 2, 0, 3], math.sqrt(3 / 4)),
        ("objects", "detection", [1, 1, 1, 1, 0.5], [0, 0, 0, 0, 0.5], 1.0),
        ("objects", "detection", [0, 0, 0, 0, 0.5], [1, 1, 1, 0.2, 1], 1.0),
        ("fully_right", "fully_right", [0, 0, 0, 0, 1], [1, 1, 1, 1, 0], 1.0),
    ],
)
def test_no_interval_leaves_what_its_metric_can_be(
    scorer: str, metric: str, base: list[float], run: list[float], most: float
) -> None:
    made = compare.compare(
        one_prompt_value(scorer, {"base": np.array(base), "run": np.array(run)}), resamples=1000
    )
    for e in made.of(metric=metric):
        assert 0 <= e.value.low <= e.value.value <= e.value.high <= most
        if e.experiment == "run":
            assert -most <= e.difference.low <= e.difference.value <= e.difference.high <= most
            assert math.isnan(e.ratio.low) or e.ratio.low >= 0


@pytest.mark.parametrize("images", [2, 3, 4, 5, 8, 16])
def test_bounds_of_a_gap_are_the_least_and_the_most_that_counts_can_give(images: int) -> None:
    counts = pd.DataFrame(
        [c for c in itertools.product(range(images + 1), repeat=4) if 2 <= sum(c) <= images]
    )
    for found, bounds in (
        (_parity.excess(counts), _bounds.of_excess(images)),
        (_parity.unbiased_squared(counts.to_numpy()), _bounds.of_unbiased(images)),
        (_parity.parity(counts.to_numpy()), _bounds.of_gap(images)),
    ):
        assert bounds[0] - 1e-12 <= found.min()
        assert found.max() <= bounds[1] + 1e-12
    assert _parity.excess(counts).max() >= _bounds.of_excess(images)[1] - 1e-12


def test_scores_in_per_cent_are_no_share(frame: pd.DataFrame) -> None:
    of = (frame["scorer"] == "fully_right") & (frame["experiment"] == "joint")
    percent = frame.assign(value=frame["value"].where(~of, 100 * frame["value"]), file="theirs.csv")
    with pytest.raises(
        ValueError, match=r"fully_right must be from 0 to 1, as .* is a share, not 100 \(joint, .*theirs\.csv"
    ):
        compare.compare(percent, resamples=10)


def test_beyond_the_last_resample_p_is_students_tail() -> None:
    values = np.random.default_rng(0).normal(4, 1, 12)
    sample = stats.Sample(stats.weights(12, 2000, 0, "p"), None)
    found = stats.resampled(values[None, :, None], lambda mean_S: mean_S[..., 0], np.ones((2000, 1)), sample)
    p = stats.resampled_p(found)
    assert p < 1 / 2001 == stats.p_value(found.tailed_N)
    expected = 2 * scipy.stats.t.sf(found.value / found.draws_N.std(), found.known.prompt_degrees)
    assert p == pytest.approx(expected, rel=0.02)
    near = found.less_constant(found.value - found.known.standard_error)
    assert stats.resampled_p(near) == stats.p_value(near.tailed_N)


def test_the_unit_of_a_change_is_the_bases_deviation_over_prompts(
    frame: pd.DataFrame, comparison: Comparison
) -> None:
    base = frame[
        (frame["experiment"] == "base")
        & (frame["scorer"] == "gold_utility")
        & (frame["prompt_set"] == SCENES)
    ]
    cell = only(comparison, experiment="joint", metric="gold_quality", prompt_set=SCENES)
    assert cell.base_sd == pytest.approx(base.groupby("prompt_id")["value"].mean().std())
    assert math.isnan(only(comparison, experiment="joint", metric="fully_right", prompt_set=SCENES).base_sd)
    assert math.isnan(only(comparison, experiment="joint", metric="drift", prompt_set=SCENES).base_sd)


def test_a_base_whose_prompts_are_all_alike_gives_changes_no_unit(frame: pd.DataFrame) -> None:
    """As a base that draws every occupation in one tone, its gaps alike but for rounding: a change was 5e15 of its deviations."""
    base = (frame["experiment"] == "base") & (frame["scorer"] == "gold_utility")
    alike = frame["value"].mask(base, frame["prompt_id"].map({"p000": 0.1 + 0.2}).fillna(0.3))
    assert alike[base].nunique() == 2
    made = compare.compare(frame.assign(value=alike), resamples=20)
    cell = only(made, experiment="joint", metric="gold_quality", prompt_set=SCENES)
    assert math.isnan(cell.base_sd)
    assert tables.change(cell) == (cell.difference.value, "raw")


# ---------------------------------------------------------------------------------------------------------- strata

RIGHT = {"base": (0.95, 0.5, 0.4, 0.8, 0.1, 0.15), "run": (0.97, 0.65, 0.5, 0.85, 0.2, 0.25)}
"""Of GenEval's tasks, in order."""


def of_geneval(suite: str = "geneval:012345", seeds: int = 1, images: int = 2) -> pd.DataFrame:
    """Two checkpoints on every prompt of GenEval, with the same noise."""
    task = np.repeat(np.arange(6), SIZES)
    parts = []
    for place, (experiment, right) in enumerate(RIGHT.items()):
        for seed in range(seeds if place else 1):
            hard = np.random.default_rng(0).uniform(size=(553, images))
            own = np.random.default_rng([place, seed]).uniform(-0.15, 0.15, size=(553, 1))
            values = (hard + own < np.array(right)[task][:, None]).astype(float)
            frame = pd.DataFrame({"value": values.ravel(), "image": np.tile(np.arange(images), 553)})
            ids = np.repeat([f"{number:05d}" for number in range(553)], images)
            parts += [
                frame.assign(experiment=experiment, seed=seed, prompt_id=ids, scorer=scorer)
                for scorer in ("geneval", "objects")
            ]
    rest = {
        "model": "m",
        "suite": suite,
        "prompt_set": "geneval",
        "prompts": "d",
        "picture": "",
        "version": "v",
    }
    return pd.concat(parts, ignore_index=True).assign(**rest, trained_on=0)[list(rows.COLUMNS)]


@pytest.fixture(scope="module")
def six_tasks() -> Comparison:
    return compare.compare(of_geneval(seeds=2), resamples=1000)


def test_genevals_tasks_are_rows_and_its_number_is_their_plain_mean(six_tasks: Comparison) -> None:
    mean = (
        of_geneval(seeds=2).query("scorer == 'geneval'").groupby(["experiment", "prompt_id"])["value"].mean()
    )
    start = np.cumsum([0, *SIZES])
    for experiment in RIGHT:
        shares = [float(mean[experiment].iloc[a:b].mean()) for a, b in pairwise(start)]
        cells = [only(six_tasks, experiment=experiment, metric=f"geneval_{task}") for task in TASKS]
        assert [e.value.value for e in cells] == pytest.approx(shares)
        assert [(e.prompts, e.images, e.unpaired, e.missing) for e in cells] == [
            (n, 2 * n, 0, 0) for n in SIZES
        ]
        overall = only(six_tasks, experiment=experiment, metric="geneval")
        assert overall.value.value == pytest.approx(np.mean(shares))
        assert abs(overall.value.value - mean[experiment].mean()) > 0.005  # the mean over prompts is another
    assert {e.test for e in six_tasks.of(experiment="run") if e.metric.startswith("geneval_")} == {"McNemar"}
    assert six_tasks.strata == {"geneval": TASKS}
    _, *lines = tables.glance(six_tasks, "m")
    assert [line[0] for line in lines] == [
        tables.heading(metrics.load(name)) for name in ("geneval", *(f"geneval_{task}" for task in TASKS))
    ]
    assert tables.machine(six_tasks, "x")["strata"] == {"geneval": list(TASKS)}
    notes = tables.method_notes(six_tasks)
    assert any(n.startswith("geneval is resampled inside its 6 strata") and "color_attr" in n for n in notes)


def test_a_stratified_cell_is_the_explicit_bootstrap_inside_the_tasks(six_tasks: Comparison) -> None:
    """Difference of the mean over tasks: every task resampled by itself, and the variance is the sum of theirs over 36."""
    frame = of_geneval(seeds=2).query("scorer == 'geneval'")
    mean = frame.groupby(["experiment", "seed", "prompt_id"])["value"].mean()
    gain_RP = mean["run"].unstack().to_numpy() - mean["base"].unstack().to_numpy()
    weight_NR = stats.weights(2, 1000, 0, "seeds of run")
    draws, influence = np.zeros(1000), np.empty_like(gain_RP)
    for task, a, b in zip(TASKS, *zip(*pairwise(np.cumsum([0, *SIZES])), strict=True), strict=True):
        weight_NP = stats.weights(b - a, 1000, 0, "prompts of geneval", [task] * (b - a))
        draws += np.einsum("nr,np,rp->n", weight_NR, weight_NP, gain_RP[:, a:b]) / 6
        influence[:, a:b] = (gain_RP[:, a:b] - gain_RP[:, a:b].mean()) / (b - a) / 6
    tailed = stats.with_tails(draws.mean(), draws, stats.precision(influence, np.repeat(TASKS, SIZES)))
    cell = only(six_tasks, experiment="run", metric="geneval")
    np.testing.assert_allclose(cell.difference[1:], np.quantile(tailed, [0.025, 0.975]), atol=2e-4)
    np.testing.assert_allclose(cell.difference.value, draws.mean(), atol=2e-3)


def test_strata_take_what_tasks_differ_by_out_of_a_mean_over_prompts(six_tasks: Comparison) -> None:
    """And leave every value where it is; of a suite that is not known here, a set is one."""
    whole = compare.compare(of_geneval("somebodys:012345", seeds=2), resamples=1000)
    assert whole.strata == {}
    for e in six_tasks.estimates:
        other = only(whole, experiment=e.experiment, metric=e.metric)
        assert e.value.value == other.value.value
        assert e.difference.value == other.difference.value or e.experiment == "base"
        if e.metric == "detection":
            assert np.ptp(e.value[1:]) < 0.9 * np.ptp(other.value[1:])
    assert not any("resampled inside" in note for note in tables.method_notes(whole))


def test_swapping_two_checkpoints_negates_every_stratified_difference() -> None:
    frame = of_geneval().replace({"experiment": {"base": "A", "run": "B"}})
    ours = compare.compare(frame, resamples=200, against="A").of(experiment="B")
    theirs = compare.compare(frame, resamples=200, against="B")
    assert len(ours) == 9  # the mean over tasks, six tasks, prompts, objects
    for e in ours:
        other = only(theirs, experiment="A", metric=e.metric).difference
        assert (e.difference.value, *e.difference[1:]) == (-other.value, -other.high, -other.low)


def test_of_a_task_without_its_images_only_the_others_are_told(six_tasks: Comparison) -> None:
    """And an image that was not judged is counted once, of all that there are."""
    frame = of_geneval()
    lost = frame["prompt_id"].eq("00090") & frame["scorer"].eq("geneval") & frame["experiment"].eq("run")
    some = frame[frame["prompt_id"] < "00350"].assign(value=frame["value"].where(~lost))
    made = compare.compare(some, resamples=50)
    told = {e.metric for e in made.of(experiment="run")}
    assert told & {f"geneval_{task}" for task in TASKS} == {f"geneval_{task}" for task in TASKS[:4]}
    assert "geneval" not in {e.metric for e in made.estimates if not math.isnan(e.value.value)}
    notes = tables.count_notes(made)
    assert "m: not applicable (NaN), geneval on geneval: run 2 of 700." in notes


def test_strata_that_cannot_be_had_are_told_of_and_the_set_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    frame = study(prompts=4, images=2, seeds=(0,)).replace({PREFERENCE: "parti"}).assign(suite="drift:012345")
    suites._tags.cache_clear()
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(tmp_path))
    made = compare.compare(frame[frame["prompt_set"] == "parti"], resamples=50)
    assert made.strata == {}
    (remark,) = [remark for remark in made.remarks if "resampled as a whole" in remark]
    assert remark.startswith("parti is resampled as a whole, not inside its strata: ")
    assert "PartiPrompts.tsv" in remark
    assert remark in tables.count_notes(made)


def test_a_suite_names_tags_as_strata(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not (shared / "parti").is_dir():
        pytest.skip(f"PartiPrompts is not in {shared}")
    suites._tags.cache_clear()
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(shared))
    asked = prompts.load("parti")[::20]
    of = {f"p{number:03d}": prompt.id for number, prompt in enumerate(asked)}
    frame = study(prompts=len(asked), images=1, seeds=(0,), experiments=("base", "joint"))
    frame = frame[(frame["prompt_set"] == PREFERENCE) & (frame["scorer"] == "imagereward")]
    frame = frame.assign(prompt_set="parti", suite="paper:012345", prompt_id=frame["prompt_id"].map(of))
    made = compare.compare(frame, resamples=300)
    assert set(made.strata["parti"]) == {prompt.tags[0] for prompt in asked}
    assert "World Knowledge" in made.strata["parti"]
    strange = compare.compare(frame.replace({"prompt_id": {asked[0].id: "strange"}}), resamples=50)
    assert "prompt strange is not in the prompt set parti" in "".join(strange.remarks)
    assert strange.strata == {}


# ---------------------------------------------------------------------------------------------------------- forced


def test_forced_cells_say_in_what_they_differ(frame: pd.DataFrame) -> None:
    other = (frame["experiment"] == "joint") & (frame["scorer"] == "objects")
    changed = frame.assign(version=frame["version"].where(~other, "ffffffff"))
    changed["prompts"] = changed["prompts"].where(
        ~((frame["experiment"] == "fairness") & (frame["prompt_set"] == PORTRAITS)), "eeee"
    )
    made = compare.compare(changed, resamples=50, force=True)
    told = {(e.experiment, e.metric, e.prompt_set): e.conflict for e in made.estimates if e.conflict}
    assert told["joint", "detection", SCENES] == "scorer objects ffffffff in joint, 0a1b2c3d in base"
    assert (
        told["fairness", "unusable", PORTRAITS]
        == f"prompts {PORTRAITS} eeee in fairness, 0123456789ab in base"
    )
    assert {e for e, _, _ in told} == {"joint", "fairness"}
    assert {m for e, m, _ in told if e == "joint"} == {"detection"}
    # with whom: the model has both
    assert made.versions["objects"].startswith("0a1b2c3d (base, ")
    assert made.versions["objects"].endswith(" and ffffffff (joint)")


def test_a_collapse_that_was_found_by_force_says_so(frame: pd.DataFrame) -> None:
    vendi = frame["scorer"] == "vendi"
    gone = vendi & (frame["experiment"] == "joint")
    assert gone.any()
    changed = frame.assign(
        value=frame["value"].mask(gone, 1.0).mask(vendi & ~gone, 3.0),
        version=frame["version"].mask(gone, "ffffffff"),
    )
    made = compare.compare(changed, resamples=50, force=True)
    told = [remark for remark in made.remarks if remark.startswith("COLLAPSE: joint")]
    assert told
    assert all(r.endswith("; ‡ forced: scorer vendi ffffffff in joint, 0a1b2c3d in base") for r in told)
    alike = compare.compare(changed.assign(version="0a1b2c3d"), resamples=50)
    assert not any("‡" in remark for remark in alike.remarks)


def test_ten_thousand_resamples_take_seconds() -> None:
    frame = study(prompts=25, images=8, seeds=(0, 1, 2))
    start = time.process_time()  # not the wall: the machine may be shared
    compare.compare(frame, resamples=10_000)
    assert time.process_time() - start < 30


# ------------------------------------------------------------------------------------------------------ too little

GAPS = ("parity", "parity_excess", "parity_excess_regrouped", "parity_unbiased", "parity_pooled")


def unreadable(frame: pd.DataFrame, experiment: str, kept: int) -> pd.DataFrame:
    """The study with only the first `kept` portraits of every prompt of an experiment readable."""
    lost = (
        (frame["experiment"] == experiment)
        & frame["scorer"].isin(["skin_tone", "monk_tone"])
        & (frame["image"] >= kept)
    )
    return frame.assign(value=frame["value"].where(~lost))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_without_faces_has_no_parity_and_its_share_of_them_is_told(
    frame: pd.DataFrame, kept: int
) -> None:
    made = compare.compare(unreadable(frame, "fairness", kept), resamples=50)
    for e in made.of(experiment="fairness", prompt_set=PORTRAITS):
        if e.metric in GAPS:
            assert math.isnan(e.value.value)
            assert math.isnan(e.difference.value)
            assert (e.mark, e.test) == ("", "")
            assert math.isnan(e.p_test)
    assert only(made, experiment="fairness", metric="unusable").mark == "worse"
    (line,) = [line for line in tables.glance(made, "miniature") if line[0].startswith("parity gap over")]
    assert line[tables.glance(made, "miniature")[0].index("fairness")].startswith("refused")
    (note,) = [n for n in tables.count_notes(made) if "refused for fairness" in n and "skin_tone" in n]
    rate = only(made, experiment="fairness", metric="parity").missing_share
    assert f"{100 * rate:.1f} % of its images have no skin_tone, above 50 %" in note
    assert only(made, experiment="joint", metric="parity_excess").mark == "better"  # as without it
    of_parity = [r for r in made.retentions if r.metric in GAPS]
    assert of_parity
    assert all(math.isnan(part.value) for r in of_parity for part in (r.raw, r.gain))


def test_a_base_without_faces_leaves_no_difference_in_parity(frame: pd.DataFrame) -> None:
    made = compare.compare(unreadable(frame, "base", 1), resamples=50)
    run = only(made, experiment="fairness", metric="parity")
    assert not math.isnan(run.value.value)
    assert math.isnan(run.difference.value)
    assert run.mark == ""
    assert any("refused for base" in n and "every difference" in n for n in tables.count_notes(made))


def test_where_neither_side_has_a_face_the_cells_are_there_and_nothing_is_tested(frame: pd.DataFrame) -> None:
    both = unreadable(unreadable(frame, "base", 0), "fairness", 0)
    made = compare.compare(both, resamples=200)
    cell = only(made, metric="parity_excess", experiment="fairness")
    assert cell.refused
    assert math.isnan(cell.value.value)
    assert math.isnan(cell.p_holm)
    assert only(made, metric="unusable", experiment="fairness").value.value == 1.0
    assert any("not applicable (NaN), skin_tone" in note for note in tables.count_notes(made))


def test_what_is_no_difference_is_in_nobodys_correction(frame: pd.DataFrame) -> None:
    """A scorer that applies to none of a run's pictures leaves the corrected p of all others as they are."""
    gold = frame["scorer"] == "gold_utility"
    rest = compare.compare(frame[~gold], resamples=200)
    nothing = compare.compare(frame.assign(value=frame["value"].where(~gold)), resamples=200)
    of_gold = [e for e in nothing.estimates if metrics.load(e.metric).scorer == "gold_utility"]
    assert of_gold
    assert all(math.isnan(e.p_test) and math.isnan(e.difference.value) for e in of_gold)
    kept = [e for e in nothing.estimates if metrics.load(e.metric).scorer != "gold_utility"]
    assert [e.p_holm for e in kept] == pytest.approx([e.p_holm for e in rest.estimates], nan_ok=True)
    assert not [o for o in nothing.outcomes if o.metric == "win_rate_gold"]
    assert rest.outcomes
    assert not any("base, gold quality" in note for note in tables.count_notes(nothing))


def test_one_prompt_has_no_interval_and_no_mark() -> None:
    made = compare.compare(study(prompts=1, images=6), resamples=50)
    assert {e.mark for e in made.estimates} == {""}
    for e in made.estimates:
        assert math.isnan(e.value.low)
        assert math.isnan(e.difference.low)
        assert math.isnan(e.p)
        assert not e.p_test < 1
    assert all(math.isnan(a.tau.low) and not math.isnan(a.tau.value) for a in made.panel.agreements)
    assert not made.panel.flips
    text = tables.markdown(made, "x")
    assert "nan" not in text
    assert f"no interval and no mark on {SCENES}, since fewer than two prompts" in text


def test_one_prompt_of_many_with_a_pair_is_one_prompt(frame: pd.DataFrame) -> None:
    lost = (
        (frame["experiment"] == "joint")
        & (frame["scorer"] == "gold_utility")
        & (frame["prompt_id"] != "p000")
    )
    made = compare.compare(frame.assign(value=frame["value"].where(~lost)), resamples=50)
    cell = only(made, experiment="joint", metric="gold_quality", prompt_set=SCENES)
    assert cell.difference.value > 0
    assert math.isnan(cell.difference.low)
    assert cell.mark == ""
