"""Teacher and student side by side: the same answers, and who is right."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.ml.analysis.agreement import compare
from core.ml.analysis.arrays import rounded, rounded_or_none
from core.ml.analysis.figures.base import Data, NotAvailableError, Options
from core.ml.analysis.figures.style import (
    COLOURS,
    Drawing,
    count_epochs_on,
    new_figure,
    percent,
)
from core.ml.analysis.inputs import AnalysisInputs, Role


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the comparison on the evaluated split, and the distillation loss of every epoch.

    Raises:
        NotAvailableError: there is no teacher.
    """
    if Role.TEACHER not in inputs.models:
        raise NotAvailableError("the run had no teacher to agree with; the method idat has one")
    split = inputs.evaluated
    student, teacher = (inputs.predict(role, split) for role in (Role.STUDENT, Role.TEACHER))
    history = inputs.histories[Role.STUDENT]
    data: Data = {
        "split": split.value,
        "student_accuracy": rounded(student.correct.mean()),
        "teacher_accuracy": rounded(teacher.correct.mean()),
        **compare(student, teacher).to_json("student", "teacher"),
        "epochs": [epoch.epoch + 1 for epoch in history],
        "distillation_loss": [rounded_or_none(epoch.distillation) for epoch in history],
        "val_accuracy_gap": [
            None
            if epoch.val_accuracy is None or epoch.teacher_val_accuracy is None
            else rounded(epoch.val_accuracy - epoch.teacher_val_accuracy)
            for epoch in history
        ],
    }
    return Drawing(data, draw(data))


def draw(data: Data) -> Figure:
    """Draw the table of right and wrong, the distillation loss, and the gap in accuracy."""
    figure = new_figure(13, 4.3)
    table, ties, gaps = figure.subplots(1, 3)
    _draw_table(table, data)
    marker = "o" if len(data["epochs"]) == 1 else None
    losses = [np.nan if value is None else value for value in data["distillation_loss"]]
    ties.plot(data["epochs"], losses, color="#CC79A7", marker=marker)
    ties.set_title("Distillation loss, before its weight")
    count_epochs_on(ties)
    gaps.set_title("Validation accuracy: student less teacher")
    gaps.set_ylabel("percentage points")
    count_epochs_on(gaps)
    gaps.axhline(0, color="black", linewidth=0.8)
    points = [np.nan if gap is None else 100 * gap for gap in data["val_accuracy_gap"]]
    if np.isnan(points).all():
        gaps.text(
            0.5,
            0.7,
            "there is no validation split",
            ha="center",
            va="center",
            transform=gaps.transAxes,
        )
    else:
        gaps.plot(data["epochs"], points, color=COLOURS[Role.STUDENT], marker=marker)
    figure.suptitle(
        f"Teacher and student give the same answer on {percent(data['share'])} of "
        f"{data['images']:,} images ({data['split']} split)"
    )
    return figure


def _draw_table(axes: Axes, data: Data) -> None:
    wrong = data["both_wrong_same_class"] + data["both_wrong_different_classes"]
    cells = np.array(
        [
            [data["both_right"], data["only_student_right"]],
            [data["only_teacher_right"], wrong],
        ]
    )
    shares = cells / data["images"]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    notes: dict[tuple[int, ...], str] = {
        (1, 1): f"\n\nof these {data['both_wrong_same_class']:,}\nin the same class"
    }
    for place, images in np.ndenumerate(cells):
        row, column = place
        style: dict[str, Any] = {"color": "white" if shares[row, column] > 0.55 else "black"}  # noqa: PLR2004
        text = f"{images:,}\n{percent(shares[row, column])}{notes.get(place, '')}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, **style)
    axes.axhline(0.5, color="white", linewidth=3)
    axes.axvline(0.5, color="white", linewidth=3)
    axes.set_xticks([0, 1], ["right", "wrong"])
    axes.set_yticks([0, 1], ["right", "wrong"])
    axes.set_xlabel(f"teacher ({percent(data['teacher_accuracy'])} right)")
    axes.set_ylabel(f"student ({percent(data['student_accuracy'])} right)")
    axes.set_title("Images by who classifies them correctly")
    axes.grid(visible=False)
