"""Comparing two models' answers."""

import math

import numpy as np
import pytest

from core.ml.inference.agreement import compare


def logits(*rows: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(rows, dtype=np.float32))


def test_counts_agreement_and_the_distance_of_the_probabilities() -> None:
    p = logits((0.7, 0.2, 0.1), (0.1, 0.8, 0.1))
    q = logits((0.6, 0.3, 0.1), (0.5, 0.3, 0.2))
    found = compare("abc", p, "abc", q)
    assert (found.images, found.agreed) == (2, 1)
    assert dict(found.disagreements) == {("b", "a"): 1}
    expected = (0.1 + 0.1) / 3 + (0.4 + 0.5 + 0.1) / 3
    assert found.delta_sum == pytest.approx(expected, rel=1e-5)


def test_classes_are_matched_by_name() -> None:
    p = logits((0.7, 0.3))
    same = compare("ab", p, "ba", p[:, ::-1])
    assert (same.agreed, same.delta_sum) == (1, pytest.approx(0, abs=1e-7))
    other = compare("ab", p, "bc", logits((0.4, 0.6)))
    assert dict(other.disagreements) == {("a", "c"): 1}
    assert other.delta_sum == pytest.approx((0.7 + 0.1 + 0.6) / 3, rel=1e-5)


def test_large_logits_do_not_overflow() -> None:
    found = compare(
        "ab", np.array([[1e4, 0.0]], np.float32), "ab", np.array([[0.0, 0]], np.float32)
    )
    assert math.isclose(found.delta_sum, 0.5)
