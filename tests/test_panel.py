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


def resampler_of(resamples: int) -> stats.Resampler:
    return stats.Resampler(resamples, 0, {})


def sampled(prompts: int, resamples: int) -> stats.Sample:
    return resampler_of(resamples).prompts("s", [str(prompt) for prompt in range(prompts)])


def alike(generator: np.random.Generator, rho: float, *shape: int) -> stats.Array:
    """Two judges whose differences have a correlation of rho, [2, ...]."""
    first, second = generator.normal(size=(2, *shape))
    return np.stack([first, rho * first + np.sqrt(1 - rho**2) * second])


def test_kendall_is_scipys_tau_b_and_its_interval_nearly_the_explicit_bootstrap() -> None:
    """Few levels, so that there are ties; the resamples are repeated pictures. At 60 prompts the two spreads differ by some per cent."""
    generator = np.random.default_rng(0)
    prompts, images, resamples = 60, 3, 400
    prompt_B = np.repeat(np.arange(prompts), images)
    x_JB = generator.integers(0, 5, (3, prompts * images)).astype(float)
    x_JB[1] += x_JB[0]
    sample = sampled(prompts, resamples)
    found = panel.kendall(x_JB[:, None], prompt_B, np.ones((resamples, 1)), sample)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    for (j, k), tau in found.items():
        assert tau.value == pytest.approx(kendalltau(x_JB[j], x_JB[k]).statistic)
        draws = []
        for weight_P in np.rint(sample.weight_NP * (prompts - 1)).astype(int):
            repeated = np.repeat(np.arange(prompts * images), weight_P[prompt_B])
            draws.append(kendalltau(x_JB[j][repeated], x_JB[k][repeated]).statistic)
        low, high = np.quantile(draws, [0.025, 0.975])
        assert tau.high - tau.low == pytest.approx(high - low, rel=0.12)
        assert tau[1:] == pytest.approx((low, high), abs=0.15 * (high - low))


def test_what_a_resample_leaves_out_of_tau_is_of_second_order() -> None:
    """Beside tau-b of weighted pictures, w' C w over the root of the judges' own: halving the distance of weights from 1 quarters the error."""
    generator = np.random.default_rng(2)
    prompts, images = 8, 2
    prompt_B = np.repeat(np.arange(prompts), images)
    x_JB = generator.normal(size=(2, prompts * images))
    sign_JBB = np.sign(x_JB[:, :, None] - x_JB[:, None])
    shares_BJJ = panel._concordances(x_JB)
    values_KPS = np.stack([np.add.reduceat(shares_BJJ[:, a, b], range(0, 16, 2)) for a, b in ((0, 1), (0, 0), (1, 1))], axis=1)[None]  # fmt: skip
    tau = kendalltau(*x_JB).statistic
    step_P = generator.normal(size=prompts)
    errors, changes = [], []
    for size in (0.02, 0.01):
        weight_P = 1 + size * (step_P - step_P.mean())
        w_B = weight_P[prompt_B]
        sums = [w_B @ (sign_JBB[a] * sign_JBB[b]) @ w_B for a, b in ((0, 1), (0, 0), (1, 1))]
        exact = sums[0] / np.sqrt(sums[1] * sums[2])
        mean_S = stats.mean_statistics(values_KPS, np.ones((1, 1)), weight_P[None])[0]
        errors.append(exact - (2 * panel._tau(mean_S) - tau))
        changes.append(exact - tau)
    assert changes[0] / changes[1] == pytest.approx(2, rel=0.05)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.15)])
def test_the_interval_of_tau_covers(seeds: int, of_seeds: float) -> None:
    """Normal differences, within-prompt correlation .4, so that tau is 2 / pi arcsin rho; training seeds whose judges agree more or less than others' are resampled too.

    With prompts alone resampled the second covered 60 %.
    """
    prompts, images, tries, tau = 30, 2, 300, 0.4
    resampler, sample = resampler_of(400), sampled(prompts, 400)
    prompt_B = np.repeat(np.arange(prompts), images)
    covered = 0
    for number in range(tries):
        generator = np.random.default_rng([seeds, number])
        of_seed = np.clip(tau + of_seeds * generator.normal(size=seeds), -0.9, 0.9)
        x_JKPG = np.stack(
            [
                np.sqrt(0.4) * alike(generator, rho, prompts, 1)
                + np.sqrt(0.6) * alike(generator, rho, prompts, images)
                for rho in np.sin(np.pi / 2 * of_seed)
            ],
            axis=1,
        )
        found = panel.kendall(
            x_JKPG.reshape(2, seeds, -1), prompt_B, resampler.seeds("seeds", seeds), sample
        )[0, 1]
        covered += found.low <= tau <= found.high
    assert 0.92 <= covered / tries <= 0.98


def test_agreement_has_the_tables_resamples_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        panel,
        "kendall",
        lambda x_JKB, prompt_B, weight_NK, sample: (
            asked.append((*weight_NK.shape, len(sample.weight_NP))) or {}
        ),
    )
    compare.compare(judged({"base": (0, 0), "run": (1, 1)}, JUDGES[:2], seeds=(0, 1, 2)), resamples=2_500)
    assert asked == [(2_500, 3, 2_500)]


@pytest.mark.parametrize(
    ("pairs", "streams"),
    [
        ([(0, 0), (1, 0)], (("seeds of run", 2), ("seeds of base", 1))),
        ([(0, 0), (1, 1)], (("seeds of base and run", 2),)),
        ([(0, 3), (0, 4), (1, 3), (1, 4)], (("seeds of run", 2), ("seeds of base", 2))),
    ],
)
def test_seeds_of_agreement_are_resampled_as_those_of_a_rate(
    pairs: list[tuple[int, int]], streams: tuple[tuple[str, int], ...]
) -> None:
    assert panel._seeds_of("run", "base", pairs).streams == streams


def test_kendall_is_hpsv2s_inversion_score() -> None:
    """The share of pairs that are not turned round is (1 + tau) / 2 where nothing is tied."""
    if not GOLDEN.is_file():
        pytest.skip("the golden vectors are not beside this checkout")
    for case in json.loads(GOLDEN.read_text())["hpsv2_inversion_score"]:
        ranks_JB = np.array([case["pred_rank"], case["true_rank"]], dtype=np.float64)
        prompt_B = np.zeros(ranks_JB.shape[1], np.int64)
        tau = panel.kendall(ranks_JB[:, None], prompt_B, np.ones((2, 1)), sampled(1, 2))[0, 1].value
        assert (1 + tau) / 2 == pytest.approx(case["score"])


def test_tau_is_taken_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    prompt_B, x_JKB = np.array([0, 0, 1, 1, 1, 2]), generator.normal(size=(2, 2, 6))
    x_JKB[:, 1, 3:] = np.nan  # a seed with no picture of the last prompt
    arguments = (x_JKB, prompt_B, stats.weights(2, 20, 0, "seeds"), sampled(3, 20))
    whole = panel.kendall(*arguments)
    monkeypatch.setattr(panel, "_CHUNK", 4)
    assert panel.kendall(*arguments) == whole
    scored = ~np.isnan(x_JKB[0])
    assert whole[0, 1].value == pytest.approx(kendalltau(x_JKB[0][scored], x_JKB[1][scored]).statistic)


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
