import numpy as np
import pytest
from sklearn.metrics import (
    confusion_matrix as sklearn_confusion,
)
from sklearn.metrics import (
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from core.ml.analysis.classification import (
    class_scores,
    confusion_matrix,
    cross_entropy,
    most_confused,
    top_5_accuracy,
    top_k_accuracy,
)
from core.ml.analysis.predictions import Predictions


def predictions(logits, labels):
    return Predictions(np.array(logits, np.float64), np.array(labels, np.int64))


@pytest.fixture
def noisy():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 7, 300)
    logits = rng.normal(size=(300, 8)) * 2  # class 7 has no images
    logits[np.arange(300), labels] += 1.5
    logits[:, 2] -= 15  # never predicted
    return predictions(logits, labels)


class TestAgainstScikitLearn:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_top_k(self, noisy, k):
        wanted = top_k_accuracy_score(noisy.labels, noisy.logits, k=k, labels=np.arange(8))
        assert top_k_accuracy(noisy, k) == pytest.approx(wanted)

    def test_cross_entropy(self, noisy):
        softmax = np.exp(noisy.logits) / np.exp(noisy.logits).sum(axis=1, keepdims=True)
        assert cross_entropy(noisy) == pytest.approx(
            log_loss(noisy.labels, softmax, labels=np.arange(8)), rel=1e-6
        )

    def test_confusion_matrix(self, noisy):
        wanted = sklearn_confusion(noisy.labels, noisy.predicted, labels=np.arange(8))
        assert (confusion_matrix(noisy) == wanted).all()

    def test_scores_of_every_class_and_their_means(self, noisy):
        scores = class_scores(confusion_matrix(noisy))
        precision, recall, f1, support = precision_recall_fscore_support(
            noisy.labels, noisy.predicted, labels=np.arange(7), zero_division=0
        )
        assert scores.precision[:7] == pytest.approx(precision)
        assert scores.recall[:7] == pytest.approx(recall)
        assert scores.f1[:7] == pytest.approx(f1)
        assert list(scores.support) == [*support, 0]
        assert scores.macro() == pytest.approx(
            {"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()}, rel=1e-5
        )


class TestEdges:
    def test_a_class_without_images_has_no_recall(self, noisy):
        scores = class_scores(confusion_matrix(noisy))
        shown = scores.to_json(tuple("abcdefgh"))
        assert shown[7]["recall"] is None
        assert shown[7]["f1"] is None
        assert shown[7]["support"] == 0
        assert (shown[2]["precision"], shown[2]["recall"], shown[2]["f1"]) == (0, 0, 0)

    def test_of_equal_logits_the_first_class_counts(self):
        tied = predictions([[1, 1, 1], [1, 1, 1]], [0, 1])
        assert list(tied.predicted) == [0, 0]
        assert [top_k_accuracy(tied, k) for k in (1, 2, 3)] == [0.5, 1.0, 1.0]

    def test_huge_logits_have_a_finite_loss(self):
        assert cross_entropy(predictions([[1e4, -1e4]], [1])) == pytest.approx(2e4)

    @pytest.mark.parametrize(("classes", "wanted"), [(2, None), (5, None), (6, 0.0)])
    def test_top_5_is_told_where_it_says_something(self, classes, wanted):
        logits = np.zeros((3, classes))
        logits[:, -1] = -1  # the true class is the last of all
        assert top_5_accuracy(predictions(logits, [classes - 1] * 3)) == wanted


class TestMostConfused:
    MATRIX = np.array([[5, 3, 0], [3, 1, 0], [1, 0, 0]])

    def test_most_images_first_and_then_in_order(self):
        pairs = most_confused(self.MATRIX, ("a", "b", "c"), limit=9)
        assert [(p["true"], p["predicted"], p["images"]) for p in pairs] == [
            ("a", "b", 3),
            ("b", "a", 3),
            ("c", "a", 1),
        ]
        assert [p["share"] for p in pairs] == [0.375, 0.75, 1.0]

    def test_is_bounded(self):
        assert len(most_confused(self.MATRIX, ("a", "b", "c"), limit=1)) == 1
