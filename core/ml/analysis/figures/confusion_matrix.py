"""Which class is taken for which, and the worst of it as a list."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.ml.analysis.classification import confusion_matrix, most_confused
from core.ml.analysis.figures.base import Data, Options
from core.ml.analysis.figures.style import Drawing, class_labels, new_figure, percent
from core.ml.analysis.inputs import AnalysisInputs, Role

_LISTED = 20
#: Beyond so many classes the counts no longer fit into the cells.
_COUNTED_CLASSES = 20
#: Inches: a cell with a count, a cell without, the largest matrix.
_CELL_IN, _SMALL_CELL_IN, _LARGEST_IN = 0.5, 0.155, 16.0
_MARGIN_IN, _SMALLEST_IN, _PAIRS_IN, _PAIR_IN = 2.2, 3.0, 4.4, 0.5
#: A label needs this much room, in inches.
_LABEL_IN = 0.13
#: The shade of a cell is its share to this power.
_GAMMA = 0.5
_TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the student's confusion matrix."""
    split = inputs.evaluated
    matrix = confusion_matrix(inputs.predict(Role.STUDENT, split))
    data: Data = {
        "split": split.value,
        "classes": list(inputs.classes),
        "matrix": matrix.tolist(),
        "most_confused": most_confused(matrix, inputs.classes, limit=_LISTED),
    }
    return Drawing(data, draw(data))


def draw(data: Data) -> Figure:
    """Draw the matrix: rows are the true classes, colours their shares, numbers the images."""
    classes, matrix = data["classes"], np.array(data["matrix"])
    count = len(classes)
    cell = _CELL_IN if count <= _COUNTED_CLASSES else _SMALL_CELL_IN
    side = min(max(count * cell, _SMALLEST_IN), _LARGEST_IN)
    height = max(side + _MARGIN_IN, 4.6)
    figure = new_figure(side + _MARGIN_IN + _PAIRS_IN, height)
    left, right = figure.subfigures(
        1, 2, width_ratios=(side + _MARGIN_IN, _PAIRS_IN), squeeze=False
    )[0]
    axes, pairs = left.subplots(), right.subplots()
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.where(support > 0, matrix / np.maximum(support, 1), np.nan)
    colours = mpl.colormaps["Blues"].with_extremes(bad="#EEEEEE")
    # Shares of a few per cent, which most confusions are, must not look like nothing.
    norm = PowerNorm(_GAMMA, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap=colours, norm=norm, interpolation="nearest")
    axes.set_anchor("N")
    _label(axes, class_labels(classes), side)
    if count <= _COUNTED_CLASSES:
        _write_counts(axes, matrix, shares)
    label = "share of the true class's images"
    left.colorbar(image, ax=axes, shrink=0.8, pad=0.02, aspect=30, label=label, ticks=_TICKS)
    _draw_pairs(pairs, data, class_labels(classes), slots=int(height / _PAIR_IN))
    accuracy = np.trace(matrix) / matrix.sum()
    figure.suptitle(
        f"Confusion matrix, {data['split']} split: {matrix.sum():,} images, "
        f"{percent(accuracy)} right"
    )
    return figure


def _label(axes: Axes, names: list[str], side_in: float) -> None:
    """Name rows and columns, every k-th of them where they lie too close."""
    step = int(np.ceil(_LABEL_IN * len(names) / side_in))
    ticks = np.arange(0, len(names), step)
    shown = [names[tick] for tick in ticks]
    size = 8 if side_in / len(names) * step > 0.18 else 6.5  # noqa: PLR2004 - inches
    axes.set_xticks(ticks, shown, rotation=90, fontsize=size)
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)


def _write_counts(axes: Axes, matrix: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    size = 9 if matrix.max() < 1000 else 7  # noqa: PLR2004 - digits that fit
    for (row, column), images in np.ndenumerate(matrix):
        if images:
            colour = "white" if shares[row, column] > 0.4 else "black"  # noqa: PLR2004
            axes.text(
                column, row, str(images), ha="center", va="center", color=colour, fontsize=size
            )


def _draw_pairs(axes: Axes, data: Data, names: list[str], *, slots: int) -> None:
    """List the pairs that are confused most often; `slots` of them would fill the height."""
    axes.set_title("Most often confused: true → predicted", loc="left")
    axes.set_axis_off()
    pairs = data["most_confused"][: min(_LISTED, slots)]
    if not pairs:
        axes.text(0.0, 0.9, "nothing was confused", transform=axes.transAxes)
        return
    index = {name: position for position, name in enumerate(data["classes"])}
    labels = [f"{names[index[p['true']]]} → {names[index[p['predicted']]]}" for p in pairs]
    places = np.arange(len(pairs))
    bars = axes.barh(places, [pair["images"] for pair in pairs], color="#D55E00", height=0.4)
    axes.bar_label(bars, [f"{p['images']} ({percent(p['share'])})" for p in pairs], padding=3)
    for place, label in zip(places, labels, strict=True):
        # Above its bar: names may be long, and beside the bars they would take the room.
        axes.text(0, place - 0.25, label, va="bottom", ha="left", fontsize=8)
    axes.set_ylim(slots - 0.4, -0.9)
    axes.set_xlim(0, max(pair["images"] for pair in pairs) * 1.45)
