"""Losses, accuracies and the learning rate of every epoch."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from core.ml.analysis.arrays import rounded_or_none
from core.ml.analysis.figures.base import Data, NotAvailableError, Options
from core.ml.analysis.figures.style import (
    COLOURS,
    FROZEN_COLOUR,
    LABELS,
    Drawing,
    count_epochs_on,
    new_figure,
)
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.training.run_state import EpochMetrics


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the curves of student, teacher and plain twin.

    Raises:
        NotAvailableError: no epoch was recorded.
    """
    history = inputs.histories[Role.STUDENT]
    if not history:
        raise NotAvailableError("the run recorded no epoch")
    data = build_data(
        history, inputs.histories.get(Role.BASELINE), best_epoch=inputs.best_epoch + 1
    )
    return Drawing(data, draw(data))


def build_data(
    history: Sequence[EpochMetrics], baseline: Sequence[EpochMetrics] | None, *, best_epoch: int
) -> Data:
    """Return every curve as a list with one value an epoch, None where it was not measured.

    Args:
        history: of the run.
        baseline: of the plain twin; None without one.
        best_epoch: from 1, whose weights the model has.
    """
    models = {
        Role.STUDENT.value: {
            "train_loss": _column(epoch.ce_student for epoch in history),
            "val_loss": _column(epoch.val_loss for epoch in history),
            "val_accuracy": _column(epoch.val_accuracy for epoch in history),
        }
    }
    if history[0].ce_teacher is not None:
        models[Role.TEACHER.value] = {
            "train_loss": _column(epoch.ce_teacher for epoch in history),
            "val_loss": _column(epoch.teacher_val_loss for epoch in history),
            "val_accuracy": _column(epoch.teacher_val_accuracy for epoch in history),
        }
    if baseline:
        models[Role.BASELINE.value] = {
            "train_loss": _column(epoch.ce_student for epoch in baseline),
            "val_loss": _column(epoch.val_loss for epoch in baseline),
            "val_accuracy": _column(epoch.val_accuracy for epoch in baseline),
        }
    return {
        "epochs": [epoch.epoch + 1 for epoch in history],
        "best_epoch": best_epoch,
        "learning_rate": _column(epoch.lr for epoch in history),
        "total_loss": _column(epoch.train_loss for epoch in history),
        "distillation_loss": _column(epoch.distillation for epoch in history),
        "models": models,
    }


def draw(data: Data) -> Figure:
    """Draw cross-entropy, accuracy, distillation loss and learning rate, one panel each."""
    figure = new_figure(11, 7)
    (losses, accuracies), (ties, rates) = figure.subplots(2, 2)
    marker = "o" if len(data["epochs"]) == 1 else None
    for role in Role:
        curves = data["models"].get(role.value)
        if curves is None:
            continue
        epochs = list(range(1, len(curves["train_loss"]) + 1))
        style = {"color": COLOURS[role], "marker": marker}
        losses.plot(epochs, _gaps(curves["train_loss"]), label=LABELS[role], **style)
        if _has_values(curves["val_loss"]):
            losses.plot(epochs, _gaps(curves["val_loss"]), linestyle="--", **style)
            percents = [None if share is None else 100 * share for share in curves["val_accuracy"]]
            accuracies.plot(epochs, _gaps(percents), **style)
    with_validation = bool(accuracies.lines)
    for axes in (losses, accuracies):
        axes.axvline(
            data["best_epoch"], color="black", linewidth=0.8, linestyle=":", label="chosen epoch"
        )
    title = "Cross-entropy: train (solid), validation (dashed)"
    _finish(losses, title if with_validation else "Cross-entropy: train", "nats")
    _finish(accuracies, "Accuracy on the validation split", "%")
    if not with_validation:
        _say(accuracies, "there is no validation split")
    if _has_values(data["distillation_loss"]):
        ties.plot(data["epochs"], _gaps(data["distillation_loss"]), color="#CC79A7", marker=marker)
        _finish(ties, "Distillation loss, before its weight", "")
    else:
        _finish(ties, "Distillation loss", "")
        _say(ties, "there is no teacher")
    rates.plot(data["epochs"], _gaps(data["learning_rate"]), color=FROZEN_COLOUR, marker=marker)
    _finish(rates, "Learning rate", "")
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(f"Learning curves; the model is that of epoch {data['best_epoch']}")
    return figure


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    count_epochs_on(axes)


def _say(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes)


def _column(values: Iterable[float | None]) -> list[float | None]:
    return [rounded_or_none(value) for value in values]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _has_values(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)
