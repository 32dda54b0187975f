"""The reliability diagram: accuracy against confidence, before and after temperature scaling."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from core.ml.analysis.evaluation import build_calibration
from core.ml.analysis.figures.base import Data, Options
from core.ml.analysis.figures.style import COLOURS, Drawing, new_figure
from core.ml.analysis.inputs import AnalysisInputs, Role

_GAP_COLOUR = "#D55E00"


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the diagram of the student on the evaluated split."""
    data: Data = {
        "split": inputs.evaluated.value,
        "images": len(inputs.predict(Role.STUDENT, inputs.evaluated)),
        **build_calibration(inputs),
    }
    return Drawing(data, draw(data))


def draw(data: Data) -> Figure:
    """Draw one column for each side of the scaling: accuracies above, numbers of images below."""
    columns = [("before scaling", data["reliability_before"], data["ece_before"])]
    if data["reliability_after"] is not None:
        title = f"after scaling with T = {data['temperature']:.3g}"
        columns.append((title, data["reliability_after"], data["ece_after"]))
    figure = new_figure(1.2 + 4.4 * len(columns), 6.4)
    grid = figure.subplots(
        2, len(columns), height_ratios=(3, 1), sharex=True, sharey="row", squeeze=False
    )
    for column, (title, bins, error) in enumerate(columns):
        upper, lower = grid[:, column]
        _draw_column(upper, lower, bins, data["images"])
        upper.set_title(f"{title}\nexpected calibration error {100 * error:.2f} %")
        lower.set_xlabel("confidence (probability of the predicted class)")
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("images, %")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    note = "" if data["temperature"] is not None else f"\nno scaling: {data['temperature_note']}"
    figure.suptitle(
        f"Reliability, {data['split']} split, {data['images']:,} images, {data['bins']} bins{note}"
    )
    return figure


def _draw_column(upper: Any, lower: Any, bins: list[dict[str, Any]], images: int) -> None:  # noqa: ANN401
    there = [entry for entry in bins if entry["images"]]
    left = np.array([entry["lower"] for entry in there])
    width = np.array([entry["upper"] for entry in there]) - left
    accuracy = np.array([entry["accuracy"] for entry in there])
    confidence = np.array([entry["confidence"] for entry in there])
    style = {"align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(left, accuracy, width, color=COLOURS[Role.STUDENT], label="accuracy", **style)
    upper.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor="none",
        edgecolor=_GAP_COLOUR,
        linewidth=0.8,
        hatch="////",
        label="gap to the mean confidence",
    )
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1.0)
    shares = 100 * np.array([entry["images"] for entry in there]) / images
    lower.bar(left, shares, width, color="#7F7F7F", **style)
