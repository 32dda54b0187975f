"""How two models that look at the same images compare, image by image."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.ml.analysis.arrays import rounded
from core.ml.analysis.predictions import Predictions


@dataclass(frozen=True)
class Agreement:
    """The images of a split, sorted by which of two models is right.

    Attributes:
        both_right: images that both classify correctly.
        only_first: images that the first alone does.
        only_second: images that the second alone does.
        both_wrong_same: images that both take for the same wrong class.
        both_wrong_differently: images that they take for different wrong classes.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong_same: int
    both_wrong_differently: int

    @property
    def images(self) -> int:
        """All of them."""
        wrong = self.both_wrong_same + self.both_wrong_differently
        return self.both_right + self.only_first + self.only_second + wrong

    @property
    def share(self) -> float:
        """Share of images that both put into the same class."""
        return (self.both_right + self.both_wrong_same) / self.images

    def p_value(self) -> float:
        """Return the exact two-sided McNemar test of equal accuracy.

        Under equality each image that just one of them gets right is either's with probability
        1/2: the value is 2 P(X <= min(n, m)) of X ~ Binomial(n + m, 1/2), at most 1.
        """
        total = self.only_first + self.only_second
        low = min(self.only_first, self.only_second)
        log_total = math.lgamma(total + 1) - total * math.log(2)
        tail = math.fsum(
            math.exp(log_total - math.lgamma(k + 1) - math.lgamma(total - k + 1))
            for k in range(low + 1)
        )
        return min(1.0, 2 * tail)

    def to_json(self, first: str, second: str) -> dict[str, Any]:
        """Return the counts under the names of the two models."""
        return {
            "images": self.images,
            "share": rounded(self.share),
            "both_right": self.both_right,
            f"only_{first}_right": self.only_first,
            f"only_{second}_right": self.only_second,
            "both_wrong_same_class": self.both_wrong_same,
            "both_wrong_different_classes": self.both_wrong_differently,
        }


def compare(first: Predictions, second: Predictions) -> Agreement:
    """Compare two models' predictions of the same images."""
    same = first.predicted == second.predicted
    both_wrong = ~first.correct & ~second.correct
    return Agreement(
        both_right=int(np.sum(first.correct & second.correct)),
        only_first=int(np.sum(first.correct & ~second.correct)),
        only_second=int(np.sum(~first.correct & second.correct)),
        both_wrong_same=int(np.sum(both_wrong & same)),
        both_wrong_differently=int(np.sum(both_wrong & ~same)),
    )
