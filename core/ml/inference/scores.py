"""From logits to the scores of classes: where every protocol and every batch gets its numbers.

Knows no torch, and takes no time to import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class OutputFunction(StrEnum):
    """What turns logits into scores; named as the Hugging Face task names it."""

    SOFTMAX = "softmax"  #: probabilities that add up to 1
    SIGMOID = "sigmoid"  #: each class on its own, in 0..1
    NONE = "none"  #: the logits themselves


@dataclass(frozen=True)
class Ranked:
    """One class of an image.

    Attributes:
        index: its place in the model's classes.
        label: its name.
        score: after the function.
    """

    index: int
    label: str
    score: float


def apply_function(logits: NDArray[np.float32], function: OutputFunction) -> NDArray[np.float32]:
    """Return scores of the shape of the logits, (images, classes).

    Computed in double precision and rounded once, so that all protocols give the same float32.
    """
    values = logits.astype(np.float64)
    if function is OutputFunction.SOFTMAX:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        values = powers / powers.sum(axis=1, keepdims=True)
    elif function is OutputFunction.SIGMOID:
        # Of -|x|, so that exp cannot overflow: 1 / (1 + exp(-x)) = exp(x) / (1 + exp(x)).
        powers = np.exp(-np.abs(values))
        values = np.where(values >= 0, 1.0, powers) / (1.0 + powers)
    return values.astype(np.float32)


def rank_classes(
    logits: NDArray[np.float32],
    classes: Sequence[str],
    *,
    top_k: int,
    function: OutputFunction = OutputFunction.SOFTMAX,
) -> list[list[Ranked]]:
    """Return each image's `top_k` likeliest classes, best first.

    The order is that of the logits, which still tells classes apart whose probabilities round to
    the same number; equal logits keep the order of the classes.

    Args:
        logits: (images, classes).
        classes: their names.
        top_k: classes per image, at least 1; a model with fewer gives all it has.
        function: applied to the logits.
    """
    scores = apply_function(logits, function)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return [
        [Ranked(int(index), classes[index], float(row[index])) for index in order]
        for row, order in zip(scores, best, strict=True)
    ]


def is_rejected(ranked: Sequence[Ranked], threshold: float | None) -> bool:
    """Return whether an image's best score is below the threshold; None rejects nothing.

    Args:
        ranked: its classes, best first.
        threshold: after the function, as the scores are.
    """
    return threshold is not None and ranked[0].score < threshold
