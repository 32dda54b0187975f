"""Scores against written-out formulas."""

import math

import numpy as np
import pytest

from api.scores import OutputFunction, Ranked, apply_function, is_rejected, rank_classes

_LOGITS = np.array([[2.0, -1.0, 0.5], [-700.0, 700.0, 0.0]], dtype=np.float32)


def test_softmax_is_the_share_of_each_exponential() -> None:
    scores = apply_function(_LOGITS, OutputFunction.SOFTMAX)
    total = math.exp(2.0) + math.exp(-1.0) + math.exp(0.5)
    assert scores[0] == pytest.approx([math.exp(x) / total for x in (2.0, -1.0, 0.5)], rel=1e-7)
    assert scores[1].tolist() == [0.0, 1.0, 0.0]
    assert scores.dtype == np.float32


def test_sigmoid_takes_each_class_on_its_own_and_never_overflows() -> None:
    scores = apply_function(_LOGITS, OutputFunction.SIGMOID)
    assert scores[0] == pytest.approx([1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5)], rel=1e-7)
    assert scores[1].tolist() == [0.0, 1.0, 0.5]


def test_none_gives_the_logits_themselves() -> None:
    assert np.array_equal(apply_function(_LOGITS, OutputFunction.NONE), _LOGITS)


def test_the_best_classes_come_first_and_equal_ones_in_the_order_of_the_classes() -> None:
    logits = np.array([[1.0, 3.0, 1.0, 3.0]], dtype=np.float32)
    ranked = rank_classes(logits, ["a", "b", "c", "d"], top_k=3, function=OutputFunction.NONE)
    assert ranked == [[Ranked(1, "b", 3.0), Ranked(3, "d", 3.0), Ranked(0, "a", 1.0)]]


def test_classes_whose_probabilities_round_to_the_same_are_told_apart_by_their_logits() -> None:
    logits = np.array([[-300.0, -200.0, 100.0]], dtype=np.float32)
    ranked = rank_classes(logits, ["worst", "worse", "best"], top_k=9)
    assert [one.label for one in ranked[0]] == ["best", "worse", "worst"]
    assert [one.score for one in ranked[0]] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("threshold", "expected"), [(None, False), (0.5, False), (0.6, True)])
def test_an_image_is_rejected_below_the_threshold(threshold: float | None, expected: bool) -> None:
    ranked = [Ranked(1, "b", 0.5), Ranked(0, "a", 0.4)]
    assert is_rejected(ranked, threshold) is expected
