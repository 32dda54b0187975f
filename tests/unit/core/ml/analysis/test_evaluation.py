import json

import numpy as np
import pytest

from core.ml.analysis.calibration import fit_temperature
from core.ml.analysis.evaluation import build_evaluation
from core.ml.analysis.inputs import Role
from core.ml.analysis.predictions import Predictions
from core.types import Split
from tests.unit.core.ml.analysis.made import draw_logits, make_inputs

CLASSES = 7


def labels_of(count, seed):
    return np.random.default_rng(seed).integers(0, CLASSES, count).tolist()


LABELS = {Split.TRAIN: labels_of(50, 0), Split.VAL: labels_of(60, 1), Split.TEST: labels_of(90, 2)}


def evaluate(*, labels=LABELS, roles=tuple(Role), skills=(2.0, 1.0, 1.5), **changes):
    logits = {
        role: {
            split: draw_logits(given, CLASSES, seed=10 * index + place, skill=skills[index])
            for place, (split, given) in enumerate(labels.items())
            if given
        }
        for index, role in enumerate(roles)
    }
    inputs = make_inputs(CLASSES, labels, logits, **changes)
    return inputs, build_evaluation(inputs)


class TestSplit:
    @pytest.mark.parametrize(
        ("empty", "wanted", "said"),
        [
            ((), "test", "no choice"),
            ((Split.TEST,), "val", "chosen on these"),
            ((Split.TEST, Split.VAL), "train", "nothing about new ones"),
        ],
    )
    def test_test_else_validation_else_train_and_says_so(self, empty, wanted, said):
        labels = {split: [] if split in empty else given for split, given in LABELS.items()}
        inputs, evaluation = evaluate(labels=labels)
        assert evaluation["split"] == wanted
        assert said in evaluation["split_note"]
        assert evaluation["images"] == len(LABELS[Split(wanted)])
        student = inputs.predict(Role.STUDENT, Split(wanted))
        assert evaluation["top1_accuracy"] == pytest.approx(student.correct.mean(), rel=1e-5)


class TestCalibration:
    def test_the_temperature_is_that_of_validation(self):
        inputs, evaluation = evaluate()
        calibration = evaluation["calibration"]
        wanted = fit_temperature(inputs.predict(Role.STUDENT, Split.VAL)).value
        of_test = fit_temperature(inputs.predict(Role.STUDENT, Split.TEST)).value
        assert calibration["temperature"] == pytest.approx(wanted, rel=1e-5)
        assert abs(wanted - of_test) > 0.01
        assert calibration["loss_after"] != calibration["loss_before"]

    def test_test_labels_do_not_move_it_and_validation_labels_do(self):
        before = evaluate()[1]["calibration"]["temperature"]
        turned = {**LABELS, Split.TEST: LABELS[Split.TEST][::-1]}
        assert evaluate(labels=turned)[1]["calibration"]["temperature"] == before
        turned = {**LABELS, Split.VAL: LABELS[Split.VAL][::-1]}
        assert evaluate(labels=turned)[1]["calibration"]["temperature"] != before

    def test_without_validation_there_is_none_and_a_reason(self):
        calibration = evaluate(labels={**LABELS, Split.VAL: []})[1]["calibration"]
        assert calibration["temperature"] is None
        assert calibration["ece_after"] is calibration["reliability_after"] is None
        assert calibration["ece_before"] > 0
        assert "no validation split" in calibration["temperature_note"]

    def test_on_the_split_that_it_was_fitted_on_it_says_so(self):
        calibration = evaluate(labels={**LABELS, Split.TEST: []})[1]["calibration"]
        assert "very images" in calibration["temperature_note"]
        assert calibration["loss_after"] <= calibration["loss_before"]


class TestOthers:
    def test_the_gain_has_its_sign(self):
        inputs, evaluation = evaluate(skills=(1.0, 1.0, 4.0))  # the twin is the best
        student, twin = (
            inputs.predict(role, Split.TEST).correct for role in (Role.STUDENT, Role.BASELINE)
        )
        baseline = evaluation["baseline"]
        assert baseline["gain"] == pytest.approx(student.mean() - twin.mean(), rel=1e-5)
        assert baseline["gain"] < 0
        assert baseline["gain_p_value"] < 0.05
        assert baseline["agreement"]["only_baseline_right"] == (twin & ~student).sum()

    def test_an_equal_twin_is_no_gain(self):
        logits = {Split(s): draw_logits(g, CLASSES, seed=4) for s, g in LABELS.items()}
        inputs = make_inputs(CLASSES, LABELS, {Role.STUDENT: logits, Role.BASELINE: logits})
        baseline = build_evaluation(inputs)["baseline"]
        assert (baseline["gain"], baseline["gain_p_value"]) == (0, 1)

    def test_without_them_there_is_null(self):
        evaluation = evaluate(roles=(Role.STUDENT,))[1]
        assert evaluation["teacher"] is evaluation["baseline"] is None

    def test_the_teacher_has_figures_of_its_own(self):
        inputs, evaluation = evaluate()
        teacher = inputs.predict(Role.TEACHER, Split.TEST)
        assert evaluation["teacher"]["top1_accuracy"] == pytest.approx(
            teacher.correct.mean(), rel=1e-5
        )
        assert evaluation["teacher"]["backbone"] == inputs.models[Role.TEACHER].backbone.name


class TestDocument:
    def test_a_top_5_of_nothing_is_0_and_not_missing(self):
        labels = {Split.TEST: [0, 0]}
        logits = -np.tile(np.arange(CLASSES)[::-1], (2, 1))  # class 0 comes last
        inputs = make_inputs(CLASSES, labels, {Role.STUDENT: {Split.TEST: logits}})
        assert build_evaluation(inputs)["top5_accuracy"] == 0

    def test_is_plain_json_and_the_same_again(self):
        first, second = (json.dumps(evaluate()[1], allow_nan=False) for _ in range(2))
        assert first == second

    def test_matrix_and_classes_belong_together(self):
        _, evaluation = evaluate()
        matrix = np.array(evaluation["confusion_matrix"])
        assert matrix.shape == (CLASSES, CLASSES)
        counts = np.bincount(LABELS[Split.TEST], minlength=CLASSES)
        assert (matrix.sum(axis=1) == counts).all()
        assert [entry["support"] for entry in evaluation["per_class"]] == counts.tolist()
        assert [entry["class"] for entry in evaluation["per_class"]] == evaluation["classes"]

    def test_predictions_are_made_once(self):
        inputs, _ = evaluate()
        assert isinstance(inputs.predict(Role.STUDENT, Split.TEST), Predictions)
        assert inputs.predict(Role.STUDENT, Split.TEST) is inputs.predict(Role.STUDENT, Split.TEST)
