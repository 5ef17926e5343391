"""The table: pairing, marks, daggers, what is refused, what is counted."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evals import compare, rows, stats
from evals.compare import Comparison
from tests.synthetic_rows import SETS, study

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
    """One cell by hand: prompts and seeds looped over with the same weights."""
    chosen = frame[(frame["scorer"] == "gold_utility") & (frame["prompt_set"] == SCENES)]
    per_prompt = chosen.groupby(["experiment", "seed", "prompt_id"])["value"].mean()
    joint, base = per_prompt["joint"].unstack().to_numpy(), per_prompt["base"].unstack().to_numpy()
    cell = only(comparison, experiment="joint", metric="gold_quality", prompt_set=SCENES)
    assert cell.value.value == pytest.approx(joint.mean())
    assert cell.difference.value == pytest.approx(joint.mean() - base.mean())
    seeds = stats.weights(2, 2000, 0, "seeds of joint")
    prompts = stats.weights(10, 2000, 0, f"prompts of {SCENES}")
    draws = np.einsum("nr,np,rp->n", seeds, prompts, joint - base)
    np.testing.assert_allclose(cell.difference[1:], np.quantile(draws, [0.025, 0.975]))
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
    glance = compare.at_a_glance(comparison, "miniature").splitlines()
    gold, judge, reward = glance[2:5]  # side by side: what no run is trained on stands first
    assert gold.startswith("| win rate (gold)")
    assert judge.startswith("| win rate (held-out judge)")
    assert reward.startswith("| win rate (reward model)")
    assert [line.count("†") for line in (gold, judge, reward)] == [0, 0, 2]


def test_headlines_are_the_goals_on_their_home_sets(comparison: Comparison) -> None:
    headlines = {(e.metric, e.prompt_set) for e in comparison.estimates if e.headline}
    assert ("win_rate_gold", PREFERENCE) in headlines
    assert ("win_rate_gold", SCENES) not in headlines
    assert ("parity_excess", PORTRAITS) in headlines
    elsewhere = compare.compare(study(prompts=3, images=2).replace({PREFERENCE: "parti"}), resamples=100)
    assert only(elsewhere, experiment="joint", metric="win_rate_gold", prompt_set="parti").headline


def test_retention_is_the_papers_table_5() -> None:
    """The paper's five rows as one-prompt scores: raw .895 / .805 / .960 and gain .84 / .66 / .77."""
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
        for scorer, value in (("imagereward", reward), ("objects", detection)):
            own = scorer in rewards.get(
                experiment, ("imagereward", "objects") if experiment == "joint" else ()
            )
            records += [
                rows.Row(
                    experiment,
                    "sd2",
                    0,
                    "paper:1",
                    "parti",
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
    found = compare.compare(rows.table(records), resamples=200).retentions
    by_metric = {r.metric: r for r in found}
    assert by_metric["reward_mean"].raw.value == pytest.approx(0.895, abs=1e-3)
    assert by_metric["reward_mean"].gain.value == pytest.approx(0.84, abs=5e-3)
    assert by_metric["detection"].raw.value == pytest.approx(0.805, abs=1e-3)
    assert by_metric["detection"].gain.value == pytest.approx(0.66, abs=5e-3)


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
    with pytest.raises(ValueError, match="base lacks 1 of the 120 imagereward scores that imagereward has"):
        compare.compare(frame.drop(lost[:2]), resamples=10)


def test_a_scorer_that_the_base_lacks_is_refused(frame: pd.DataFrame) -> None:
    lost = (frame["experiment"] == "base") & (frame["scorer"] == "vendi")
    with pytest.raises(ValueError, match="base has no vendi scores but imagereward has"):
        compare.compare(frame[~lost], resamples=10)


def test_a_set_that_a_run_was_not_scored_on_is_told(frame: pd.DataFrame) -> None:
    lost = (frame["experiment"] == "fairness") & (frame["prompt_set"] == SCENES)
    notes = compare.count_notes(compare.compare(frame[~lost], resamples=50))
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
    notes = "\n".join(compare.count_notes(compare.compare(changed, resamples=50)))
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


def test_files_are_written_whole_and_are_the_same_again(frame: pd.DataFrame, tmp_path: Path) -> None:
    rows.write(frame, tmp_path / "all.csv")
    compare.write([tmp_path / "all.csv"], tmp_path / "table.md", "make compare", resamples=200)
    text, numbers = (tmp_path / "table.md").read_text(), (tmp_path / "table.csv").read_text()
    compare.write([tmp_path / "all.csv"], tmp_path / "table.md", "make compare", resamples=200)
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "table.csv").read_text() == numbers
    header = text.split("## miniature")[0]
    for told in ("make compare", "200 resamples", "tie", "imagereward 0.1", "gold_utility 0a1b2c3d"):
        assert told in header
    assert "Holm" in text.split("## Counted")[1]
    tidy = pd.read_csv(tmp_path / "table.csv")
    assert {
        "value_low",
        "difference_high",
        "mark",
        "trained_on",
        "p_holm",
        "seeds",
        "prompts",
        "images",
    } <= set(tidy)
    with pytest.raises(ValueError, match=r"--out must be a \.md file"):
        compare.write([tmp_path / "all.csv"], tmp_path / "table.csv", "x")


def test_numbers_as_printed(comparison: Comparison) -> None:
    text = compare.markdown(comparison, "x")
    assert "nan" not in text.lower().replace("(nan)", "")
    section = text.split("### " + SCENES)[1].split("###")[0]
    widths = {len(line) for line in section.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # padded, so that it reads in a terminal


def test_ten_thousand_resamples_take_seconds() -> None:
    frame = study(prompts=25, images=8, seeds=(0, 1, 2))
    start = time.process_time()  # not the wall: the machine may be shared
    compare.compare(frame, resamples=10_000)
    assert time.process_time() - start < 30
