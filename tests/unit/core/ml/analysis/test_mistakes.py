import numpy as np
import pytest

from core.ml.analysis import mistakes
from core.ml.analysis.inputs import Role
from core.ml.analysis.mistakes import list_misclassified, list_suspect_labels
from core.types import Split
from tests.unit.core.ml.analysis.made import make_inputs


def logits(*rows):
    """Rows of (class, its probability) of three classes, the rest shared equally."""
    made = []
    for label, probability in rows:
        row = np.full(3, (1 - probability) / 2)
        row[label] = probability
        made.append(np.log(row))
    return np.array(made)


LABELS = {Split.TRAIN: [0, 1], Split.VAL: [2], Split.TEST: [0, 1, 2, 0]}


def build(student, teacher=None):
    said = {Role.STUDENT: student}
    if teacher is not None:
        said[Role.TEACHER] = teacher
    return make_inputs(3, LABELS, said)


STUDENT = {
    Split.TRAIN: logits((0, 0.9), (2, 0.8)),
    Split.VAL: logits((0, 0.95)),
    Split.TEST: logits((1, 0.6), (1, 0.9), (0, 0.99), (2, 0.75)),
}
TEACHER = {
    Split.TRAIN: logits((1, 0.99), (2, 0.71)),
    Split.VAL: logits((0, 0.65)),
    Split.TEST: logits((1, 0.9), (0, 0.9), (1, 0.99), (2, 0.9)),
}


class TestMisclassified:
    def test_the_surest_first_with_what_everyone_says(self):
        found = list_misclassified(build(STUDENT, TEACHER), Split.TEST)
        assert (found["total"], found["limit"]) == (3, 200)
        assert [(item["name"], item["confidence"]) for item in found["items"]] == [
            ("test/00002.png", 0.99),
            ("test/00003.png", 0.75),
            ("test/00000.png", 0.6),
        ]
        first = found["items"][0]
        assert (first["true"], first["predicted"]) == ("class 002", "class 000")
        assert first["teacher_predicted"] == "class 001"
        assert first["true_confidence"] == pytest.approx(0.005)

    def test_index_is_the_row_of_the_manifest(self):
        inputs = build(STUDENT)
        for item in list_misclassified(inputs, Split.TEST)["items"]:
            assert inputs.manifest.items[item["index"]].name == item["name"]
            assert item["teacher_predicted"] is None

    def test_the_list_is_bounded_and_the_total_is_not(self, monkeypatch):
        monkeypatch.setattr(mistakes, "MISCLASSIFIED_LIMIT", 2)
        found = list_misclassified(build(STUDENT), Split.TEST)
        assert (found["total"], len(found["items"])) == (3, 2)


class TestSuspects:
    def test_both_must_deny_the_label_alike_and_with_confidence(self):
        found = list_suspect_labels(build(STUDENT, TEACHER))
        # Not: val/0 (teacher 0.65), test/0 (student 0.6), test/2 (they differ), train/0 (right).
        assert [(item["name"], item["score"]) for item in found["items"]] == [
            ("test/00003.png", 0.75),
            ("train/00001.png", 0.71),
        ]
        assert found["total"] == 2
        first = found["items"][0]
        assert (first["label"], first["suggested"], first["split"]) == (
            "class 000",
            "class 002",
            "test",
        )
        assert (first["student_confidence"], first["teacher_confidence"]) == (0.75, 0.9)
        assert "lower of both" in found["rule"]

    def test_without_a_teacher_the_student_decides(self):
        found = list_suspect_labels(build(STUDENT))
        assert [item["name"] for item in found["items"]] == [
            "test/00002.png",
            "val/00000.png",
            "train/00001.png",
            "test/00003.png",
        ]
        assert all(item["teacher_confidence"] is None for item in found["items"])
        assert "alone" in found["rule"]

    def test_the_list_is_bounded(self, monkeypatch):
        monkeypatch.setattr(mistakes, "SUSPECT_LIMIT", 1)
        found = list_suspect_labels(build(STUDENT))
        assert (found["total"], len(found["items"])) == (4, 1)
