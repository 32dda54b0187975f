"""Plain arithmetic that several analyses share, and the form in which numbers go into JSON."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: Digits that a number keeps in JSON: more than any of these figures is good for.
SIGNIFICANT_DIGITS = 6


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log softmax over the last axis; never infinite for finite logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def rounded(value: float | np.floating) -> float:
    """Return a finite number with `SIGNIFICANT_DIGITS`.

    Raises:
        ValueError: it is not finite, and so no JSON number.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} cannot be written as JSON")
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")


def rounded_or_none(value: float | np.floating | None) -> float | None:
    """Return `rounded(value)`, or None for a figure that is not defined or not finite."""
    return None if value is None or not math.isfinite(value) else rounded(value)


def rounded_list(values: Iterable[float]) -> list[float]:
    """Return every value rounded."""
    return [rounded(value) for value in values]
