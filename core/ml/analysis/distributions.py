"""How widely numbers are spread, and how far two spreads are from each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.ml.analysis.arrays import rounded, rounded_or_none

#: Shape is compared in bins of a fifth of a standard deviation up to six; beyond lie two more bins.
_SHAPE_EDGES = np.concatenate(([-np.inf], np.linspace(-6.0, 6.0, 61), [np.inf]))
_TINY = 1e-3

#: What the measures of `measure_dispersion` are called; all but the sizes are numbers or None.
DISPERSION = (
    "mean",
    "std",
    "std_error",
    "std_sqrt_d",
    "excess_kurtosis",
    "iqr",
    "share_below_0.001",
    "share_below_0.1_std",
    "hoyer",
    "abs_99th_percentile",
    "drift",
)

#: What `compare_shapes` returns.
SHAPE_DISTANCES = ("wasserstein", "jensen_shannon")


def measure_dispersion(
    weights: NDArray[np.float64], initial: NDArray[np.float64], *, width: int
) -> dict[str, Any]:
    """Return measures of the spread of a matrix's entries.

    Args:
        weights: all entries, (n,).
        initial: the same entries before training, (n,).
        width: channels d of the residual stream: for equal output a weight shrinks with sqrt(d).

    Returns:
        By name: `mean`; `std` and its standard error std/2 sqrt((excess kurtosis + 2) / n);
        `std_sqrt_d`; `excess_kurtosis` (0 for a normal distribution); `iqr`, the distance of the
        quartiles; the shares of entries below 0.001 and below a tenth of the std; `hoyer`
        (sqrt(n) - L1/L2) / (sqrt(n) - 1), 0 where all are equally large and 1 where just one is
        not 0; the 99th percentile of the magnitude; `drift` |W - W0| / |W0|. None where a measure
        is not defined: in a constant matrix, or the drift from zeros.
    """
    count = len(weights)
    magnitude = np.abs(weights)
    std = float(weights.std())
    length, start = np.linalg.norm(weights), np.linalg.norm(initial)
    root = np.sqrt(count)
    kurtosis = float(((weights - weights.mean()) ** 4).mean() / std**4 - 3) if std else np.nan
    low, high = np.percentile(weights, [25, 75])
    values = {
        "mean": weights.mean(),
        "std": std,
        "std_error": std / 2 * np.sqrt((kurtosis + 2) / count) if std else np.nan,
        "std_sqrt_d": std * np.sqrt(width),
        "excess_kurtosis": kurtosis,
        "iqr": high - low,
        "share_below_0.001": (magnitude < _TINY).mean(),
        "share_below_0.1_std": (magnitude < std / 10).mean() if std else np.nan,
        "hoyer": (root - magnitude.sum() / length) / (root - 1) if length and count > 1 else np.nan,
        "abs_99th_percentile": np.percentile(magnitude, 99),
        "drift": np.linalg.norm(weights - initial) / start if start else np.nan,
    }
    return {name: rounded_or_none(values[name]) for name in DISPERSION}


def compare_shapes(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> dict[str, float | None]:
    """Return how far the shapes of two samples are apart once mean and std are taken out.

    Returns:
        `wasserstein`, in standard deviations, and `jensen_shannon`, in bits; None if a sample is
        constant.
    """
    one, other = standardise(first), standardise(second)
    if one is None or other is None:
        return dict.fromkeys(SHAPE_DISTANCES)
    distances = (wasserstein_distance(one, other), shape_divergence(one, other))
    return dict(zip(SHAPE_DISTANCES, map(rounded, distances), strict=True))


def standardise(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return values with mean 0 and standard deviation 1; None if they are all equal."""
    std = values.std()
    if std == 0:
        return None
    standardised: NDArray[np.float64] = (values - values.mean()) / std
    return standardised


def wasserstein_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the 1-Wasserstein distance of two samples: the area between their step functions."""
    first, second = np.sort(first), np.sort(second)
    steps = np.sort(np.concatenate((first, second)))
    below_first = np.searchsorted(first, steps[:-1], side="right") / len(first)
    below_second = np.searchsorted(second, steps[:-1], side="right") / len(second)
    return float((np.abs(below_first - below_second) * np.diff(steps)).sum())


def shape_divergence(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the Jensen-Shannon divergence, in bits, of two standardised samples in common bins.

    0 for equal histograms, 1 for disjoint ones. It is never quite 0 between samples: finite ones
    differ by chance, small ones more.
    """
    p, q = (np.histogram(values, _SHAPE_EDGES)[0] / len(values) for values in (first, second))
    middle = (p + q) / 2

    def divergence(part: NDArray[np.float64]) -> float:
        there = part > 0
        return float((part[there] * np.log2(part[there] / middle[there])).sum())

    return (divergence(p) + divergence(q)) / 2
