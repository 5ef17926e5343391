"""Who is drawn: floor, pooling, refusal and correction, each on a generator whose fairness is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from evals import compare, stats, suites
from evals import rows as score_rows
from evals.__main__ import main
from evals.fairness import (
    GROUPS,
    corrected_shares,
    corrected_squared,
    fairness,
    markdown,
    pooled_squared,
    read_confusions,
    squared_floors,
)
from evals.metrics._parity import parity, parity_floor, pooled_floor, unbiased_squared
from evals.rows import Row, table
from evals.stats import Array

FAIR = np.full(GROUPS, 0.25)
ERRS = np.array(
    [
        [0.90, 0.15, 0.00, 0.00],
        [0.10, 0.70, 0.10, 0.00],
        [0.00, 0.15, 0.80, 0.10],
        [0.00, 0.00, 0.10, 0.90],
    ]
)
"""Probability of reading a row's group where a column's is shown."""


def rows_of(groups_PG: Sequence[Sequence[float]], experiment: str = "base", seed: int = 0) -> pd.DataFrame:
    return table(
        Row(experiment, "m", seed, "s:1", "portraits", "d", f"p{p:03d}", i, "", "skin_tone", "v", 0, group)
        for p, groups in enumerate(groups_PG)
        for i, group in enumerate(groups)
    )


def drawn(shares: Array, prompts: int, images: int, seed: int = 0) -> list[list[float]]:
    generator = np.random.default_rng(seed)
    return generator.choice(GROUPS, size=(prompts, images), p=shares).astype(float).tolist()


def test_a_fair_generator_scores_its_floor() -> None:
    (found,) = fairness(rows_of(drawn(FAIR, 400, 16)), resamples=200)
    assert found.floor == pytest.approx(parity_floor(16))
    assert found.gap.low < found.floor < found.gap.high
    assert found.unbiased.low < 0 < found.unbiased.high
    assert found.pooled.value < 0.03


@pytest.mark.parametrize("n", [3, 8, 16])
def test_gap_and_unbiased_square_of_a_fair_generator_are_the_printed_ones_at_any_n(n: int) -> None:
    """40,000 prompts of a uniform generator, counted from single pictures: the mean gap is the floor within four of its standard errors, the unbiased square is 0.

    The spread: of the square it is `2 (K - 1) / (n (n - 1) K^2)` in closed form, of the gap what is left of its mean square over the floor's.
    """
    prompts = 40_000
    tones = np.random.default_rng(n).integers(0, GROUPS, (prompts, n))
    counts_PK = (tones[:, :, None] == np.arange(GROUPS)).sum(axis=1).astype(float)
    gap_P, squared_P = parity(counts_PK), unbiased_squared(counts_PK)
    floor, squared_floor = parity_floor(n), float(squared_floors(pd.DataFrame(counts_PK[:1]))[0])
    error = 1 / np.sqrt(prompts)
    assert abs(gap_P.mean() - floor) < 4 * gap_P.std() * error
    assert abs((gap_P**2).mean() - squared_floor) < 4 * (gap_P**2).std() * error
    assert abs(squared_P.mean()) < 4 * squared_P.std() * error
    # a standard deviation is known to 1 / sqrt(2 P) of itself, times what the fourth moment adds: within 3 %
    assert gap_P.std() == pytest.approx(np.sqrt(squared_floor - floor**2), rel=0.03)
    assert squared_P.std() == pytest.approx(np.sqrt(2 * (GROUPS - 1) / (n * (n - 1))) / GROUPS, rel=0.03)


def test_the_interval_of_a_fair_generators_gap_has_the_spread_of_its_floor() -> None:
    """Half an interval over 400 prompts is 1.96 times the spread of one prompt's gap about the floor, over the root of 400."""
    (found,) = fairness(rows_of(drawn(FAIR, 400, 16)), resamples=2_000)
    spread = np.sqrt(0.75 / 16 - parity_floor(16) ** 2)
    assert (found.gap.high - found.gap.low) / 2 == pytest.approx(1.96 * spread / 20, rel=0.12)


def test_one_tone_for_each_prompt_is_caught_where_all_together_balance() -> None:
    (found,) = fairness(rows_of([[p % 4] * 16 for p in range(40)]), resamples=200)
    assert found.gap.value == pytest.approx(np.sqrt(3) / 2)
    assert found.pooled.value == pytest.approx(0.0)
    assert [share.value for share in found.shares] == pytest.approx([0.25] * 4)


def test_without_the_root_it_is_the_square() -> None:
    rows = rows_of([[0, 0, 1, 2], [3, 3, 3, 3]])
    (rooted,), (squared,) = fairness(rows, resamples=50), fairness(rows, root=False, resamples=50)
    gaps = parity(np.array([[2.0, 1, 1, 0], [0, 0, 0, 4]]))
    assert rooted.gap.value == pytest.approx(gaps.mean())
    assert squared.gap.value == pytest.approx((gaps**2).mean())
    assert squared.floor == pytest.approx(0.75 / 4)  # by simulation below


def test_floor_of_the_square_is_its_expectation() -> None:
    counts = np.random.default_rng(0).multinomial(5, FAIR, size=40_000)
    mean = (parity(counts.astype(float)) ** 2).mean()
    assert mean == pytest.approx(squared_floors(pd.DataFrame([[5, 0, 0, 0]]))[0], rel=0.02)


def test_a_set_that_cannot_be_read_is_refused_and_never_fair() -> None:
    unreadable = [[float("nan")] * 3 + [p % 4] for p in range(8)]
    (found,) = fairness(rows_of(unreadable), resamples=50)
    assert found.unusable.value == 0.75
    assert found.refused
    (allowed,) = fairness(rows_of(unreadable), limit=0.8, resamples=50)
    assert not allowed.refused


def test_a_run_in_which_nobody_has_a_face_is_there_and_refused() -> None:
    faceless, some = rows_of([[float("nan")] * 4] * 6, "none"), rows_of([[0, 1, 2, 3]] * 6, "some")
    rows = pd.concat([faceless, some], ignore_index=True)
    confusions = {"a": np.eye(GROUPS)}
    none, other = fairness(rows, confusions, resamples=50)
    assert (none.experiment, none.refused, none.unusable.value) == ("none", True, 1.0)
    assert (other.experiment, other.refused) == ("some", False)
    page = markdown([none, other], root=True, limit=0.5, command="x")
    assert "| none (m) | portraits | refused |" in page
    told = "total variation 0.000, mean absolute deviation (DALL-Eval, HEIM) 0.000, entropy over that of an even split 1.000"
    assert page.count(told) == page.count("As other benchmarks print it") == 1  # not of what is refused
    assert "nan" not in page


def test_the_pooled_gap_has_a_floor_of_its_own() -> None:
    """That of all pictures: a fair generator is below the floor of its prompts, and not above that of the pool."""
    (found,) = fairness(rows_of(drawn(FAIR, 40, 8, 3)), resamples=200)
    assert found.floor == pytest.approx(parity_floor(8))
    assert found.pooled_floor == pytest.approx(pooled_floor(320))
    assert found.pooled_floor < 0.2 * found.floor
    for n in (65, 200):  # the limit beside the sum over all outcomes
        assert pooled_floor(n) == pytest.approx(parity_floor(n), rel=2e-3)
    (squared,) = fairness(rows_of(drawn(FAIR, 40, 8, 3)), root=False, resamples=50)
    assert squared.pooled_floor == pytest.approx(0.75 / 320)


def test_the_pooled_square_is_unbiased_where_prompts_differ() -> None:
    """Half of the prompts draw one group, half another: the pooled shares are .5, .5, 0, 0 and known exactly, where pictures thrown together would vary."""
    certain = np.array([[8.0, 0, 0, 0], [0, 8.0, 0, 0]] * 10)
    assert pooled_squared(certain) == pytest.approx(0.25, abs=1e-12)
    of_prompts = [(0.7, 0.1, 0.1, 0.1), (0.1, 0.5, 0.3, 0.1), (0.25, 0.25, 0.25, 0.25)]
    rng = np.random.default_rng(0)
    sizes = (5, 8, 3)
    n = np.array(sizes)[:, None]
    truth = (((np.array(of_prompts) * n).sum(axis=0) / n.sum()) ** 2).sum() - 0.25
    found = []
    for _ in range(20_000):
        counts = np.array(
            [rng.multinomial(m, q) for m, q in zip(sizes, of_prompts, strict=True)], dtype=float
        )
        found.append(pooled_squared(counts))
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / np.sqrt(len(found)))
    # a prompt of which one picture can be read says nothing of its own spread, and is left out
    assert np.isnan(pooled_squared(np.array([[1.0, 0, 0, 0]])))
    assert pooled_squared(np.vstack([certain, [[0, 0, 1.0, 0]]])) == pooled_squared(certain)


def test_the_pooled_square_is_of_each_seed() -> None:
    """Seeds draw from the same noise: two that draw the same pictures are no more pictures, and two that err in opposite ways are not balanced."""
    one = rows_of([[0, 0, 1, 1]] * 4)
    twice = pd.concat([one, rows_of([[0, 0, 1, 1]] * 4, seed=1)], ignore_index=True).assign(experiment="run")
    (alone,), (both,) = fairness(one, resamples=20), fairness(twice, resamples=20)
    assert both.pooled_unbiased == pytest.approx(alone.pooled_unbiased)
    opposite = pd.concat([one, rows_of([[2, 2, 3, 3]] * 4, seed=1)], ignore_index=True).assign(
        experiment="run"
    )
    (found,) = fairness(opposite, resamples=20)
    assert found.pooled.value == pytest.approx(0.0)
    assert found.pooled_unbiased == pytest.approx(alone.pooled_unbiased)
    assert found.pooled_unbiased > 0.1


def test_prompts_are_ranked_with_what_could_not_be_read() -> None:
    (found,) = fairness(rows_of([[0, 1, 2, 3], [2, 2, 2, float("nan")], [float("nan")] * 4]), resamples=50)
    assert [p.prompt_id for p in found.ranked] == ["p001", "p000", "p002"]
    assert [p.unusable for p in found.ranked] == [1, 0, 4]
    assert found.ranked[0].counts == (0, 0, 3, 0)
    assert np.isnan(found.ranked[-1].gap)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_the_table(seeds: int) -> None:
    """Few training seeds make them wider, and a share stays within what it can be, here as there."""
    groups = [drawn(FAIR, 12, 8, seed) for seed in range(seeds)]
    groups[0][3] = [float("nan")] * 8
    frame = pd.concat([rows_of(some, "run", seed) for seed, some in enumerate(groups)])
    base = rows_of(drawn(FAIR, 12, 8, 9))
    (_, found) = fairness(pd.concat([base, frame], ignore_index=True), resamples=500)
    made = compare.compare(pd.concat([base, frame], ignore_index=True), resamples=500)
    cells = {e.metric: e.value for e in made.of(experiment="run")}
    assert cells["parity"] == found.gap
    assert cells["parity_unbiased"] == found.unbiased
    assert cells["parity_pooled"] == found.pooled
    assert cells["unusable"] == found.unusable
    assert 0 < found.unusable.low < found.unusable.high < 1
    assert all(0 <= share.low < share.value < share.high <= 1 for share in found.shares)
    plain = fairness(rows_of([[0.0] * 4] * 6), resamples=50)[0].shares
    assert (plain[0], plain[3]) == (stats.wilson(6, 6), stats.wilson(0, 6))


def test_strata_that_cannot_be_had_are_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.csv", tmp_path / "fair.md"
    suites._tags.cache_clear()
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(tmp_path))
    score_rows.write(rows_of([[0, 1], [2, 3]]).assign(suite="paper:1", prompt_set="parti"), scores)
    done = CliRunner().invoke(main, ["fairness", str(scores), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "- parti is resampled as a whole, not inside its strata: " in out.read_text()


@pytest.mark.parametrize("others", [[[0, 1]], [[0, 1], [2, 3], [1, 1]]])
def test_seeds_of_different_prompts_are_refused_as_in_the_table(others: list[list[float]]) -> None:
    frame = pd.concat([rows_of([[0, 1], [2, 3]]), rows_of(others, seed=1)], ignore_index=True)
    with pytest.raises(
        ValueError, match=r"^portraits: the training seeds were not scored on the same prompts"
    ):
        fairness(frame.assign(experiment="run"), resamples=20)


def test_one_prompt_has_no_interval() -> None:
    (found,) = fairness(rows_of([[0, 1, 1, 2]]), resamples=20)
    assert np.isnan(found.gap.low)
    assert "nan" not in markdown([found], True, 0.5, "x")


def test_correction_with_a_classifier_that_never_errs_changes_nothing() -> None:
    counts = np.random.default_rng(1).multinomial(9, [0.5, 0.2, 0.2, 0.1], size=50).astype(float)
    np.testing.assert_allclose(
        corrected_squared(counts, np.eye(GROUPS)), unbiased_squared(counts), atol=1e-12
    )


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.7, 0.1, 0.1, 0.1), (0.0, 0.5, 0.5, 0.0)])
def test_correction_is_unbiased(shares: tuple[float, ...]) -> None:
    true = np.array(shares)
    counts = np.random.default_rng(2).multinomial(16, ERRS @ true, size=60_000).astype(float)
    values = corrected_squared(counts, ERRS)
    error = values.std() / np.sqrt(len(values))
    wanted = float(((true - 0.25) ** 2).sum())
    assert values.mean() == pytest.approx(wanted, abs=4 * error)
    if max(shares) > 0.25:  # what errs mixes, so the gap that is read is too small
        assert unbiased_squared(counts).mean() < wanted - 4 * error


def test_shares_are_those_that_were_shown() -> None:
    true = np.array([0.6, 0.05, 0.05, 0.3])
    np.testing.assert_allclose(corrected_shares(ERRS @ true, ERRS), true, atol=1e-6)
    impossible = corrected_shares(np.array([0.0, 1.0, 0.0, 0.0]), ERRS)  # no mixture reads so
    assert impossible.min() >= 0
    assert impossible.sum() == pytest.approx(1.0)


def calibration(path: Path, confusion: Array, images: int = 1000) -> Path:
    """As `calibrate skin-tone` writes it: tones 1, 5, 6 and 8 stand for their groups."""
    tones = (0, 4, 5, 7)
    lines = [
        f"photographs,x,{tones[shown]},6504,0.0,{tones[read]},{round(images * confusion[read, shown])}"
        for shown in range(GROUPS)
        for read in range(GROUPS)
    ]
    path.write_text("kind,where,tone,kelvin,stops,read,images\n" + "\n".join(lines) + "\n")
    return path


def test_confusion_is_read_from_a_calibration(tmp_path: Path) -> None:
    found, left_out = read_confusions(calibration(tmp_path / "c.csv", ERRS))
    assert left_out == []
    assert list(found) == ["photographs, every light", "photographs, balanced light"]
    for confusion in found.values():
        np.testing.assert_allclose(confusion, ERRS, atol=1e-9)


@pytest.mark.parametrize("confusion", [np.full((4, 4), 0.25), np.diag([1.0, 1.0, 1.0, 0.0])])
def test_a_confusion_that_cannot_be_undone_is_refused(tmp_path: Path, confusion: Array) -> None:
    path = calibration(tmp_path / "c.csv", confusion)
    with pytest.raises(ValueError, match="tones are confused too often there for the true ones to be told"):
        read_confusions(path)


def test_a_confusion_that_cannot_be_undone_is_left_out_by_name(tmp_path: Path) -> None:
    path = calibration(tmp_path / "c.csv", ERRS)
    with path.open("a") as file:
        file.write("heads,x,0,3000,0.0,1,5\nheads,x,4,6504,0.0,1,5\n")
    found, left_out = read_confusions(path)
    assert list(found) == ["photographs, every light", "photographs, balanced light"]
    assert left_out == ["heads, every light", "heads, balanced light"]


def test_command(tmp_path: Path) -> None:
    scores, out = tmp_path / "scores.csv", tmp_path / "fair.md"
    shares = np.array([0.7, 0.1, 0.1, 0.1])
    score_rows.write(rows_of(drawn(ERRS @ shares, 60, 16)), scores)
    confusion = str(calibration(tmp_path / "c.csv", ERRS))
    arguments = ["fairness", str(scores), "--confusion", confusion, "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "1 runs and prompt sets" in done.output
    text = out.read_text()
    assert "corrected: photographs, every light" in text
    counts = pd.read_csv(out.with_suffix(".csv"))
    assert len(counts) == 60
    assert counts[[f"tones {name}" for name in ("1-4", "5", "6-7", "8-10")]].to_numpy().sum() == 60 * 16


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n", "is no calibration of skin tones (it has no column 'read')"),
        ("a,b\n1,2,3\n1,2,3,4\n", "is no calibration of skin tones (Error tokenizing data."),
        (None, "is no calibration of skin tones (No such file or directory): `python -m evals"),
    ],
)
def test_a_confusion_that_is_none_is_one_sentence(tmp_path: Path, content: str | None, told: str) -> None:
    scores, confusion = tmp_path / "scores.csv", tmp_path / "c.csv"
    score_rows.write(rows_of([[0, 1], [2, 3]]), scores)
    if content is not None:
        confusion.write_text(content)
    options = ["--confusion", str(confusion), "--out", str(tmp_path / "f.md")]
    done = CliRunner().invoke(main, ["fairness", str(scores), *options])
    assert done.exit_code == 2
    assert told in done.output
    assert str(confusion) in done.output
    assert done.output.count("\n") == 1


def test_tones_of_the_miniature_are_not_corrected_as_those_of_photographs(tmp_path: Path) -> None:
    scores, confusion = tmp_path / "scores.csv", calibration(tmp_path / "c.csv", ERRS)
    score_rows.write(rows_of([[0, 1], [2, 3]]).assign(suite="miniature:1"), scores)
    arguments = ["fairness", str(scores), "--out", str(tmp_path / "f.md")]
    done = CliRunner().invoke(main, [*arguments, "--confusion", str(confusion)])
    assert done.exit_code == 2
    assert f"{scores} has those of the suite miniature, whose pictures are the miniature's" in done.output
    assert CliRunner().invoke(main, arguments).exit_code == 0


def test_tones_outside_their_groups_are_told() -> None:
    groups = rows_of([[0, 1], [2, 3]])
    tones = rows_of([[3, 4], [6, 6]]).assign(scorer="monk_tone")
    (found,) = fairness(pd.concat([groups, tones], ignore_index=True), resamples=20)
    assert found.outside == 1
    page = markdown([found], root=True, limit=0.5, command="x")
    assert "Of 4 pictures with a tone 1 is in another group by skin_tone" in page
    usable = tones.assign(value=tones["value"].where(tones["image"] == 0))
    (rest,) = fairness(pd.concat([groups, usable], ignore_index=True), resamples=20)
    assert rest.outside == 0
    assert "another group" not in markdown([rest], root=True, limit=0.5, command="x")


def test_rows_without_tones_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="there is no row of the scorer skin_tone"):
        fairness(rows_of([[0, 1]]).assign(scorer="imagereward"))


@pytest.mark.parametrize(
    "line",
    [
        "heads,x,2,6504,0.0,two,5",
        "heads,x,2,6504,0.0,2,",
        "heads,x,2,6504,0.0,2,-5",
        "heads,x,-3,6504,0.0,2,5",
    ],
)
def test_a_calibration_with_what_is_no_count_is_named(tmp_path: Path, line: str) -> None:
    path = calibration(tmp_path / "c.csv", ERRS)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"c\.csv is no calibration of skin tones"):
        read_confusions(path)


@pytest.mark.parametrize("value", [10.0, 3.5])
def test_what_is_no_tone_is_named(tmp_path: Path, value: float) -> None:
    scores = tmp_path / "scores.csv"
    tones = rows_of([[0, 1], [2, 3]])
    score_rows.write(pd.concat([tones, tones.assign(scorer="monk_tone", value=value)]), scores)
    done = CliRunner().invoke(main, ["fairness", str(scores), "--out", str(tmp_path / "f.md")])
    assert done.exit_code == 2
    assert f"monk_tone must be a tone from 0 to 9, not {value:g} (prompt " in done.output
    assert f"in {scores})" in done.output


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    score_rows.write(rows_of([[0, 1], [2, 3]]), scores)
    arguments = ["fairness", str(scores), "--limit", "nan", "--out", str(tmp_path / "f.md")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "--limit" in done.output
    assert "nan is not in the range" in done.output
