"""Means with their spread, and paired differences with their confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Some numbers in short.

    Attributes:
        count: how many there are.
        mean: their mean.
        deviation: their sample standard deviation; None of a single one.
    """

    count: int
    mean: float
    deviation: float | None

    @property
    def half_width(self) -> float | None:
        """Half the width of Student's 95 % interval of the mean; None of a single number.

        t(0.975, n - 1) · s / √n, which takes the numbers for independent draws of a normal
        distribution.
        """
        if self.deviation is None:
            return None
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.count - 1))
        return quantile * self.deviation / math.sqrt(self.count)

    @property
    def has_zero(self) -> bool:
        """Whether the interval contains zero; that of a single number is unbounded and does."""
        return self.half_width is None or abs(self.mean) <= self.half_width


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of at least one number."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.mean(values), deviation)


@dataclass(frozen=True)
class Record:
    """How often a variant was above, level with and below its twin."""

    wins: int
    ties: int
    losses: int


def count_signs(differences: Sequence[float], *, tolerance: float = 1e-9) -> Record:
    """Return how many differences are above zero, zero and below it."""
    wins = sum(value > tolerance for value in differences)
    losses = sum(value < -tolerance for value in differences)
    return Record(wins, len(differences) - wins - losses, losses)
