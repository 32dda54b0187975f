"""Every figure drawn from made-up data of many sizes, and looked at."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from core.ml.analysis.agreement import Agreement
from core.ml.analysis.calibration import measure_reliability
from core.ml.analysis.classification import confusion_matrix, most_confused
from core.ml.analysis.figures import (
    agreement,
    attention_map,
    learning_curves,
    reliability,
    tsne,
    weight_histograms,
)
from core.ml.analysis.figures import confusion_matrix as confusion_figure
from core.ml.analysis.figures.style import new_figure, styled, to_png
from core.ml.analysis.inputs import Role
from core.ml.analysis.predictions import Predictions
from core.ml.analysis.weights import PARTS, LayerWeights
from core.ml.training.run_state import EpochMetrics
from tests.unit.core.ml.analysis.figures.layout import assert_readable
from tests.unit.core.ml.analysis.made import draw_logits

LONG = "a rather long name of a class that nobody would want to type"


def names(count: int, *, long: bool = False) -> list[str]:
    return [f"{LONG} {index}" if long else f"class {index}" for index in range(count)]


@pytest.fixture(autouse=True)
def _in_style():
    with styled():
        yield


class TestConfusionMatrix:
    @pytest.mark.parametrize(
        ("classes", "long"),
        [(2, False), (2, True), (10, False), (10, True), (21, False), (100, False), (397, True)],
    )
    def test_from_two_classes_to_hundreds(self, classes, long):
        labels = np.random.default_rng(0).integers(0, classes, 60 * classes)
        predictions = Predictions(draw_logits(labels, classes, seed=0, skill=3.0), labels)
        matrix = confusion_matrix(predictions)
        called = names(classes, long=long)
        texts = assert_readable(
            confusion_figure.draw(
                {
                    "split": "test",
                    "classes": called,
                    "matrix": matrix.tolist(),
                    "most_confused": most_confused(matrix, tuple(called), limit=20),
                }
            ),
            least=8,
        )
        if classes <= 20:
            assert all(str(images) in texts for images in matrix.diagonal())

    @pytest.mark.parametrize("images", [1, 123_456])
    def test_perfect_and_with_a_class_without_images(self, images):
        matrix = np.diag([images, 0, images])
        data = {"split": "val", "classes": names(3), "matrix": matrix.tolist(), "most_confused": []}
        texts = assert_readable(confusion_figure.draw(data), least=10)
        assert "nothing was confused" in texts

    def test_large_counts_stay_in_their_cells(self):
        matrix = np.full((20, 20), 9_999)
        data = {
            "split": "test",
            "classes": names(20),
            "matrix": matrix.tolist(),
            "most_confused": most_confused(matrix, tuple(names(20)), limit=20),
        }
        assert_readable(confusion_figure.draw(data), least=400)


class TestTsne:
    @pytest.mark.parametrize(
        ("classes", "long", "networks"),
        [(2, False, 2), (10, False, 3), (10, True, 2), (20, True, 4), (100, False, 3)],
    )
    def test_one_panel_a_network(self, classes, long, networks):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, classes, 300)
        panels = ["frozen", "student", "teacher", "baseline"][:networks]
        data = {
            "split": "test",
            "images": 300,
            "classes": names(classes, long=long),
            "labels": labels.tolist(),
            "neighbours": 20,
            "networks": {
                name: {
                    "silhouette": -0.123,
                    "knn_accuracy": 1.0,
                    "nmi": 0.5,
                    "x": rng.normal(size=300).tolist(),
                    "y": rng.normal(size=300).tolist(),
                }
                for name in panels
            },
        }
        texts = assert_readable(tsne.draw(data), least=networks)
        assert ("class 1" in texts) == (classes <= 20 and not long)  # the legend

    def test_one_class_has_no_figures(self):
        network = {"silhouette": None, "knn_accuracy": None, "nmi": None, "x": [0, 1], "y": [1, 0]}
        data = {
            "split": "val",
            "images": 2,
            "classes": names(2),
            "labels": [1, 1],
            "neighbours": 1,
            "networks": {"frozen": network, "student": network},
        }
        assert any("one class" in text for text in assert_readable(tsne.draw(data), least=3))


class TestReliability:
    @pytest.mark.parametrize(
        ("classes", "scaled"), [(2, True), (2, False), (10, True), (100, True)]
    )
    def test_before_and_after(self, classes, scaled):
        labels = np.random.default_rng(0).integers(0, classes, 500)
        predictions = Predictions(draw_logits(labels, classes, seed=0), labels)
        before = measure_reliability(predictions)
        after = measure_reliability(predictions, temperature=0.5)
        data: dict[str, Any] = {
            "split": "test",
            "images": 500,
            "bins": 15,
            "ece_before": before.error,
            "reliability_before": before.to_json(),
            "temperature": 0.5 if scaled else None,
            "temperature_note": "there is no validation split to fit a temperature on",
            "ece_after": after.error if scaled else None,
            "reliability_after": after.to_json() if scaled else None,
        }
        assert_readable(reliability.draw(data), least=12)


def history(epochs: int, **changes: Any) -> list[EpochMetrics]:
    made = EpochMetrics(
        epoch=0,
        lr=1e-3,
        train_loss=2.0,
        ce_student=1.0,
        ce_teacher=1.1,
        distillation=0.3,
        val_accuracy=0.5,
        val_loss=1.2,
        teacher_val_accuracy=0.4,
        teacher_val_loss=1.3,
        images_per_s=100.0,
    )
    return [
        dataclasses.replace(made, epoch=epoch, train_loss=2.0 / (epoch + 1), **changes)
        for epoch in range(epochs)
    ]


NO_TEACHER = dict.fromkeys(
    ("ce_teacher", "distillation", "teacher_val_accuracy", "teacher_val_loss")
)
NO_VALIDATION = dict.fromkeys(
    ("val_accuracy", "val_loss", "teacher_val_accuracy", "teacher_val_loss")
)


class TestLearningCurves:
    @pytest.mark.parametrize(
        ("epochs", "changes"),
        [(1, {}), (110, {}), (4, NO_TEACHER), (4, NO_VALIDATION), (2, NO_TEACHER | NO_VALIDATION)],
    )
    def test_all_there_is(self, epochs, changes):
        baseline = history(epochs, **(changes | NO_TEACHER))
        data = learning_curves.build_data(history(epochs, **changes), baseline, best_epoch=epochs)
        texts = assert_readable(learning_curves.draw(data), least=12)
        assert ("teacher" in texts) == (changes.get("ce_teacher", 1) is not None)
        assert ("there is no validation split" in texts) == ("val_loss" in changes)
        assert ("there is no teacher" in texts) == ("ce_teacher" in changes)
        assert "student without teacher" in texts

    def test_a_figure_that_is_not_finite_is_left_out(self):
        data = learning_curves.build_data(history(3, val_loss=float("inf")), None, best_epoch=1)
        assert data["models"]["student"]["val_loss"] == [None] * 3
        assert_readable(learning_curves.draw(data), least=12)


class TestAgreement:
    @pytest.mark.parametrize(
        ("counts", "gap"),
        [
            ((28, 3, 4, 1, 0), 0.1),
            ((400_000, 123_456, 99_999, 88_888, 77_777), -0.1),
            ((0, 0, 0, 0, 1), None),
        ],
    )
    def test_table_and_curves(self, counts, gap):
        agreed = Agreement(*counts)
        data = {
            "split": "test",
            "student_accuracy": 0.775,
            "teacher_accuracy": 1.0,
            **agreed.to_json("student", "teacher"),
            "epochs": [1, 2, 3],
            "distillation_loss": [0.3, 0.2, 0.1],
            "val_accuracy_gap": [gap] * 3,
        }
        texts = assert_readable(agreement.draw(data), least=12)
        assert ("there is no validation split" in texts) == (gap is None)


class TestAttentionMap:
    @pytest.mark.parametrize(
        ("roles", "item"),
        [
            (("student",), "train/a folder/" + "x" * 200 + ".jpeg"),
            (("student", "teacher", "baseline"), "a.png"),
        ],
    )
    def test_image_and_overlays(self, roles, item):
        rng = np.random.default_rng(0)
        data = {
            "item": item,
            "split": "test",
            "true": f"{LONG} 1",
            "classes": names(3, long=True),
            "networks": {
                role: {
                    "predicted": f"{LONG} 2",
                    "confidence": 0.999,
                    "weights": rng.random((4, 4)).tolist(),
                }
                for role in roles
            },
        }
        pixels = {
            role: rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            for role, size in zip(("student", "teacher", "baseline"), (64, 32, 64), strict=True)
        }
        assert_readable(attention_map.draw(data, pixels), least=3 + len(roles))


def layers(depth: int, width: int, seed: int, part: Any) -> list[LayerWeights]:
    rng = np.random.default_rng(seed)
    return [
        LayerWeights(layer, part, width, 4, 1, *rng.normal(0, 0.02 + 0.01 * layer, (2, 4 * width)))
        for layer in range(depth)
    ]


class TestWeightHistograms:
    @pytest.mark.parametrize(("student", "teacher"), [(1, 1), (6, 6), (24, 12)])
    def test_every_layer_of_every_model(self, student, teacher):
        depths = {Role.STUDENT: (student, 32), Role.TEACHER: (teacher, 24)}
        depths[Role.BASELINE] = depths[Role.STUDENT]
        made = {
            role: [w for part in PARTS for w in layers(*shape, seed=3, part=part)]
            for role, shape in depths.items()
        }
        data = weight_histograms.build_data(made)
        texts = assert_readable(weight_histograms.draw(data), least=20)
        deepest = max(student, teacher)
        assert [texts.count(f"layer {n}") for n in (1, deepest, deepest + 1)] == [2, 2, 0]


class TestStyle:
    def test_the_same_figure_gives_the_same_bytes(self):
        def draw() -> bytes:
            figure = new_figure(3, 2)
            figure.subplots().plot([1, 2, 4])
            return to_png(figure)

        first = draw()
        assert first == draw()
        assert first.startswith(b"\x89PNG")
        assert b"matplotlib" not in first.lower()

    def test_the_checker_sees_what_is_wrong(self):
        figure = new_figure(3, 2)
        figure.text(0.5, 0.5, "one on")
        figure.text(0.52, 0.5, "the other")
        with pytest.raises(AssertionError, match="the other"):
            assert_readable(figure, least=2)
        figure = new_figure(3, 2)
        figure.text(0.9, 0.5, "out of the picture")
        with pytest.raises(AssertionError, match="out of the picture"):
            assert_readable(figure, least=1)
        figure = new_figure(3, 2)
        figure.text(0.5, 0.5, "tiny", fontsize=3)
        with pytest.raises(AssertionError, match="tiny"):
            assert_readable(figure, least=1)
