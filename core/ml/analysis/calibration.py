"""Whether a model is right as often as it is sure: reliability, its error, temperature scaling.

After Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.ml.analysis.arrays import log_softmax, rounded
from core.ml.analysis.predictions import Predictions

#: Bins of equal width that confidences are sorted into.
BINS = 15
#: A temperature outside says that the logits hold no more to fit: all right, or no better than
#: chance.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0

_BISECTIONS = 80


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy in `BINS` bins: (lower, upper], the first with its lower end.

    Attributes:
        counts: images in each bin.
        confidence: their mean confidence; 0 in an empty bin.
        accuracy: the share of them that is right; 0 in an empty bin.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over the images' bins."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((self.counts * gaps).sum() / self.counts.sum())

    def to_json(self) -> list[dict[str, Any]]:
        """Return one entry for each bin; confidence and accuracy are None in an empty one."""
        edges = np.linspace(0.0, 1.0, len(self.counts) + 1)
        return [
            {
                "lower": rounded(edges[index]),
                "upper": rounded(edges[index + 1]),
                "images": int(count),
                "confidence": rounded(self.confidence[index]) if count else None,
                "accuracy": rounded(self.accuracy[index]) if count else None,
            }
            for index, count in enumerate(self.counts)
        ]


def measure_reliability(
    predictions: Predictions, *, temperature: float = 1.0, bins: int = BINS
) -> Reliability:
    """Sort images by the softmax of their logits divided by `temperature`."""
    confidence = np.exp(log_softmax(predictions.logits / temperature)).max(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)

    def means(values: NDArray[np.floating]) -> NDArray[np.float64]:
        sums = np.bincount(index, weights=values, minlength=bins)
        return np.divide(sums, counts, out=np.zeros(bins), where=counts > 0)

    return Reliability(counts, means(confidence), means(predictions.correct.astype(np.float64)))


@dataclass(frozen=True)
class Temperature:
    """What divides the logits so that their softmax fits the labels best.

    Attributes:
        value: above 1 the model was too sure, below 1 not sure enough.
        at_limit: whether the best value lies outside of the range that is searched.
    """

    value: float
    at_limit: bool


def fit_temperature(predictions: Predictions) -> Temperature:
    """Return the temperature that minimises the cross-entropy of these predictions.

    With b = 1/T the loss, mean of logsumexp(b z) - b z_y, is convex: its slope
    mean(sum_c p_c z_c - z_y) rises with b, and its zero is found by bisection of log b.

    Args:
        predictions: of images that the model was not trained on, and is not tested on.
    """
    logits = predictions.logits - predictions.logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, predictions.labels[:, None], axis=1)[:, 0]

    def slope(log_inverse: float) -> float:
        probabilities = np.exp(log_softmax(logits * np.exp(log_inverse)))
        return float(((probabilities * logits).sum(axis=1) - own).mean())

    low, high = -np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE)
    if slope(high) <= 0:  # still falling: every image is right
        return Temperature(MIN_TEMPERATURE, at_limit=True)
    if slope(low) >= 0:
        return Temperature(MAX_TEMPERATURE, at_limit=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return Temperature(float(np.exp(-(low + high) / 2)), at_limit=False)
