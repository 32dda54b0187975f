import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import jensenshannon

from core.ml.analysis.distributions import (
    DISPERSION,
    compare_shapes,
    measure_dispersion,
    shape_divergence,
    standardise,
    wasserstein_distance,
)


def draw(count, seed, *, std=0.02):
    return np.random.default_rng(seed).normal(0, std, count)


class TestDispersion:
    def test_against_scipy(self):
        weights = np.random.default_rng(0).laplace(0.01, 0.03, 5000)
        initial = draw(5000, 1)
        found = measure_dispersion(weights, initial, width=64)
        assert found["mean"] == pytest.approx(weights.mean(), rel=1e-5)
        assert found["excess_kurtosis"] == pytest.approx(scipy.stats.kurtosis(weights), rel=1e-5)
        assert found["iqr"] == pytest.approx(scipy.stats.iqr(weights), rel=1e-5)
        assert found["std_sqrt_d"] == pytest.approx(8 * np.std(weights), rel=1e-5)
        drift = np.sqrt(((weights - initial) ** 2).sum() / (initial**2).sum())
        assert found["drift"] == pytest.approx(drift, rel=1e-5)
        assert found.keys() == set(DISPERSION)

    def test_the_initial_normal_has_its_known_figures(self):
        """N(0, 0.02²): shares by the normal distribution's function, Hoyer 1 - sqrt(2/pi)."""
        weights = draw(400_000, 2)
        found = measure_dispersion(weights, weights, width=1)
        normal = scipy.stats.norm(scale=0.02)
        assert found["std"] == pytest.approx(0.02, rel=0.01)
        assert found["excess_kurtosis"] == pytest.approx(0, abs=0.03)
        assert found["share_below_0.001"] == pytest.approx(1 - 2 * normal.cdf(-1e-3), rel=0.02)
        assert found["share_below_0.1_std"] == pytest.approx(0.0797, rel=0.02)
        assert found["hoyer"] == pytest.approx(1 - np.sqrt(2 / np.pi), rel=0.01)
        assert found["abs_99th_percentile"] == pytest.approx(normal.ppf(0.995), rel=0.01)
        assert found["drift"] == 0

    def test_the_standard_error_is_how_much_the_std_varies(self):
        samples = np.random.default_rng(3).laplace(0, 1, (2000, 400))
        spread = samples.std(axis=1).std()
        errors = [measure_dispersion(s, s, width=1)["std_error"] for s in samples[:200]]
        assert np.mean(errors) == pytest.approx(spread, rel=0.08)

    def test_hoyer_at_its_two_ends(self):
        equal, single = np.full(9, -2.0), np.eye(9)[4]
        assert measure_dispersion(equal, equal, width=1)["hoyer"] == pytest.approx(0)
        assert measure_dispersion(single, single, width=1)["hoyer"] == pytest.approx(1)

    def test_a_constant_matrix_leaves_open_what_is_not_defined(self):
        zeros = np.zeros(6)
        found = measure_dispersion(zeros, zeros, width=4)
        undefined = {"std_error", "excess_kurtosis", "share_below_0.1_std", "hoyer", "drift"}
        assert {name for name, value in found.items() if value is None} == undefined


class TestDistances:
    def test_wasserstein_against_scipy(self):
        first, second = draw(700, 0, std=1.0), draw(300, 1, std=2.0) + 0.5
        wanted = scipy.stats.wasserstein_distance(first, second)
        assert wasserstein_distance(first, second) == pytest.approx(wanted)
        assert wasserstein_distance(second, first) == pytest.approx(wanted)

    def test_wasserstein_with_ties(self):
        assert wasserstein_distance(np.array([0.0, 0, 1]), np.array([0.0, 1, 1])) == pytest.approx(
            1 / 3
        )

    def test_jensen_shannon_against_scipy(self):
        first = standardise(draw(900, 0))
        second = standardise(np.random.default_rng(1).laplace(size=1100))
        edges = np.concatenate(([-1e9], np.arange(-30, 31) / 5, [1e9]))
        p, q = (np.histogram(values, edges)[0] for values in (first, second))
        assert shape_divergence(first, second) == pytest.approx(jensenshannon(p, q, base=2) ** 2)

    def test_shape_forgets_place_and_scale(self):
        weights = draw(500, 0)
        moved = compare_shapes(weights, 7 * weights + 3)
        assert moved == {"wasserstein": pytest.approx(0, abs=1e-9), "jensen_shannon": 0}
        other = compare_shapes(weights, np.random.default_rng(1).uniform(size=500))
        assert other["wasserstein"] > 0.1
        assert 0 < other["jensen_shannon"] < 1

    def test_a_constant_has_no_shape(self):
        assert compare_shapes(np.ones(5), draw(5, 0)) == {
            "wasserstein": None,
            "jensen_shannon": None,
        }
