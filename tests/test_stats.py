"""Statistics against their definitions, published vectors, and simulations of what an interval promises."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evals import stats
from evals.metrics import geneval

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "golden_vectors.json"


def golden(key: str) -> Any:
    if not GOLDEN.exists():
        pytest.skip("the golden vectors are not beside this checkout")
    found = json.loads(GOLDEN.read_text())[key]
    return found["cases"] if isinstance(found, dict) else found


def clustered(generator: np.random.Generator, prompts: int, images: int, icc: float) -> stats.Array:
    """Unit-variance observations [P, G] with the given intra-class correlation and mean 0."""
    between = math.sqrt(icc) * generator.normal(size=(prompts, 1))
    values: stats.Array = between + math.sqrt(1 - icc) * generator.normal(size=(prompts, images))
    return values


def first(mean_S: stats.Array) -> stats.Array:
    return mean_S[..., 0]


def test_wilson_golden() -> None:
    for case in golden("wilson95"):
        np.testing.assert_allclose(stats.wilson(case["k"], case["n"])[1:], case["ci"], atol=1e-9)


def test_wilson_is_scipys() -> None:
    for k, n in [(0, 7), (3, 7), (7, 7), (161, 200)]:
        reference = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(stats.wilson(k, n)[1:], (reference.low, reference.high), atol=1e-12)


def test_holm_golden_and_order() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for case in golden("holm"):
        assert stats.holm(case["p"]) == pytest.approx(case["adjusted"])


def test_mcnemar_golden() -> None:
    assert stats.mcnemar_exact(10, 2) == pytest.approx(0.0385742, abs=1e-7)
    assert stats.mcnemar_exact(0, 0) == 1.0
    for case in golden("mcnemar_exact"):
        assert stats.mcnemar_exact(case["b"], case["c"]) == pytest.approx(case["p"])


def test_weights_sum_to_one_and_belong_to_their_name() -> None:
    first = stats.weights(6, 50, 0, "prompts of a")
    assert first.shape == (50, 6)
    np.testing.assert_allclose(first.sum(axis=1), 1)
    np.testing.assert_array_equal(first, stats.weights(6, 50, 0, "prompts of a"))
    assert not np.array_equal(first, stats.weights(6, 50, 0, "prompts of b"))
    assert not np.array_equal(first, stats.weights(6, 50, 1, "prompts of a"))
    np.testing.assert_array_equal(stats.weights(1, 3, 0, "one run"), np.ones((3, 1)))


@pytest.mark.parametrize("units", [2, 3, 40])
def test_the_resampled_variance_is_the_unbiased_one(units: int) -> None:
    values = np.random.default_rng(1).normal(size=units)
    draws = stats.weights(units, 200_000 // units, 0, "x") @ values
    assert draws.var() == pytest.approx(values.var(ddof=1) / units, rel=0.05)


def test_bootstrap_standard_error_is_the_clustered_one() -> None:
    """`SE^2 = (1/n^2) sum_i sum_j (x_i - m)(x_j - m) [same prompt]` (Miller, arXiv 2411.00640, section 2.2)."""
    values = clustered(np.random.default_rng(2), prompts=60, images=4, icc=0.5)
    draws = stats.weights(60, 20_000, 0, "prompts") @ values.mean(axis=1)
    centred_PG = values - values.mean()
    closed = math.sqrt(np.einsum("pi,pj->", centred_PG, centred_PG)) / values.size
    assert draws.std() == pytest.approx(closed * math.sqrt(60 / 59), rel=0.02)


def test_weighted_means_are_the_explicit_loop_and_nan_has_no_weight() -> None:
    generator = np.random.default_rng(5)
    values_RPS = generator.normal(size=(3, 5, 2))
    values_RPS[1, 2] = np.nan
    weight_NR, weight_NP = stats.weights(3, 7, 0, "r"), stats.weights(5, 7, 0, "p")
    got = stats.mean_statistics(values_RPS, weight_NR, weight_NP)
    for n in range(7):
        total, weight = np.zeros(2), 0.0
        for r in range(3):
            for p in range(5):
                if not np.isnan(values_RPS[r, p]).any():
                    total += weight_NR[n, r] * weight_NP[n, p] * values_RPS[r, p]
                    weight += weight_NR[n, r] * weight_NP[n, p]
        np.testing.assert_allclose(got[n], total / weight)


@pytest.mark.parametrize("runs", [1, 3, 5])
def test_a_share_of_one_everywhere_is_one_to_the_last_bit(runs: int) -> None:
    ones_RPS = np.ones((runs, 30, 3))
    ones_RPS[0, 4] = np.nan
    draws = stats.mean_statistics(ones_RPS, stats.weights(runs, 500, 0, "r"), stats.weights(30, 500, 0, "p"))
    assert (draws == 1).all()


def test_nothing_applicable_is_nan_not_a_number() -> None:
    empty_RPS = np.full((1, 4, 1), np.nan)
    draws = stats.mean_statistics(empty_RPS, np.ones((9, 1)), stats.weights(4, 9, 0, "p"))[:, 0]
    assert np.isnan(draws).all()
    assert math.isnan(stats.percentile_interval(math.nan, draws).low)
    assert math.isnan(stats.p_value(draws))


def test_p_value() -> None:
    assert stats.p_value(np.zeros(100)) == 1.0
    assert stats.p_value(np.ones(99)) == pytest.approx(0.01)
    assert stats.p_value(np.array([-1.0, 1.0, 1.0, 1.0])) == pytest.approx(0.5)
    null = np.random.default_rng(6).normal(size=4000) + 1.96
    assert stats.p_value(null) == pytest.approx(0.05, abs=0.015)


# strata


def test_strata_are_resampled_one_by_one_and_keep_their_share() -> None:
    strata = np.array(["b", "a", "b", "c", "a", "c", "c", "b"])
    weight_NP = stats.weights(8, 400, 0, "p", strata)
    np.testing.assert_allclose(weight_NP.sum(axis=1), 1)
    for name, size in (("a", 2), ("b", 3), ("c", 3)):
        np.testing.assert_allclose(weight_NP[:, strata == name].sum(axis=1), size / 8)
    with pytest.raises(ValueError, match="the stratum 'c' of p has one unit"):
        stats.weights(3, 10, 0, "p", ["a", "a", "c"])


def of_tasks(values_P: stats.Array, task_P: Any) -> stats.Array:
    """Statistics [1, P, 2 x tasks] of which `finish` of the metric `geneval` makes the plain mean over tasks."""
    is_of_PT = (np.asarray(task_P)[:, None] == np.unique(task_P)).astype(np.float64)
    return np.concatenate([is_of_PT, is_of_PT * values_P[:, None]], axis=1)[None]


alike = geneval.finish
"""A mean over six tasks, all of which count alike."""


def test_a_stratum_has_the_same_weights_alone_and_beside_others() -> None:
    strata = np.array(["b", "a", "b", "c", "a", "c", "c", "b"])
    weight_NP = stats.weights(8, 50, 0, "p", strata)
    for name in "abc":
        size = int((strata == name).sum())
        alone = stats.weights(size, 50, 0, "p", [name] * size)
        np.testing.assert_allclose(weight_NP[:, strata == name] * 8 / size, alone, rtol=1e-15)


def test_the_stratified_variance_is_the_survey_formula() -> None:
    """`sum_h (n_h / n)^2 s_h^2 / n_h` for the pooled mean, `1 / H^2 sum_h s_h^2 / n_h` for the mean over the strata's means."""
    generator = np.random.default_rng(7)
    sizes = (4, 10, 25, 5, 6, 30)
    strata = np.repeat([*"abcdef"], sizes)
    deviation, level = np.repeat([1.0, 3.0, 0.5, 1, 2, 1], sizes), np.repeat([0.0, 5.0, -5.0, 2, 1, 3], sizes)
    values = generator.normal(size=80) * deviation + level
    one_NR = np.ones((40_000, 1))
    sample = stats.Sample(stats.weights(80, 40_000, 0, "p", strata), strata)
    variances = [
        values[strata == name].var(ddof=1) / size for name, size in zip("abcdef", sizes, strict=True)
    ]
    pooled = sum((size / 80) ** 2 * v for size, v in zip(sizes, variances, strict=True))
    found = stats.resampled(values[None, :, None], first, one_NR, sample)
    of_all = stats.resampled(of_tasks(values, strata), alike, one_NR, sample)
    for one, expected in ((found, pooled), (of_all, sum(variances) / 36)):
        assert one.draws_N.var() == pytest.approx(expected, rel=0.05)
        assert one.known.standard_error**2 == pytest.approx(expected, rel=1e-9)
    assert of_all.value == pytest.approx(np.mean([values[strata == name].mean() for name in "abcdef"]))
    whole = stats.Sample(stats.weights(80, 40_000, 0, "p"), None)
    assert stats.resampled(values[None, :, None], first, one_NR, whole).known.standard_error ** 2 > 4 * pooled


def test_a_stratum_of_which_nothing_is_applicable_has_no_part() -> None:
    """And one with a single value left adds no error that could be told."""
    values_RPS = np.random.default_rng(7).normal(size=(1, 9, 1))
    strata = [*"aaabbbccc"]
    values_RPS[0, 3:6] = np.nan
    left = [0, 1, 2, 6, 7, 8]
    influence = stats.influence(values_RPS, first, strata)
    np.testing.assert_array_equal(influence[0, 3:6], 0)
    alone = stats.influence(values_RPS[:, left], first, [strata[i] for i in left])
    np.testing.assert_allclose(influence[:, left], alone)
    values_RPS[0, 6:8] = np.nan
    influence = stats.influence(values_RPS, first, strata)
    np.testing.assert_array_equal(influence[0, 3:], 0)
    np.testing.assert_allclose(influence[0, :3], (values_RPS[0, :3, 0] - values_RPS[0, :3].mean()) / 4)
    assert np.isnan(stats.influence(np.full_like(values_RPS, np.nan), first, strata)).all()


def test_merged_strata() -> None:
    assert stats.merged_strata(["a", "b", "a", "b"]) == ["a", "b", "a", "b"]
    assert stats.merged_strata(["a", "x", "a", "y"]) == ["a", "x+y", "a", "x+y"]
    assert stats.merged_strata(["a", "a", "a", "b", "b", "x"]) == ["a", "a", "a", "b+x", "b+x", "b+x"]
    assert set(stats.merged_strata(["x", "y", "z"])) == {"x+y+z"}


# how well a value is known


def test_the_influence_on_a_mean_is_the_distance_from_it() -> None:
    values_RPS = np.random.default_rng(8).normal(size=(3, 7, 1))
    influence = stats.influence(values_RPS, first)
    np.testing.assert_allclose(influence, (values_RPS[:, :, 0] - values_RPS.mean()) / 7, atol=1e-14)
    values_RPS[1, 2] = np.nan
    assert stats.influence(values_RPS, first)[1, 2] == 0


@pytest.mark.parametrize("runs", [1, 4])
def test_the_standard_error_of_a_curved_metric_is_the_bootstraps(runs: int) -> None:
    """A ratio and a root, as Eq 12 has: the jackknife beside an independent way to the same number."""
    generator = np.random.default_rng(9)
    values_RPS = generator.gamma(2.0, size=(1, 200, 2)) + 0.3 * generator.gamma(2.0, size=(runs, 200, 2))

    def finish(mean_S: stats.Array) -> stats.Array:
        return np.sqrt(mean_S[..., 0] / mean_S[..., 1])

    weight_NR, weight_NP = stats.weights(runs, 20_000, 0, "r"), stats.weights(200, 20_000, 0, "p")
    draws = finish(stats.mean_statistics(values_RPS, weight_NR, weight_NP))
    known = stats.precision(stats.influence(values_RPS, finish))
    assert draws.std() == pytest.approx(known.standard_error, rel=0.06)


def test_seeds_and_prompts_share_the_variance_as_in_analysis_of_variance() -> None:
    """`V = (MS_seeds + MS_prompts - MS_both) / (R P)` of the crossed two-way layout."""
    generator = np.random.default_rng(10)
    runs, prompts = 4, 30
    values = generator.normal(size=(runs, 1)) + generator.normal(size=(1, prompts))
    values = values + generator.normal(size=(runs, prompts))
    of_seeds, of_prompts = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_prompts + values.mean()
    seeds = prompts * of_seeds.var(ddof=1)
    both = float(np.sum(rest**2)) / ((runs - 1) * (prompts - 1))
    expected = (seeds - both + runs * of_prompts.var(ddof=1)) / (runs * prompts)
    known = stats.precision(stats.influence(values[:, :, None], first))
    assert known.standard_error**2 == pytest.approx(expected)
    assert known.of_seeds == pytest.approx((seeds - both) / (runs * prompts) / expected)
    assert known.seed_degrees == 3


def test_degrees_of_freedom_fall_where_few_prompts_decide() -> None:
    def degrees(values: stats.Array) -> float:
        return stats.precision(stats.influence(values[None, :, None], first)).prompt_degrees

    assert degrees(np.random.default_rng(11).normal(size=4000)) == pytest.approx(4000, rel=0.1)
    assert degrees(np.arange(50.0)) == 49
    assert degrees((np.arange(50) < 2).astype(float)) < 5
    assert degrees(np.ones(50)) == 49


def test_tails_are_students() -> None:
    draws = scipy_stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    known = stats.Precision(1.0, 0.0, 1, 6)
    got = stats.percentile_interval(0.0, stats.with_tails(0.0, draws, known))
    assert got.high == pytest.approx(scipy_stats.t.ppf(0.975, 6), rel=2e-3)
    assert got.low == pytest.approx(-got.high)
    mixed = stats.Precision(1.0, 0.25, 2, 60).deviations(0.025)
    assert mixed == pytest.approx(0.25 * scipy_stats.t.ppf(0.975, 2) + 0.75 * scipy_stats.t.ppf(0.975, 60))
    shifted = draws + 3
    p = stats.p_value(stats.with_tails(3.0, shifted, known))
    assert p == pytest.approx(2 * scipy_stats.t.sf(3, 6), rel=0.05)


@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_an_interval_of_very_few_prompts_is_students(prompts: int) -> None:
    """Of two prompts there are two resamples; their percentiles missed the mean in one of three samples."""
    values_P = np.random.default_rng(prompts).normal(size=prompts)
    one_NR, weight_NP = np.ones((10_000, 1)), stats.weights(prompts, 10_000, 0, "prompts")
    found = stats.resampled(values_P[None, :, None], first, one_NR, stats.Sample(weight_NP, None))
    ours, test = stats.interval(found), scipy_stats.ttest_1samp(values_P, 0.0)
    theirs = test.confidence_interval()
    assert ours.low == pytest.approx(theirs.low, abs=0.01 * (theirs.high - theirs.low))
    assert ours.high == pytest.approx(theirs.high, abs=0.01 * (theirs.high - theirs.low))
    assert stats.resampled_p(found) == pytest.approx(test.pvalue, rel=0.03)
    # prompts that have nothing are none
    weight_NP = stats.weights(60, 10_000, 0, "prompts")
    padded_P = np.concatenate([values_P, np.full(60 - prompts, np.nan)])
    padded = stats.resampled(padded_P[None, :, None], first, one_NR, stats.Sample(weight_NP, None))
    assert padded.known.prompts == prompts
    weight_NP = stats.weights(prompts, 10_000, 0, "prompts")
    swapped = stats.resampled(-values_P[None, :, None], first, one_NR, stats.Sample(weight_NP, None))
    assert stats.interval(swapped) == (-ours.value, -ours.high, -ours.low)


def test_tails_leave_alone_what_does_not_vary_or_is_not_known() -> None:
    known, unknown = stats.Precision(1.0, 0.0, 1, 6), stats.Precision(math.nan, 0.0, 1, 6)
    draws = np.array([0.0, 1.0, 2.0, math.nan])
    np.testing.assert_array_equal(stats.with_tails(1.0, draws, unknown), draws)
    np.testing.assert_array_equal(stats.with_tails(1.0, np.ones(3), known), np.ones(3))
    assert np.isnan(stats.with_tails(1.0, draws, known)[3])
    assert np.isnan(stats.with_tails(math.nan, np.full(3, math.nan), known)).all()


def test_a_share_interval_is_wilsons_where_images_are_independent() -> None:
    """One image a prompt: SE^2 = share (1 - share) / (n - 1), so the effective number is n - 1."""
    passed = (np.arange(400) < 300).astype(float)
    known = stats.precision(stats.influence(passed[None, :, None], first))
    got = stats.share_interval(0.75, known, 400)
    z = scipy_stats.t.ppf(0.975, 399)
    np.testing.assert_allclose(got[1:], stats.wilson(0.75 * 399, 399, deviations=z)[1:], rtol=1e-9)
    none = stats.precision(stats.influence(np.zeros((1, 60, 1)), first))
    assert stats.share_interval(0.0, none, 60) == stats.wilson(0, 60)
    assert math.isnan(stats.share_interval(math.nan, none, 60).low)


# tests of paired differences


def signs_of(n: int) -> stats.Array:
    return np.array(list(itertools.product((-1, 1), repeat=n)), dtype=np.float64)


def test_wilcoxon_is_the_definition_with_ties_and_scipys_without() -> None:
    differences = np.array([0.3, -0.1, 0.7, 0.2, 0.0, 0.7, -0.2, 0.4, 0.1])
    kept = differences[differences != 0]
    ranks = scipy_stats.rankdata(np.abs(kept))
    sums = np.abs(signs_of(8) @ ranks)
    assert stats.wilcoxon(differences) == np.mean(sums >= abs(np.sum(ranks * np.sign(kept))))
    generator = np.random.default_rng(14)
    for n in (8, 20, 21, 45, 51, 200):
        values = generator.normal(0.3, size=n)
        assert stats.wilcoxon(values) == pytest.approx(scipy_stats.wilcoxon(values).pvalue, rel=1e-9)
    tied = np.round(generator.normal(0.2, size=90), 1)
    reference = scipy_stats.wilcoxon(tied, method="asymptotic").pvalue
    assert stats.wilcoxon(tied) == pytest.approx(reference, rel=1e-9)
    assert stats.wilcoxon(np.zeros(5)) == 1.0


def test_rounding_makes_no_difference_and_no_order() -> None:
    """0.1 + 0.2 less 0.3 is 6e-17 in floating point, and no win."""
    noisy = np.array([0.1 + 0.2 - 0.3, 0.5, 0.7 - 0.2])
    assert stats.wilcoxon(noisy) == stats.wilcoxon(np.array([0.0, 0.5, 0.5])) == 0.5


def test_prompt_differences_are_means_over_seeds() -> None:
    run = np.array([[1.0, 2.0, math.nan], [3.0, math.nan, math.nan]])
    base = np.array([[0.5, 1.0, 1.0], [0.5, 1.0, 1.0]])
    np.testing.assert_allclose(stats.prompt_differences(run, base), [1.5, 1.0])


# agreement


def test_fleiss_golden() -> None:
    for case in golden("fleiss_kappa"):
        assert stats.fleiss_kappa(case["table"]) == pytest.approx(case["kappa"], rel=1e-12)


def test_fleiss_counts_pairs() -> None:
    """Unequal numbers of ratings, by the definition over pairs of ratings; one alone is no pair."""
    ratings = [[0, 0, 1], [1, 1], [0, 1, 1, 1, 2], [2]]
    table = [[item.count(category) for category in range(3)] for item in ratings]
    pairs = [list(itertools.combinations(item, 2)) for item in ratings[:3]]
    agreement = np.mean([np.mean([a == b for a, b in found]) for found in pairs])
    pooled = list(itertools.chain.from_iterable(ratings[:3]))
    chance = sum((pooled.count(category) / len(pooled)) ** 2 for category in range(3))
    assert stats.fleiss_kappa(table) == pytest.approx((agreement - chance) / (1 - chance))
    assert math.isnan(stats.fleiss_kappa([[3, 0], [3, 0]]))
    assert math.isnan(stats.fleiss_kappa([[1, 0]]))
    assert stats.fleiss_kappa([[3, 0], [0, 3]]) == 1.0


def test_cohen_kappa() -> None:
    """By hand: 50 items, 20 and 15 agreed, yes 30 and 25 of 50: (0.7 - 0.5) / 0.5. Of many tables at once, one by one."""
    table = np.array([[20.0, 10.0], [5.0, 15.0]])
    assert float(stats.cohen_kappa(table)) == pytest.approx(0.4)
    assert float(stats.cohen_kappa(table.T / 50)) == pytest.approx(0.4)
    assert float(stats.cohen_kappa([[25, 0], [0, 25]])) == 1.0
    found = stats.cohen_kappa(np.stack([table, np.diag([3.0, 0.0]), np.full((2, 2), 2.0)]))
    np.testing.assert_allclose(found, [0.4, math.nan, 0.0], atol=1e-12)
    three = np.array([[5, 1, 0], [2, 4, 1], [0, 1, 6]])
    chance = sum(three[k].sum() * three[:, k].sum() for k in range(3)) / 400
    assert float(stats.cohen_kappa(three)) == pytest.approx((15 / 20 - chance) / (1 - chance))


# A against A, and A against B the other way round


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("prompts", [7, 30, 101])
def test_a_against_a_is_no_difference_and_swapping_negates_to_the_last_bit(runs: int, prompts: int) -> None:
    generator = np.random.default_rng([15, runs, prompts])
    weight_NR = stats.weights(runs, 1000, 0, "r")
    strata = np.array(["a", "b"])[np.arange(prompts) % 2]
    a_RPS, b_RPS = generator.normal(size=(2, runs, prompts, 1)).round(6)
    a_RPS[0, 1] = b_RPS[0, 1] = math.nan

    def compared(one_RPS: stats.Array, other_RPS: stats.Array, sample: stats.Sample) -> tuple[Any, ...]:
        one, other = (stats.resampled(x, first, weight_NR, sample) for x in (one_RPS, other_RPS))
        each = stats.prompt_differences(one_RPS[:, :, 0], other_RPS[:, :, 0])
        return stats.interval(one.less(other)), (
            stats.p_value(one.less(other).tailed_N),
            stats.wilcoxon(each),
        )

    for given in (None, strata):
        sample = stats.Sample(stats.weights(prompts, 1000, 0, "p", given), given)
        (value, low, high), p = compared(a_RPS, b_RPS, sample)
        assert compared(b_RPS, a_RPS, sample) == ((-value, -high, -low), p)
        assert low < value < high
        assert compared(a_RPS, a_RPS, sample) == ((0, 0, 0), (1, 1))


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("prompts", [7, 30, 100])
def test_win_rate_of_a_against_a_is_half_and_swapping_gives_one_less_it(runs: int, prompts: int) -> None:
    generator = np.random.default_rng([16, runs, prompts])
    weight_NR, weight_NP = stats.weights(runs, 1000, 0, "r"), stats.weights(prompts, 1000, 0, "p")
    counted_RPS = generator.multinomial(3, [0.5, 0.2, 0.3], size=(runs, prompts)) / 3

    def rates(win_tie_loss_RPS: stats.Array) -> stats.Array:
        return stats.half_tie_rate(*stats.mean_statistics(win_tie_loss_RPS, weight_NR, weight_NP).T)

    np.testing.assert_array_equal(rates(counted_RPS[:, :, ::-1]), 1 - rates(counted_RPS))
    win, tie, loss = stats.mean_statistics(counted_RPS, weight_NR, weight_NP).T
    np.testing.assert_allclose(rates(counted_RPS), (win + tie / 2) / (win + tie + loss), atol=1e-15)
    ties_RPS = np.zeros_like(counted_RPS)
    ties_RPS[:, :, 1] = 1
    np.testing.assert_array_equal(rates(ties_RPS), 0.5)
    assert stats.p_value(rates(ties_RPS) - 0.5) == 1.0


@pytest.mark.parametrize(("runs", "prompts"), [(1, 3), (1, 6), (1, 40), (3, 40)])
def test_the_interval_is_that_of_all_resamples_with_tails(runs: int, prompts: int) -> None:
    values_RPS = np.random.default_rng(prompts).gamma(0.5, size=(runs, prompts, 1))
    for resamples in (399, 400, 1001):
        weight_NR, weight_NP = (
            stats.weights(runs, resamples, 0, "r"),
            stats.weights(prompts, resamples, 0, "p"),
        )
        found = stats.resampled(values_RPS, first, weight_NR, stats.Sample(weight_NP, None))
        found.draws_N[5] = np.nan
        whole = stats.percentile_interval(found.value, found.tailed_N)
        assert stats.interval(found) == pytest.approx(whole, rel=1e-12)
        swapped = stats.tailed_interval(-found.value, -found.draws_N, found.known)
        assert swapped == (-found.value, -stats.interval(found).high, -stats.interval(found).low)


def test_the_spread_of_resamples_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where few prompts have Student's interval itself: a table has thousands."""
    taken, spread = [], stats._spread
    monkeypatch.setattr(stats, "_spread", lambda draws_N: taken.append(len(draws_N)) or spread(draws_N))
    for prompts in (3, 40):
        values_RPS = np.random.default_rng(prompts).normal(size=(1, prompts, 1))
        sample = stats.Sample(stats.weights(prompts, 200, 0, "p"), None)
        stats.interval(stats.resampled(values_RPS, first, np.ones((200, 1)), sample))
    assert taken == [200, 200]


@pytest.mark.parametrize("chance", [0.62, 1.0])
def test_a_value_and_its_difference_to_a_constant_have_one_interval(chance: float) -> None:
    generator = np.random.default_rng(7)
    values_RPS = (generator.random((1, 50, 1)) < chance).astype(float)
    sample = stats.Sample(stats.weights(50, 400, 0, "p"), None)
    found = stats.resampled(values_RPS, first, np.ones((400, 1)), sample)
    rate, net = stats.relative(found, 0.5, share=True)
    assert net == stats.beside_constant(found, 0.5, share=True)
    assert rate == (found.value, 0.5 + net.low, 0.5 + net.high)
    assert 0 <= rate.low < rate.high <= 1
    if chance == 1:
        assert rate == pytest.approx(stats.wilson(50, 50))


def test_an_estimate_of_wins_is_the_same_number_in_any_order_of_adding() -> None:
    """311 of 400: a sum of hundredths is off in the last bit, to either side, and 77.75 is printed as 77.7 here and as 77.8 there."""
    generator, wins_P = np.random.default_rng(0), np.repeat([0.0, 0.25, 0.5, 1.0], [9, 9, 13, 69])
    for _ in range(20):
        generator.shuffle(wins_P)
        assert stats.point(wins_P[None, :, None], first) == wins_P.sum() / 100


# coverage: what an interval promises, in simulations whose truth is known


def surely_outside(hits: int, trials: int, low: float, high: float, risk: float = 1e-5) -> bool:
    """Whether no chance of a hit from `low` to `high` would give so few or so many, but with probability `risk`."""
    too_few = scipy_stats.binom.cdf(hits, trials, low) < risk
    too_many = scipy_stats.binom.sf(hits - 1, trials, high) < risk
    return bool(too_few or too_many)


class Study(NamedTuple):
    """Intervals of one simulated evaluation, whose true value is 0 unless the function says otherwise."""

    good: stats.Interval
    naive: stats.Interval
    """With all images taken to be independent, the usual mistake."""
    truth: float


class Drawer(NamedTuple):
    """How every simulated study is resampled, as every cell of a table is."""

    weight_NR: stats.Array
    sample: stats.Sample
    alike: bool = False
    """The strata count alike, whatever their sizes."""

    def interval(self, values_RPS: stats.Array, base_RPS: stats.Array | None = None) -> stats.Interval:
        found = self.of(values_RPS)
        return stats.interval(found if base_RPS is None else found.less(self.of(base_RPS)))

    def of(self, values_RPS: stats.Array) -> stats.Resampled:
        finish = alike if self.alike else first
        return stats.resampled(values_RPS, finish, self.weight_NR, self.sample)


def drawer(runs: int, prompts: int, strata: Any = None, alike: bool = False) -> Drawer:
    weight_NR = stats.weights(runs, RESAMPLES, 0, "r")
    sample = stats.Sample(stats.weights(prompts, RESAMPLES, 0, "p", strata), strata)
    return Drawer(weight_NR, sample, alike)


RESAMPLES, ICC, IMAGES = 800, 0.4, 4
SIZES, OF_TASK = (16, 20, 16, 19, 20, 20), (0.97, 0.5, 0.4, 0.8, 0.1, 0.15)
"""A fifth of GenEval's prompts of each task, and shares as models of its time have."""
TASKS, SHARES = np.repeat([f"task{i}" for i in range(6)], SIZES), np.repeat(OF_TASK, SIZES)
Simulation = Callable[[np.random.Generator, Drawer], Study]


def by_images(values: stats.Array, truth: float = 0.0) -> stats.Interval:
    half = 1.96 * values.std(ddof=1) / math.sqrt(values.size)
    return stats.Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def passes(generator: np.random.Generator, share: Any, prompts: int) -> stats.Array:
    """Pass or fail [P, G] of images whose correlation within a prompt is ICC: beta-binomial."""
    share = np.broadcast_to(share, (prompts,))
    odds = (1 - ICC) / ICC
    chance = generator.beta(share * odds, (1 - share) * odds)
    return (generator.random((prompts, IMAGES)) < chance[:, None]).astype(np.float64)


def cell_of_scores(generator: np.random.Generator, draw: Drawer) -> Study:
    values = clustered(generator, 60, IMAGES, ICC)
    return Study(draw.interval(values.mean(axis=1)[None, :, None]), by_images(values), 0.0)


def paired_scores(generator: np.random.Generator, draw: Drawer) -> Study:
    """Both checkpoints share what the prompt and the noise do, and differ by something that the images of a prompt have in common."""
    shared = clustered(generator, 60, IMAGES, ICC)
    base, run = shared, shared + 0.7 * clustered(generator, 60, IMAGES, ICC) + 0.3
    values = [x.mean(axis=1)[None, :, None] for x in (run, base)]
    return Study(draw.interval(*values), by_images(run - base), 0.3)


def share(value: float) -> Simulation:
    def simulate(generator: np.random.Generator, draw: Drawer) -> Study:
        del draw  # a share has a closed form
        passed = passes(generator, value, 150)
        values_RPS = passed.mean(axis=1)[None, :, None]
        known = stats.precision(stats.influence(values_RPS, first))
        interval = stats.share_interval(float(passed.mean()), known, 150)
        return Study(interval, stats.wilson(float(passed.sum()), passed.size), value)

    return simulate


def paired_passes(
    generator: np.random.Generator, shares: tuple[Any, Any], prompts: int = len(TASKS)
) -> Sequence[stats.Array]:
    """Pass or fail of two checkpoints, thresholds on normal variables: prompts are hard for both in part, and the noise is the same in part."""

    def alike(size: tuple[int, int], share: float) -> tuple[stats.Array, stats.Array]:
        base, own = generator.normal(size=(2, *size))
        return base, share * base + math.sqrt(1 - share**2) * own

    hard, noise = alike((prompts, 1), 0.2), alike((prompts, IMAGES), 0.7)
    bar = [scipy_stats.norm.ppf(np.broadcast_to(share, (prompts,)))[:, None] for share in shares]
    return [
        (math.sqrt(ICC) * h + math.sqrt(1 - ICC) * n < b).astype(np.float64)
        for h, n, b in zip(hard, noise, bar, strict=True)
    ]


def paired_shares(generator: np.random.Generator, draw: Drawer) -> Study:
    """.95 against .90."""
    base, run = paired_passes(generator, (0.90, 0.95), 150)
    values = [x.mean(axis=1)[None, :, None] for x in (run, base)]
    return Study(draw.interval(*values), by_images(run - base), 0.05)


def tasks(generator: np.random.Generator, draw: Drawer) -> Study:
    passed = passes(generator, SHARES, len(SHARES))
    truth = float(weight_of_tasks(draw) @ OF_TASK)
    return Study(draw.interval(by_task(passed, draw)), by_images_of_tasks(passed, draw), truth)


def paired_tasks(generator: np.random.Generator, draw: Drawer) -> Study:
    """A run that is right on more in every task, least where the base is good already."""
    better = np.minimum(np.array(OF_TASK) + 0.1, 0.98)
    base, run = paired_passes(generator, (SHARES, np.repeat(better, SIZES)))
    truth = float(weight_of_tasks(draw) @ (better - OF_TASK))
    return Study(
        draw.interval(by_task(run, draw), by_task(base, draw)), by_images_of_tasks(run - base, draw), truth
    )


def weight_of_tasks(draw: Drawer) -> stats.Array:
    return np.full(6, 1 / 6) if draw.alike else np.array(SIZES) / sum(SIZES)


def by_images_of_tasks(values: stats.Array, draw: Drawer) -> stats.Interval:
    each = [values[task == TASKS].ravel() for task in np.unique(TASKS)]
    weight = weight_of_tasks(draw)
    value = float(weight @ [x.mean() for x in each])
    half = 1.96 * math.sqrt(weight**2 @ [x.var() / x.size for x in each])
    return stats.Interval(value, value - half, value + half)


def by_task(passed: stats.Array, draw: Drawer) -> stats.Array:
    share_P = passed.mean(axis=1)
    return of_tasks(share_P, TASKS) if draw.alike else share_P[None, :, None]


def seeds(share_of_seeds: float) -> Simulation:
    """Paired differences over several training seeds, which make up that share of the variance of the mean."""

    def simulate(generator: np.random.Generator, draw: Drawer) -> Study:
        runs, prompts = draw.weight_NR.shape[1], draw.sample.weight_NP.shape[1]
        of_prompts = ICC / prompts + (1 - ICC) / (runs * prompts * IMAGES)
        effect = math.sqrt(runs * of_prompts * share_of_seeds / (1 - share_of_seeds))
        base = generator.normal(size=(1, prompts, IMAGES))
        difference = math.sqrt(ICC) * generator.normal(size=(1, prompts, 1))
        difference = difference + effect * generator.normal(size=(runs, 1, 1))
        difference = difference + math.sqrt(1 - ICC) * generator.normal(size=(runs, prompts, IMAGES))
        bases = np.broadcast_to(base, difference.shape)
        values = [x.mean(axis=2)[:, :, None] for x in (bases + difference, bases)]
        return Study(draw.interval(*values), by_images(difference), 0.0)

    return simulate


def half_tie(mean_S: stats.Array) -> stats.Array:
    return stats.half_tie_rate(*(mean_S[..., i] for i in range(3)))


def win_rate(mean: float) -> Simulation:
    """Of a run whose pictures are that much better than the base's, in standard deviations; less than .1 is a tie."""

    def simulate(generator: np.random.Generator, draw: Drawer) -> Study:
        better = mean + clustered(generator, 60, IMAGES, ICC)
        win, loss = better > 0.1, better < -0.1
        counted = np.stack([win, ~(win | loss), loss], axis=2).astype(np.float64)
        found = stats.resampled(counted.mean(axis=1)[None], half_tie, draw.weight_NR, draw.sample)
        truth = (scipy_stats.norm.sf(0.1 - mean) + scipy_stats.norm.sf(-0.1 - mean)) / 2 - 0.5
        return Study(stats.beside_constant(found, 0.5, share=True), by_images((win - 1.0 * loss) / 2), truth)

    return simulate


def retention(share_of_seeds: float, others: int) -> Simulation:
    """The share that one run has of another's gain over a base, each with training seeds of its own; nine tenths in truth."""

    def simulate(generator: np.random.Generator, draw: Drawer) -> Study:
        runs, prompts = draw.weight_NR.shape[1], draw.sample.weight_NP.shape[1]
        effect = math.sqrt(runs * ICC / prompts * share_of_seeds / (1 - share_of_seeds))
        base = generator.normal(size=(1, prompts, IMAGES))
        alike = generator.normal(size=(1, prompts, 1))  # of the prompts, on which both runs gain

        def run(gain: float, number: int) -> stats.Array:
            own = 0.6 * alike + 0.8 * generator.normal(size=(1, prompts, 1))
            noise = math.sqrt(1 - ICC) * generator.normal(size=(number, prompts, IMAGES))
            return base + gain + math.sqrt(ICC) * own + effect * generator.normal(size=(number, 1, 1)) + noise

        one, other = run(0.9, runs), run(1.0, others)
        weight_NQ = stats.weights(others, RESAMPLES, 0, "others")
        of_base = draw.of(np.broadcast_to(base, one.shape).mean(axis=2)[:, :, None])
        beside = Drawer(weight_NQ, draw.sample)
        gains = [
            draw.of(one.mean(axis=2)[:, :, None]).less(of_base),
            beside.of(other.mean(axis=2)[:, :, None]).less(
                beside.of(np.broadcast_to(base, other.shape).mean(axis=2)[:, :, None])
            ),
        ]
        share = gains[0].over(gains[1], same_seeds=False)
        by_image = ((one - base).mean(axis=0) - share.value * (other - base).mean(axis=0)) / gains[1].value
        naive = by_images(share.value + by_image - by_image.mean())
        return Study(stats.interval(share), naive, 0.9)

    return simulate


CASES: dict[str, tuple[Simulation, Callable[[], Drawer]]] = {
    "cell of scores": (cell_of_scores, lambda: drawer(1, 60)),
    "paired scores": (paired_scores, lambda: drawer(1, 60)),
    "share .03": (share(0.03), lambda: drawer(1, 2)),
    "share .98": (share(0.98), lambda: drawer(1, 2)),
    "share .5": (share(0.5), lambda: drawer(1, 2)),
    "paired shares": (paired_shares, lambda: drawer(1, 150)),
    "six tasks, pooled": (tasks, lambda: drawer(1, len(TASKS), TASKS)),
    "six tasks, alike": (tasks, lambda: drawer(1, len(TASKS), TASKS, alike=True)),
    "three seeds": (seeds(0.5), lambda: drawer(3, 40)),
    "five seeds": (seeds(0.3), lambda: drawer(5, 40)),
    "six tasks, pooled, paired": (paired_tasks, lambda: drawer(1, len(TASKS), TASKS)),
    "six tasks, alike, paired": (paired_tasks, lambda: drawer(1, len(TASKS), TASKS, alike=True)),
    "six tasks, three seeds": (seeds(0.5), lambda: drawer(3, len(TASKS), TASKS)),
    "win rate of .5": (win_rate(0.0), lambda: drawer(1, 60)),
    "win rate of .93": (win_rate(1.5), lambda: drawer(1, 60)),
    "retention, a seed of each": (retention(0.0, 1), lambda: drawer(1, 60)),
    "retention, three seeds of each": (retention(0.3, 3), lambda: drawer(3, 60)),
    "retention, five seeds and three": (retention(0.3, 3), lambda: drawer(5, 60)),
}


def coverage(case: str, simulations: int) -> tuple[int, int]:
    """In how many simulated studies the interval, and the naive one, holds the truth."""
    simulate, make = CASES[case]
    generator, draw = np.random.default_rng([17, list(CASES).index(case)]), make()
    good = naive = 0
    for _ in range(simulations):
        study = simulate(generator, draw)
        good += study.good.low <= study.truth <= study.good.high
        naive += study.naive.low <= study.truth <= study.naive.high
    return good, naive


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_and_the_naive_ones_do_not(case: str) -> None:
    good, naive = coverage(case, 400)
    assert not surely_outside(good, 400, 0.93, 0.97)
    assert scipy_stats.binom.cdf(naive, 400, 0.93) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_93_to_97_per_cent(case: str) -> None:
    good, naive = coverage(case, 6000)
    print(f"{case}: {good / 6000:.4f}, naive {naive / 6000:.4f}")
    assert 0.93 <= good / 6000 <= 0.97
    assert naive / 6000 < 0.93
