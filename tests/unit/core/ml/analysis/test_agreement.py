import numpy as np
import pytest
from scipy.stats import binomtest

from core.ml.analysis.agreement import Agreement, compare
from core.ml.analysis.predictions import Predictions


def says(predicted, labels):
    return Predictions(np.eye(3)[predicted], np.array(labels))


def test_counts_every_image_once():
    labels = [0, 0, 1, 1, 2, 2, 2]
    first = says([0, 0, 2, 1, 0, 1, 2], labels)
    second = says([0, 1, 1, 1, 0, 0, 0], labels)
    agreement = compare(first, second)
    assert agreement == Agreement(
        both_right=2,
        only_first=2,
        only_second=1,
        both_wrong_same=1,
        both_wrong_differently=1,
    )
    assert agreement.images == 7
    assert agreement.share == pytest.approx(3 / 7)
    assert agreement.to_json("student", "teacher")["only_student_right"] == 2


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 11), (40, 12), (900, 1000)]
)
def test_p_value_is_that_of_the_exact_binomial_test(first, second):
    agreement = Agreement(100, first, second, 0, 0)
    total = first + second
    wanted = binomtest(first, total, 0.5).pvalue if total else 1.0
    assert agreement.p_value() == pytest.approx(wanted, rel=1e-9)
