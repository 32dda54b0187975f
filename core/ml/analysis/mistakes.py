"""Single images worth a person's look: those that were misclassified, and doubtful labels."""

from typing import Any

import numpy as np

from core.ml.analysis.arrays import rounded
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.types import Split

MISCLASSIFIED_LIMIT = 200
SUSPECT_LIMIT = 200
#: Least probability that each model must give to the other class before a label is doubted.
SUSPECT_CONFIDENCE = 0.7


def list_misclassified(inputs: AnalysisInputs, split: Split) -> dict[str, Any]:
    """Return the student's mistakes on a split, the surest first.

    Returns:
        `{"total", "limit", "items"}`; an item has its row in the manifest and its name, the `true`
        and the `predicted` class, the probability of both (`confidence` is the predicted one's),
        and what the teacher predicts (None without one).
    """
    student = inputs.predict(Role.STUDENT, split)
    teacher = inputs.predict(Role.TEACHER, split) if Role.TEACHER in inputs.models else None
    wrong = np.flatnonzero(~student.correct)
    order = wrong[np.argsort(-student.confidence[wrong], kind="stable")]
    indices, classes = inputs.manifest.indices(split), inputs.classes
    items = [
        {
            "index": int(indices[row]),
            "name": inputs.manifest.items[indices[row]].name,
            "true": classes[student.labels[row]],
            "predicted": classes[student.predicted[row]],
            "confidence": rounded(student.confidence[row]),
            "true_confidence": rounded(student.probabilities[row, student.labels[row]]),
            "teacher_predicted": None if teacher is None else classes[teacher.predicted[row]],
        }
        for row in order[:MISCLASSIFIED_LIMIT]
    ]
    return {"total": len(wrong), "limit": MISCLASSIFIED_LIMIT, "items": items}


def list_suspect_labels(inputs: AnalysisInputs) -> dict[str, Any]:
    """Return the images of all splits whose label the trained models deny together.

    A label is suspect if student and teacher predict the same class, another one than the label
    says, each with at least `SUSPECT_CONFIDENCE`; its score is the lower of the two probabilities.
    Without a teacher the student's alone decides. Images of the train split are told apart by
    `split`: both models have learnt their labels, wrong ones too, so one that is doubted all the
    same weighs more, and one that is not says little.

    Returns:
        `{"rule", "total", "limit", "items"}`, the highest score first.
    """
    paired = Role.TEACHER in inputs.models
    found: list[dict[str, Any]] = []
    for split in inputs.splits:
        student = inputs.predict(Role.STUDENT, split)
        score, denied = student.confidence, ~student.correct
        if paired:
            teacher = inputs.predict(Role.TEACHER, split)
            score = np.minimum(score, teacher.confidence)
            denied = denied & (teacher.predicted == student.predicted)
        indices = inputs.manifest.indices(split)
        found.extend(
            {
                "index": int(indices[row]),
                "name": inputs.manifest.items[indices[row]].name,
                "split": split.value,
                "label": inputs.classes[student.labels[row]],
                "suggested": inputs.classes[student.predicted[row]],
                "score": rounded(score[row]),
                "student_confidence": rounded(student.confidence[row]),
                "teacher_confidence": rounded(teacher.confidence[row]) if paired else None,
            }
            for row in np.flatnonzero(denied & (score >= SUSPECT_CONFIDENCE))
        )
    found.sort(key=lambda item: (-item["score"], item["index"]))
    who = "student and teacher both predict" if paired else "the student, alone, predicts"
    rule = (
        f"{who} the suggested class with a probability of at least {SUSPECT_CONFIDENCE}; the score "
        f"is {'the lower of both probabilities' if paired else 'that probability'}. The models "
        "were trained on the labels of the train split, so doubts there are rarer than mistakes."
    )
    return {
        "rule": rule,
        "total": len(found),
        "limit": SUSPECT_LIMIT,
        "items": found[:SUSPECT_LIMIT],
    }
