"""How two models' answers to the same images compare, by the names of their classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Comparison:
    """Sums over some images.

    Attributes:
        images: how many.
        agreed: those whose likeliest class has the same name.
        delta_sum: sum of the mean of |p - q| over the classes of both models, one that a model
            does not have counting as 0 there.
        disagreements: (the one's class, the other's) -> images.
    """

    images: int
    agreed: int
    delta_sum: float
    disagreements: Counter[tuple[str, str]]


def compare(
    classes: Sequence[str],
    logits: NDArray[np.float32],
    other_classes: Sequence[str],
    other_logits: NDArray[np.float32],
) -> Comparison:
    """Compare the answers of two models.

    Args:
        classes: of the one, in the order of its logits.
        logits: (images, classes).
        other_classes: of the other.
        other_logits: (images, other classes), of the same images.
    """
    names = list(dict.fromkeys([*classes, *other_classes]))
    place = {name: index for index, name in enumerate(names)}
    p = _spread(logits, [place[name] for name in classes], len(names))
    q = _spread(other_logits, [place[name] for name in other_classes], len(names))
    best, other_best = p.argmax(axis=1), q.argmax(axis=1)
    differing = np.flatnonzero(best != other_best)
    return Comparison(
        images=len(p),
        agreed=len(p) - len(differing),
        delta_sum=float(np.abs(p - q).mean(axis=1).sum()),
        disagreements=Counter((names[best[i]], names[other_best[i]]) for i in differing),
    )


def _spread(logits: NDArray[np.float32], places: Sequence[int], width: int) -> NDArray[np.float64]:
    """Return softmax probabilities in columns that both models share."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = np.zeros((len(logits), width))
    probabilities[:, places] = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities
