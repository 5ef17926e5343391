"""Statistics against their definitions, published vectors, and a simulation of what an interval promises."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evals import stats

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


def cluster_standard_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the plain mean with clustered observations (Miller, arXiv 2411.00640, section 2.2).

    `SE^2 = (1/n^2) sum_c (sum_{i in c} (x_i - mean))^2`, the closed form beside which the bootstrap is held.
    """
    centred = values - values.mean()
    sums = np.bincount(clusters, weights=centred)
    return float(np.sqrt(np.sum(sums**2)) / len(values))


def test_clustered_standard_error_is_the_double_sum() -> None:
    """`(1/n^2) sum_i sum_j (x_i - m)(x_j - m) [same cluster]`, on a lopsided split."""
    values = np.random.default_rng(0).normal(size=11)
    clusters = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 3])
    centred = values - values.mean()
    double_sum = sum(
        centred[i] * centred[j] for i in range(11) for j in range(11) if clusters[i] == clusters[j]
    )
    assert cluster_standard_error(values, clusters) == pytest.approx(math.sqrt(double_sum) / 11, rel=1e-12)


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
    values = clustered(np.random.default_rng(2), prompts=60, images=4, icc=0.5)
    draws = stats.weights(60, 20_000, 0, "prompts") @ values.mean(axis=1)
    closed = cluster_standard_error(values.ravel(), np.repeat(np.arange(60), 4))
    assert draws.std() == pytest.approx(closed * math.sqrt(60 / 59), rel=0.02)


def test_coverage_and_the_mistake_that_would_break_it() -> None:
    """95 % intervals of the mean: prompts as unit cover, images as unit (the usual mistake) do not."""
    generator = np.random.default_rng(3)
    simulations, prompts, images = 600, 40, 4
    of_prompts, of_images = stats.weights(prompts, 800, 0, "p"), stats.weights(prompts * images, 800, 0, "i")
    covered = np.zeros(2)
    for _ in range(simulations):
        values = clustered(generator, prompts, images, icc=0.4)
        for kind, draws in enumerate((of_prompts @ values.mean(axis=1), of_images @ values.ravel())):
            interval = stats.percentile_interval(float(values.mean()), draws)
            covered[kind] += interval.low <= 0 <= interval.high
    by_prompt, by_image = covered / simulations
    assert 0.92 <= by_prompt <= 0.97
    assert by_image < 0.89


def test_coverage_over_training_seeds_and_prompts() -> None:
    """Crossed seeds and prompts, each with its own effect: the pigeonhole bootstrap covers the mean over both."""
    generator = np.random.default_rng(4)
    runs, prompts, simulations = 8, 30, 300
    weight_NR, weight_NP = stats.weights(runs, 600, 0, "r"), stats.weights(prompts, 600, 0, "p")
    covered = 0
    for _ in range(simulations):
        effects = 0.5 * generator.normal(size=(runs, 1)) + 0.5 * generator.normal(size=(1, prompts))
        values_RPS = (effects + generator.normal(size=(runs, prompts)))[:, :, None]
        draws = stats.mean_statistics(values_RPS, weight_NR, weight_NP)[:, 0]
        interval = stats.percentile_interval(float(values_RPS.mean()), draws)
        covered += interval.low <= 0 <= interval.high
    assert (
        0.87 <= covered / simulations <= 0.98
    )  # eight seeds are few: a percentile interval is then a little short


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
