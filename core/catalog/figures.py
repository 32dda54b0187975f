"""The figures that a job can ask for, by name, with what each takes as options."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

#: What the trainer leaves in its output folder beside the model: the evaluation, and for each
#: figure NAME.json and, where it could be drawn, NAME.png.
EVALUATION_FILE = "evaluation.json"
FIGURES_DIR = "figures"


class FigureName(StrEnum):
    """A figure that the worker draws after training."""

    WEIGHT_HISTOGRAMS = "weight_histograms"
    LEARNING_CURVES = "learning_curves"
    AGREEMENT = "agreement"
    CONFUSION_MATRIX = "confusion_matrix"
    TSNE = "tsne"
    ATTENTION_MAP = "attention_map"
    RELIABILITY = "reliability"


class FigureStatus(StrEnum):
    """Whether a figure that was asked for is there."""

    READY = "ready"  #: as data and as a picture
    NOT_AVAILABLE = "not_available"  #: cannot be made of this run; the data says why
    FAILED = "failed"  #: broke while it was made; the model is not affected


@dataclass(frozen=True)
class FigureFacts:
    """What there is to know of a figure before it is drawn.

    Attributes:
        summary: one sentence for people.
        options: what a request may add to its name: option -> what it means.
    """

    summary: str
    options: Mapping[str, str]


FIGURES: dict[FigureName, FigureFacts] = {
    FigureName.WEIGHT_HISTOGRAMS: FigureFacts(
        "Distributions of W_down and W_up in every layer, with measures of their spread.", {}
    ),
    FigureName.LEARNING_CURVES: FigureFacts(
        "Losses, accuracies and learning rate of every epoch, teacher and student.", {}
    ),
    FigureName.AGREEMENT: FigureFacts(
        "How often teacher and student say the same, and who of them is right.", {}
    ),
    FigureName.CONFUSION_MATRIX: FigureFacts("Which class is taken for which.", {}),
    FigureName.TSNE: FigureFacts(
        "Images by their features, before and after training, with measures of separation.", {}
    ),
    FigureName.ATTENTION_MAP: FigureFacts(
        "Where in an image the last block looks.",
        {"item": "Name of the image in the dataset; absent: the first test or validation image."},
    ),
    FigureName.RELIABILITY: FigureFacts(
        "Whether predictions made with 80 % confidence are right in 80 % of the cases.", {}
    ),
}
