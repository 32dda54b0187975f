import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from core.ml.analysis.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    fit_temperature,
    measure_reliability,
)
from core.ml.analysis.classification import cross_entropy
from core.ml.analysis.predictions import Predictions


def sure(confidences, right):
    """Two-class predictions of class 0 with these confidences (above 1/2)."""
    confidences = np.array(confidences)
    logits = np.stack([np.log(confidences), np.log(1 - confidences)], axis=1)
    return Predictions(logits, np.where(np.array(right), 0, 1))


def sample(count, classes, *, scale, seed):
    """Logits z with labels drawn from softmax(z); what is returned is scale * z."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Predictions(scale * logits, labels)


class TestReliability:
    def test_a_case_worked_out_by_hand(self):
        """Bins of a tenth: .55 and .58 (one right), .95 four times (three right)."""
        predictions = sure([0.55, 0.58, 0.95, 0.95, 0.95, 0.95], [1, 0, 1, 1, 1, 0])
        reliability = measure_reliability(predictions, bins=10)
        assert list(reliability.counts) == [0, 0, 0, 0, 0, 2, 0, 0, 0, 4]
        assert reliability.confidence[5] == pytest.approx(0.565)
        assert reliability.accuracy[5] == 0.5
        assert reliability.accuracy[9] == 0.75
        wanted = 2 / 6 * abs(0.565 - 0.5) + 4 / 6 * abs(0.95 - 0.75)
        assert reliability.error == pytest.approx(wanted)

    def test_a_confidence_on_an_edge_lies_in_the_lower_bin(self):
        assert list(measure_reliability(sure([0.75], [1]), bins=4).counts) == [0, 0, 1, 0]
        tied = Predictions(np.zeros((1, 2)), np.zeros(1, np.int64))  # exactly 1/2
        assert list(measure_reliability(tied, bins=2).counts) == [1, 0]

    def test_certainty_lies_in_the_last_bin(self):
        certain = Predictions(np.array([[1e5, 0.0]]), np.array([0]))
        reliability = measure_reliability(certain)
        assert reliability.counts[-1] == 1
        assert reliability.error == 0

    def test_every_image_is_in_one_of_fifteen_bins(self):
        bins = measure_reliability(sample(1000, 7, scale=3, seed=0)).to_json()
        assert len(bins) == 15
        assert sum(entry["images"] for entry in bins) == 1000
        for entry in bins:
            if entry["images"]:
                assert entry["lower"] < entry["confidence"] <= entry["upper"]
            else:
                assert entry["confidence"] is entry["accuracy"] is None

    def test_honest_logits_have_nearly_no_error_and_exaggerated_ones_have(self):
        assert measure_reliability(sample(20_000, 5, scale=1, seed=1)).error < 0.01
        exaggerated = sample(20_000, 5, scale=3, seed=1)
        assert measure_reliability(exaggerated).error > 0.1
        assert measure_reliability(exaggerated, temperature=3).error < 0.01


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.2, 1.0, 3.7])
    def test_finds_the_factor_that_logits_were_scaled_by(self, scale):
        fitted = fit_temperature(sample(20_000, 6, scale=scale, seed=2))
        assert fitted.value == pytest.approx(scale, rel=0.03)
        assert not fitted.at_limit

    def test_is_the_minimum_that_a_search_over_the_loss_finds(self):
        predictions = sample(80, 4, scale=2.3, seed=3)
        found = minimize_scalar(
            lambda log_t: cross_entropy(predictions, temperature=np.exp(log_t)),
            bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert fit_temperature(predictions).value == pytest.approx(np.exp(found.x), rel=1e-5)

    def test_stops_at_a_limit_where_the_loss_has_no_minimum(self):
        right = Predictions(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
        wrong = Predictions(right.logits, 1 - right.labels)
        assert (fit_temperature(right).value, fit_temperature(right).at_limit) == (
            MIN_TEMPERATURE,
            True,
        )
        assert (fit_temperature(wrong).value, fit_temperature(wrong).at_limit) == (
            MAX_TEMPERATURE,
            True,
        )

    def test_survives_huge_logits(self):
        huge = Predictions(np.array([[1e6, 0.0], [0.0, 1e6], [1e6, 0.0]]), np.array([0, 1, 1]))
        assert fit_temperature(huge).value == MAX_TEMPERATURE
