"""Intervals agree with closed forms and with scipy's own t test."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.miniature.statistics import Record, count_signs, summarise


class TestSummary:
    def test_of_three_numbers_by_the_closed_form_of_two_degrees_of_freedom(self):
        # Student's quantile with 2 degrees of freedom: (2p - 1) · sqrt(2 / (4p (1 - p))).
        quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
        summary = summarise([1.0, 2.0, 6.0])

        assert summary.mean == 3
        assert summary.deviation == pytest.approx(math.sqrt(7))
        assert summary.half_width == pytest.approx(quantile * math.sqrt(7 / 3))

    def test_of_two_numbers_by_the_tangent(self):
        # With 1 degree of freedom Student's is Cauchy's distribution: tan(π (p - 1/2)).
        summary = summarise([0.0, 4.0])

        assert summary.half_width == pytest.approx(math.tan(math.pi * 0.475) * 2)

    def test_is_that_of_a_paired_t_test(self):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(2, 6))
        summary = summarise((first - second).tolist())
        interval = stats.ttest_rel(first, second).confidence_interval(0.95)

        assert summary.mean - summary.half_width == pytest.approx(interval.low)
        assert summary.mean + summary.half_width == pytest.approx(interval.high)

    def test_contains_zero_where_a_t_test_does_not_reject(self):
        rng = np.random.default_rng(1)
        for shift in np.linspace(0, 2, 40):
            values = rng.normal(shift, 1, 5)
            rejected = stats.ttest_1samp(values, 0).pvalue < 0.05

            assert summarise(values.tolist()).has_zero != rejected

    def test_of_one_number_has_no_spread(self):
        summary = summarise([3.0])

        assert (summary.mean, summary.deviation, summary.half_width) == (3, None, None)
        assert summary.has_zero


class TestCountSigns:
    def test_counts_wins_ties_and_losses(self):
        assert count_signs([0.1, 0.3 - 0.1 - 0.2, -0.2, 0.4]) == Record(wins=2, ties=1, losses=1)
