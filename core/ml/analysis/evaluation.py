"""The evaluation of a finished run: `out/evaluation.json`, `GET /v1/models/{id}/evaluation`.

What each field means is written down once, in `api/schemas/evaluation.py`.
"""

from typing import Any

from core.ml.analysis.agreement import compare
from core.ml.analysis.arrays import rounded
from core.ml.analysis.calibration import BINS, Temperature, fit_temperature, measure_reliability
from core.ml.analysis.classification import (
    class_scores,
    confusion_matrix,
    cross_entropy,
    most_confused,
    top_5_accuracy,
    top_k_accuracy,
)
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.analysis.mistakes import list_misclassified, list_suspect_labels
from core.types import Split

EVALUATION_VERSION = 1
_MOST_CONFUSED = 20

_SPLIT_NOTES = {
    Split.TEST: "no choice in training depended on these images",
    Split.VAL: "there is no test split: the epoch was chosen on these images, so figures of new "
    "images will be somewhat lower",
    Split.TRAIN: "there is neither a test nor a validation split: the model was trained on these "
    "images, so the figures say nothing about new ones",
}


def build_evaluation(inputs: AnalysisInputs) -> dict[str, Any]:
    """Measure the student on the test split (else val, else train), with the others beside it.

    Returns:
        JSON values.
    """
    split = inputs.evaluated
    student = inputs.predict(Role.STUDENT, split)
    matrix = confusion_matrix(student)
    scores = class_scores(matrix)
    return {
        "object": "model.evaluation",
        "version": EVALUATION_VERSION,
        "split": split.value,
        "split_note": _SPLIT_NOTES[split],
        "images": len(student),
        "classes": list(inputs.classes),
        **_headline(inputs, Role.STUDENT),
        "per_class": scores.to_json(inputs.classes),
        "macro": scores.macro(),
        "confusion_matrix": matrix.tolist(),
        "most_confused": most_confused(matrix, inputs.classes, limit=_MOST_CONFUSED),
        "calibration": build_calibration(inputs),
        "misclassified": list_misclassified(inputs, split),
        "suspect_labels": list_suspect_labels(inputs),
        "teacher": _build_teacher(inputs),
        "baseline": _build_baseline(inputs),
    }


def build_calibration(inputs: AnalysisInputs) -> dict[str, Any]:
    """Return the student's calibration before and after temperature scaling.

    The temperature is fitted on the validation split, never on test; without a validation split
    there is none.
    """
    split = inputs.evaluated
    student = inputs.predict(Role.STUDENT, split)
    before = measure_reliability(student)
    calibration: dict[str, Any] = {
        "bins": BINS,
        "ece_before": rounded(before.error),
        "loss_before": rounded(cross_entropy(student)),
        "reliability_before": before.to_json(),
        "temperature": None,
        "temperature_at_limit": False,
        "ece_after": None,
        "loss_after": None,
        "reliability_after": None,
    }
    temperature = find_temperature(inputs)
    if temperature is None:
        note = "there is no validation split to fit a temperature on"
        return {**calibration, "temperature_note": note}
    if split is Split.VAL:
        note = "fitted on the very images that it is measured on: there is no test split"
    elif temperature.at_limit:
        note = "the best value lies beyond the range searched: validation is (nearly) all right"
    else:
        note = "fitted on the validation split"
    after = measure_reliability(student, temperature=temperature.value)
    return {
        **calibration,
        "temperature": rounded(temperature.value),
        "temperature_at_limit": temperature.at_limit,
        "temperature_note": note,
        "ece_after": rounded(after.error),
        "loss_after": rounded(cross_entropy(student, temperature=temperature.value)),
        "reliability_after": after.to_json(),
    }


def find_temperature(inputs: AnalysisInputs) -> Temperature | None:
    """Return the student's temperature, fitted on validation; None without that split."""
    if inputs.find_split(Split.VAL) is None:
        return None
    return fit_temperature(inputs.predict(Role.STUDENT, Split.VAL))


def _headline(inputs: AnalysisInputs, role: Role) -> dict[str, Any]:
    predictions = inputs.predict(role, inputs.evaluated)
    top_5 = top_5_accuracy(predictions)
    return {
        "top1_accuracy": rounded(top_k_accuracy(predictions, 1)),
        "top5_accuracy": None if top_5 is None else rounded(top_5),
        "loss": rounded(cross_entropy(predictions)),
    }


def _build_other(inputs: AnalysisInputs, role: Role) -> dict[str, Any]:
    predictions = inputs.predict(role, inputs.evaluated)
    return {
        **_headline(inputs, role),
        "macro": class_scores(confusion_matrix(predictions)).macro(),
        "ece": rounded(measure_reliability(predictions).error),
    }


def _build_teacher(inputs: AnalysisInputs) -> dict[str, Any] | None:
    if Role.TEACHER not in inputs.models:
        return None
    student, teacher = (
        inputs.predict(role, inputs.evaluated) for role in (Role.STUDENT, Role.TEACHER)
    )
    return {
        "backbone": inputs.models[Role.TEACHER].backbone.name,
        **_build_other(inputs, Role.TEACHER),
        "agreement": compare(student, teacher).to_json("student", "teacher"),
    }


def _build_baseline(inputs: AnalysisInputs) -> dict[str, Any] | None:
    """Return the figures of the plain-adapter twin and the student's gain over it, signed."""
    if Role.BASELINE not in inputs.models:
        return None
    student, baseline = (
        inputs.predict(role, inputs.evaluated) for role in (Role.STUDENT, Role.BASELINE)
    )
    comparison = compare(student, baseline)
    gain = top_k_accuracy(student, 1) - top_k_accuracy(baseline, 1)
    return {
        **_build_other(inputs, Role.BASELINE),
        "gain": rounded(gain),
        "gain_p_value": rounded(comparison.p_value()),
        "agreement": comparison.to_json("student", "baseline"),
    }
