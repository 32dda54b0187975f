"""Accuracy, loss, the confusion matrix, and precision and recall of every class."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.ml.analysis.arrays import log_softmax, rounded, rounded_or_none
from core.ml.analysis.predictions import Predictions

TOP_K = 5


def top_k_accuracy(predictions: Predictions, k: int) -> float:
    """Return the share of images whose class is among the `k` highest logits.

    Of equal logits the class with the lower index counts as the higher one, as argmax has it.
    """
    order = np.argsort(-predictions.logits, axis=1, kind="stable")[:, :k]
    return float((order == predictions.labels[:, None]).any(axis=1).mean())


def top_5_accuracy(predictions: Predictions) -> float | None:
    """Return the top-5 accuracy, or None where five classes are (nearly) all there are."""
    if predictions.logits.shape[1] <= TOP_K:
        return None
    return top_k_accuracy(predictions, TOP_K)


def cross_entropy(predictions: Predictions, *, temperature: float = 1.0) -> float:
    """Return the mean cross-entropy in nats, of logits divided by `temperature`."""
    log_probabilities = log_softmax(predictions.logits / temperature)
    own = np.take_along_axis(log_probabilities, predictions.labels[:, None], axis=1)
    return float(-own.mean())


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """Return how many images of class i (row) were taken for class j (column)."""
    classes = predictions.logits.shape[1]
    cells = predictions.labels * classes + predictions.predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Precision, recall and F1 by class, each (classes,).

    Attributes:
        precision: share of right ones among the images taken for the class; 0 where there are none.
        recall: share of right ones among the class's images; NaN where there are none.
        f1: harmonic mean of both, 0 where both are 0; NaN without images of the class.
        support: images of the class.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]

    def macro(self) -> dict[str, float]:
        """Return the plain means over the classes that have images."""
        there = self.support > 0
        return {
            name: rounded(values[there].mean())
            for name, values in (
                ("precision", self.precision),
                ("recall", self.recall),
                ("f1", self.f1),
            )
        }

    def to_json(self, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return one entry for each class."""
        return [
            {
                "class": name,
                "precision": rounded(self.precision[index]),
                "recall": rounded_or_none(self.recall[index]),
                "f1": rounded_or_none(self.f1[index]),
                "support": int(self.support[index]),
            }
            for index, name in enumerate(classes)
        ]


def class_scores(matrix: NDArray[np.int64]) -> ClassScores:
    """Return the scores of every class of a confusion matrix."""
    right = np.diag(matrix).astype(np.float64)
    support, taken = matrix.sum(axis=1), matrix.sum(axis=0)
    nothing = np.full(len(matrix), np.nan)
    recall = np.divide(right, support, out=nothing.copy(), where=support > 0)
    precision = np.divide(right, taken, out=np.zeros(len(matrix)), where=taken > 0)
    # 2PR / (P + R) = 2 right / (support + taken), which needs no case for P = R = 0.
    f1 = np.divide(2 * right, support + taken, out=nothing.copy(), where=support > 0)
    return ClassScores(precision, recall, f1, support)


def most_confused(
    matrix: NDArray[np.int64], classes: tuple[str, ...], *, limit: int
) -> list[dict[str, Any]]:
    """Return the pairs of classes that are taken for each other most often.

    Args:
        matrix: confusion matrix.
        classes: their names.
        limit: most pairs returned.

    Returns:
        `{"true", "predicted", "images", "share"}`, most images first, then in the order of the
        classes; `share` is of the true class's images.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(cell), len(matrix)) for cell in order]
    return [
        {
            "true": classes[true],
            "predicted": classes[predicted],
            "images": int(wrong[true, predicted]),
            "share": rounded(wrong[true, predicted] / matrix[true].sum()),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
