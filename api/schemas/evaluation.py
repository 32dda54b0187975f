"""The evaluation of a model on the wire: what `core.ml.analysis.evaluation` writes, field by field.

All accuracies, shares and probabilities run from 0 to 1.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassEvaluation(_Part):
    """How one class is recognised."""

    name: str = Field(alias="class")
    precision: float = Field(description="Of the images taken for it; 0 where none was.")
    recall: float | None = Field(description="Of its images; null where there are none.")
    f1: float | None = Field(description="Harmonic mean of both; null without images.")
    support: int = Field(description="Its images in the split.")


class MacroAverages(_Part):
    """Plain means over the classes that have images in the split."""

    precision: float
    recall: float
    f1: float


class ConfusedPair(_Part):
    """A class that is taken for another."""

    true: str
    predicted: str
    images: int
    share: float = Field(description="Of the true class's images.")


class ReliabilityBin(_Part):
    """The images whose confidence (the probability of the predicted class) lies in a range."""

    lower: float = Field(description="Not in the bin, except 0.")
    upper: float = Field(description="In the bin.")
    images: int
    confidence: float | None = Field(description="Mean; null in an empty bin.")
    accuracy: float | None = Field(description="Share of right ones; null in an empty bin.")


class Calibration(_Part):
    """Whether the model is right as often as it is sure, before and after temperature scaling."""

    bins: int = Field(description="Of equal width.")
    ece_before: float = Field(
        description="Expected calibration error: mean of |accuracy - confidence| of the bins, "
        "weighted by their images."
    )
    ece_after: float | None = Field(description="With logits divided by the temperature.")
    loss_before: float = Field(description="Cross-entropy in nats.")
    loss_after: float | None
    temperature: float | None = Field(
        description="What minimises the cross-entropy of the validation split when the logits are "
        "divided by it; above 1 the model is too sure. Null without a validation split."
    )
    temperature_at_limit: bool = Field(
        description="The best value lies outside of the range that is searched, 0.05 to 20."
    )
    temperature_note: str = Field(description="On what it was fitted, or why it was not.")
    reliability_before: list[ReliabilityBin]
    reliability_after: list[ReliabilityBin] | None


class MisclassifiedItem(_Part):
    """An image that the model takes for another class."""

    index: int = Field(description="Its row in the dataset's manifest.")
    name: str = Field(description="Its path inside the uploaded archive.")
    true: str
    predicted: str
    confidence: float = Field(description="Probability of the predicted class.")
    true_confidence: float = Field(description="Probability of the true class.")
    teacher_predicted: str | None = Field(description="Null without a teacher.")


class Misclassified(_Part):
    """The mistakes on the evaluated split, the surest first."""

    total: int
    limit: int = Field(description="Most items listed.")
    items: list[MisclassifiedItem]


class SuspectLabel(_Part):
    """An image whose label the trained models deny."""

    index: int = Field(description="Its row in the dataset's manifest.")
    name: str = Field(description="Its path inside the uploaded archive.")
    split: Literal["train", "val", "test"] = Field(
        description="The models have learnt the labels of train, so doubts there are rarer."
    )
    label: str = Field(description="As uploaded.")
    suggested: str = Field(description="What the models predict.")
    score: float = Field(description="See `rule`.")
    student_confidence: float
    teacher_confidence: float | None = Field(description="Null without a teacher.")


class SuspectLabels(_Part):
    """Images of all splits whose label may be wrong, the highest score first."""

    rule: str = Field(description="How an image gets into the list, and its score.")
    total: int
    limit: int = Field(description="Most items listed.")
    items: list[SuspectLabel]


class TeacherAgreement(_Part):
    """Student and teacher on the same images."""

    images: int
    share: float = Field(description="Images that both put into the same class.")
    both_right: int
    only_student_right: int
    only_teacher_right: int
    both_wrong_same_class: int
    both_wrong_different_classes: int


class BaselineAgreement(_Part):
    """Student and plain twin on the same images."""

    images: int
    share: float = Field(description="Images that both put into the same class.")
    both_right: int
    only_student_right: int
    only_baseline_right: int
    both_wrong_same_class: int
    both_wrong_different_classes: int


class _Headline(_Part):
    top1_accuracy: float
    top5_accuracy: float | None = Field(
        description="Null below six classes, where five are (nearly) all there are."
    )
    loss: float = Field(description="Mean cross-entropy in nats.")
    macro: MacroAverages


class TeacherEvaluation(_Headline):
    """The teacher, trained together with the student, on the same images."""

    backbone: str = Field(description="timm name.")
    ece: float = Field(description="Expected calibration error, not scaled.")
    agreement: TeacherAgreement


class BaselineEvaluation(_Headline):
    """The same student trained without a teacher, on the same images."""

    ece: float = Field(description="Expected calibration error, not scaled.")
    gain: float = Field(
        description="Top-1 accuracy of the student less that of the twin; negative where the "
        "teacher did harm."
    )
    gain_p_value: float = Field(
        description="Exact two-sided McNemar test: how likely so large a difference would be if "
        "both were equally good. It knows one run of each; seeds vary more."
    )
    agreement: BaselineAgreement


class Evaluation(_Headline):
    """How a model does on images that it was not trained on."""

    object: Literal["model.evaluation"]
    version: int = Field(description="Of this form.")
    split: Literal["test", "val", "train"] = Field(
        description="What was measured on: test, else val, else train."
    )
    split_note: str = Field(description="How far figures of that split can be trusted.")
    images: int
    classes: list[str] = Field(description="In the order of the matrix.")
    per_class: list[ClassEvaluation]
    confusion_matrix: list[list[int]] = Field(
        description="Images by true class (row) and predicted class (column)."
    )
    most_confused: list[ConfusedPair]
    calibration: Calibration
    misclassified: Misclassified
    suspect_labels: SuspectLabels
    teacher: TeacherEvaluation | None = Field(description="Null without a teacher.")
    baseline: BaselineEvaluation | None = Field(
        description="Null unless the job asked for `compare_baseline`."
    )
