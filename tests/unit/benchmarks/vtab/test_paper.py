"""The paper's Table 3: every mean follows from its row, and so does every remark."""

import statistics
from decimal import ROUND_HALF_UP, Decimal

import pytest

from benchmarks.vtab.methods import METHODS
from benchmarks.vtab.paper import REMARKS, TABLE_3, TITLES, group_means, mean_of_groups
from core.catalog.recipes import DATASET_RECIPES, DatasetGroup

ROWS = {row.label: row for row in TABLE_3}


def exact_mean(row):
    """The mean of the printed figures without binary rounding."""
    return sum(Decimal(str(value)) for value in row.accuracies.values()) / 19


class TestRows:
    @pytest.mark.parametrize("label", ROWS)
    def test_mean_is_the_printed_one(self, label):
        row = ROWS[label]
        assert list(row.accuracies) == list(DATASET_RECIPES)
        assert abs(float(exact_mean(row)) - row.mean) < 0.0055

    def test_one_is_rounded_otherwise(self):
        """The paper had more digits than it prints: 1406.1 / 19 is 74.005, printed as 74.00."""
        differing = [
            row.label
            for row in TABLE_3
            if exact_mean(row).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)
            != Decimal(str(row.mean))
        ]
        assert differing == ["iDAT-PS-mse"]

    def test_all_eighteen(self):
        assert len(ROWS) == 18
        assert len(TITLES) == 19
        assert {row.method for row in TABLE_3 if row.method} == set(METHODS)

    @pytest.mark.parametrize(
        ("label", "mean"),
        [
            ("iDAT-S-kl", 76.76),
            ("Res-Tuning", 76.33),
            ("ReAdapter", 76.09),
            ("SSF", 75.69),
            ("Sequential Adapter", 74.54),
        ],
    )
    def test_mean_of_groups(self, label, mean):
        assert mean_of_groups(ROWS[label].accuracies) == pytest.approx(mean, abs=0.005)

    def test_group_means_by_hand(self):
        means = group_means(ROWS["Sequential Adapter"].accuracies)
        assert means[DatasetGroup.SPECIALIZED] == pytest.approx((86.9 + 96.6 + 87.8 + 76.9) / 4)


class TestRemarks:
    def test_one_dataset_makes_the_headline(self):
        lead = ROWS["iDAT-S-kl"].mean - ROWS["Sequential Adapter"].mean
        name = "vtab-clevr_dist"
        share = (
            ROWS["iDAT-S-kl"].accuracies[name] - ROWS["Sequential Adapter"].accuracies[name]
        ) / 19
        text = " ".join(REMARKS)
        assert f"Of the {lead:.2f} points" in text
        assert f"{share:.2f} are one dataset" in text
        assert DATASET_RECIPES[name].learning_rate == 0.05

    def test_means_without_it(self):
        text = " ".join(REMARKS)
        for label, short in (
            ("Sequential Adapter", "S"),
            ("iDAT-S-kl", "iDAT-S-kl"),
            ("iDAT-S-mse", "iDAT-S-mse"),
        ):
            others = [v for n, v in ROWS[label].accuracies.items() if n != "vtab-clevr_dist"]
            assert f"{statistics.mean(others):.2f} ({short})" in text
