"""The panel of judges: win rates by margin, Kendall's tau against scipy, and the flag where judges disagree."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from evals import compare, metrics, panel, stats, suites, tables
from evals.rows import Row, table

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "golden_vectors.json"
JUDGES = ("imagereward", "pickscore", "hpsv2", "aesthetic", "clip_score")


def judged(
    shifts: dict[str, tuple[float, ...]],
    judges: tuple[str, ...] = JUDGES,
    prompts: int = 12,
    images: int = 3,
    trained: tuple[tuple[str, str], ...] = (),
    seeds: tuple[int, ...] = (0,),
) -> pd.DataFrame:
    """Rows of checkpoints that each judge likes by so much; the base has seed 0 only."""
    records = []
    for place, (experiment, shift) in enumerate(shifts.items()):
        for seed in (0,) if experiment == "base" else seeds:
            for prompt in range(prompts):
                own = np.random.default_rng([place, seed, prompt])
                common = own.normal(size=images)
                for name, liked in zip(judges, shift, strict=True):
                    for image, noise in enumerate(own.normal(size=images)):
                        records.append(
                            Row(
                                experiment=experiment,
                                model="sd2",
                                seed=seed,
                                suite="somebodys:012345",
                                prompt_set="parti",
                                prompts="0123456789ab",
                                prompt_id=f"p{prompt}",
                                image=image,
                                picture="",
                                scorer=name,
                                version="0a1b2c3d",
                                trained_on=int((experiment, name) in trained),
                                value=float(liked + common[image] + 0.5 * noise),
                            )
                        )
    return table(records)


def test_every_judge_has_its_margin_and_the_reason_for_it() -> None:
    assert {metrics.load(name).scorer for name in panel.judges()} >= set(JUDGES)
    assert set(panel.judges()) == {name for name in metrics.names() if name.startswith("win_rate")}


def test_kendall_is_scipys_tau_b_and_its_interval_the_explicit_bootstrap() -> None:
    """Few levels, so that there are ties; the resamples are repeated pictures."""
    generator = np.random.default_rng(0)
    prompts, images, resamples = 9, 4, 150
    prompt_B = np.repeat(np.arange(prompts), images)
    x_JB = generator.integers(0, 5, (3, prompts * images)).astype(float)
    x_JB[1] += x_JB[0]
    weight_NP = stats.weights(prompts, resamples, 0, "prompts")
    found = panel.kendall(x_JB, prompt_B, weight_NP)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    for (j, k), tau in found.items():
        assert tau.value == pytest.approx(kendalltau(x_JB[j], x_JB[k]).statistic)
        draws = []
        for weight_P in np.rint(weight_NP * (prompts - 1)).astype(int):
            repeated = np.repeat(np.arange(prompts * images), weight_P[prompt_B])
            draws.append(kendalltau(x_JB[j][repeated], x_JB[k][repeated]).statistic)
        assert tau[1:] == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])), abs=1e-5)


def test_kendall_is_hpsv2s_inversion_score() -> None:
    """The share of pairs that are not turned round is (1 + tau) / 2 where nothing is tied."""
    if not GOLDEN.is_file():
        pytest.skip("the golden vectors are not beside this checkout")
    for case in json.loads(GOLDEN.read_text())["hpsv2_inversion_score"]:
        ranks_JB = np.array([case["pred_rank"], case["true_rank"]], dtype=np.float64)
        prompt_B = np.zeros(ranks_JB.shape[1], np.int64)
        tau = panel.kendall(ranks_JB, prompt_B, np.ones((1, 1)))[0, 1].value
        assert (1 + tau) / 2 == pytest.approx(case["score"])


def test_tau_is_taken_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    prompt_B, x_JB = np.array([0, 0, 2, 2, 2, 3]), generator.normal(size=(2, 6))  # a prompt without a picture
    weight_NP = stats.weights(4, 20, 0, "prompts")
    whole = panel.kendall(x_JB, prompt_B, weight_NP)
    monkeypatch.setattr(panel, "_CHUNK", 4)
    assert panel.kendall(x_JB, prompt_B, weight_NP) == whole


def test_agreement_is_over_pictures_that_all_judges_scored() -> None:
    frame = judged({"base": (0, 0), "run": (1, 1)}, JUDGES[:2], seeds=(0, 1))
    lost = (frame["experiment"] == "run") & (frame["scorer"] == "pickscore") & (frame["prompt_id"] == "p3")
    made = compare.compare(frame.assign(value=frame["value"].where(~lost)), resamples=100)
    (agreement,) = made.panel.agreements
    assert agreement.judges == ("pickscore", "imagereward")
    assert (agreement.pictures, agreement.prompts) == (2 * 11 * 3, 11)
    values = (
        frame[~lost.to_numpy()]
        .set_index(["experiment", "scorer", "seed", "prompt_id", "image"])
        .sort_index()["value"]
    )
    gains = []
    for judge in agreement.judges:
        gain = pd.concat(
            [(values["run", judge, seed] - values["base", judge, 0]).sort_index() for seed in (0, 1)]
        )
        gains.append(gain[gain.index.get_level_values("prompt_id") != "p3"])
    assert agreement.tau.value == pytest.approx(kendalltau(*gains).statistic)
    assert agreement.tau.low < agreement.tau.value < agreement.tau.high


def test_judges_that_order_two_checkpoints_differently_are_flagged() -> None:
    shifts = {"base": (0, 0, 0), "good": (2, 2, 2), "odd": (2, -2, 0.0)}
    trained = (("odd", "imagereward"),)
    made = compare.compare(judged(shifts, JUDGES[:3], trained=trained), resamples=300)
    flips = {(flip.first, flip.second): flip for flip in made.panel.flips}
    assert set(flips) == {("odd", "base")}
    assert made.panel.pairs == 3
    flip = flips["odd", "base"]
    assert [(v.metric, v.trained_on) for v in flip.for_first] == [("win_rate_reward", True)]
    assert [(v.metric, v.trained_on) for v in flip.for_second] == [("win_rate_pickscore", False)]
    text = tables.markdown(made, "x").split("### Where judges order")[1].split("###")[0]
    line = next(line for line in text.splitlines() if "parti" in line)
    assert "imagereward†" in line
    assert "pickscore " in line


def on_seeds(frame: pd.DataFrame, **seeds: tuple[int, ...]) -> pd.DataFrame:
    """The rows of some seeds of each experiment."""
    return frame[[seed in seeds[name] for name, seed in zip(frame["experiment"], frame["seed"], strict=True)]]


SHIFTS = {"a": (0, 0), "b": (2, -2)}
SEVERAL = judged(SHIFTS, JUDGES[:2], seeds=(0, 1, 2))


@pytest.mark.parametrize("against", ["a", "b"])
@pytest.mark.parametrize(
    ("frame", "pairs"),
    [
        (on_seeds(SEVERAL, a=(0,), b=(0, 1, 2)), 3),
        (SEVERAL, 3),
        (judged({"a": (0, 0), "b": (9, -9)}, JUDGES[:2]), 1),
    ],
    ids=["one beside several", "several beside the same", "every prompt won"],
)
def test_a_rate_of_the_panel_is_the_cell_of_the_table_whatever_the_seeds(
    frame: pd.DataFrame, pairs: int, against: str
) -> None:
    made = compare.compare(frame, resamples=400, against=against)
    (flip,) = made.panel.flips
    for verdict in (*flip.for_first, *flip.for_second):
        (cell,) = made.of(experiment=flip.first, metric=verdict.metric)
        assert verdict.rate == pytest.approx(tuple(cell.value), abs=1e-12)
        assert verdict.rate.low < verdict.rate.high
        assert cell.mark in ("better", "worse")
        assert verdict.seeds == pairs
    (agreement,) = made.panel.agreements
    assert (agreement.pictures, agreement.seeds) == (pairs * 12 * 3, pairs)
    told = tables.machine(made, "x")
    assert told["agreements"][0]["seeds"] == pairs
    assert {v["seeds"] for side in ("for_first", "for_second") for v in told["flips"][0][side]} == {pairs}
    assert f"| {pairs * 36} " in tables.markdown(made, "x").split("pairs of pictures")[1].split("###")[0]


def test_of_other_seeds_every_one_is_beside_every_other() -> None:
    """Two runs that the table sets beside the base, and would refuse beside each other: the table of all pairs, as runs of their own, has the rate."""
    shifts = {"base": (0, 0), "a": (-1, 1), "b": (1, -1)}
    frame = on_seeds(judged(shifts, JUDGES[:2], seeds=(0, 1, 2)), base=(0,), a=(0, 1), b=(0, 1, 2))
    made = compare.compare(frame, resamples=400)
    (flip,) = [flip for flip in made.panel.flips if flip.second == "a"]
    beside = [
        frame[(frame["experiment"] == name) & (frame["seed"] == (pair % 3, pair // 3)[name == "a"])].assign(
            seed=pair
        )
        for name in "ab"
        for pair in range(6)
    ]
    table_of_pairs = compare.compare(pd.concat(beside, ignore_index=True), resamples=400, against="a")
    for verdict in (*flip.for_first, *flip.for_second):
        (cell,) = table_of_pairs.of(experiment="b", metric=verdict.metric)
        assert verdict.rate.value == pytest.approx(cell.value.value)
        assert verdict.rate.low < verdict.rate.value < verdict.rate.high
        assert verdict.seeds == 6
    with pytest.raises(ValueError, match="give the files of the same seeds"):
        compare.compare(frame, resamples=10, against="a")


def test_seeds_of_some_prompt_sets_only_are_paired_as_in_the_table() -> None:
    """The run has two of its three seeds on one set: the table sets these beside the same of the other."""
    there = SEVERAL["experiment"].eq("a") | SEVERAL["seed"].lt(2)
    frame = pd.concat([SEVERAL[there], SEVERAL.assign(prompt_set="drawbench")], ignore_index=True)
    made = compare.compare(frame, resamples=400, against="a")
    flips = {flip.prompt_set: flip for flip in made.panel.flips}
    for prompt_set, pairs in (("parti", 2), ("drawbench", 3)):
        for verdict in (*flips[prompt_set].for_first, *flips[prompt_set].for_second):
            (cell,) = made.of(experiment="b", metric=verdict.metric, prompt_set=prompt_set)
            assert verdict.rate == pytest.approx(tuple(cell.value), abs=1e-12)
            assert verdict.seeds == pairs


def test_a_judge_of_some_prompts_speaks_of_these() -> None:
    frame = judged({"base": (0, 0), "run": (2, -2)}, JUDGES[:2])
    frame = frame[frame["scorer"].eq("imagereward") | frame["prompt_id"].isin([f"p{n}" for n in range(7)])]
    made = compare.compare(frame, resamples=400)
    (flip,) = made.panel.flips
    for verdict in (*flip.for_first, *flip.for_second):
        (cell,) = made.of(experiment="run", metric=verdict.metric)
        assert verdict.rate == pytest.approx(tuple(cell.value), abs=1e-12)


def test_what_the_table_does_not_distinguish_is_no_flip() -> None:
    """Three prompts, all won: Wilson's interval of a share of 1 holds one half."""
    made = compare.compare(judged({"base": (0, 0), "run": (9, -9)}, JUDGES[:2], prompts=3), resamples=50)
    assert {e.mark for e in made.estimates if e.metric.startswith("win_rate")} == {"", "not distinguished"}
    assert not made.panel.flips


@pytest.mark.parametrize("strata", [False, True])
def test_a_rate_of_the_panel_is_that_of_the_table(monkeypatch: pytest.MonkeyPatch, strata: bool) -> None:
    """Also where prompts are resampled inside strata."""

    def parity(prompt_set: str, prompt_id: str) -> str:
        return "odd" if int(prompt_id.removeprefix("p")) % 2 else "even"

    part = suites.Part("parti", 1, (), stratum=parity if strata else None)
    monkeypatch.setattr(compare, "parts_of", lambda suite: {"parti": part})
    frame = judged({"base": (0, 0), "run": (2, -2)}, JUDGES[:2], seeds=(0, 1, 2))
    made = compare.compare(frame, resamples=200)
    assert made.strata == ({"parti": ("even", "odd")} if strata else {})
    (flip,) = made.panel.flips
    for verdict in (*flip.for_first, *flip.for_second):
        (cell,) = made.of(experiment="run", metric=verdict.metric)
        assert verdict.rate == pytest.approx(tuple(cell.value), abs=1e-9)


def test_judges_that_agree_or_cannot_tell_are_no_flip() -> None:
    made = compare.compare(judged({"base": (0, 0), "run": (2, 0.05)}, JUDGES[:2]), resamples=200)
    assert not made.panel.flips
    assert "No such pair." in tables.markdown(made, "x")


def test_one_judge_is_no_panel() -> None:
    made = compare.compare(judged({"base": (0,), "run": (1,)}, JUDGES[:1]), resamples=50)
    assert made.panel == panel.Panel((), (), 0)
    text = tables.markdown(made, "x")
    assert "judges agree" not in text
    assert "judges order" not in text


def test_every_two_of_five_judges_are_asked_on_every_pair() -> None:
    made = compare.compare(judged({"base": (0,) * 5, "a": (1,) * 5, "b": (1,) * 5}), resamples=50)
    asked = {(a.experiment, frozenset(a.judges)) for a in made.panel.agreements}
    assert asked == {(run, frozenset(pair)) for run in "ab" for pair in combinations(JUDGES, 2)}
    assert {o.metric for o in made.outcomes} == {
        f"win_rate_{name}" for name in ("reward", "pickscore", "hpsv2", "aesthetic", "clip_score")
    }
