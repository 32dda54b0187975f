"""Figures of runs with untrained models, by name, as the worker makes them."""

import json

import numpy as np
import pytest

from core.catalog.figures import FigureName, FigureStatus
from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.analysis.figures import reliability
from core.ml.analysis.figures.registry import build_figure
from core.ml.analysis.inputs import Role
from core.ml.backbones.load import wrap_backbone
from core.types import Split
from tests.unit.core.ml.analysis.figures.test_layout import history
from tests.unit.core.ml.analysis.made import draw_logits, make_backbone, make_inputs
from tests.unit.core.ml.conftest import IMAGE_PX, build_tiny

CLASSES = 3
LABELS = {Split.TRAIN: [0, 1, 2] * 4, Split.VAL: [0, 1, 2] * 4, Split.TEST: [2, 1, 0] * 5}


def build_inputs(*, roles=tuple(Role), labels=LABELS, **changes):
    logits = {
        role: {
            split: draw_logits(given, CLASSES, seed=index)
            for split, given in labels.items()
            if given
        }
        for index, role in enumerate(roles)
    }
    histories = {Role.STUDENT: history(3), Role.BASELINE: history(3)}
    return make_inputs(CLASSES, labels, logits, **({"histories": histories} | changes))


def build(name, inputs, **options):
    figure = build_figure(FigureName(name), inputs, options)
    document = json.loads(figure.document)
    assert (document["object"], document["name"]) == ("model.figure", name)
    assert document["status"] == figure.status.value
    assert (figure.png is not None) == (figure.status is FigureStatus.READY)
    if figure.status is not FigureStatus.READY:
        assert document["reason"] == figure.reason != ""
    return figure, document.get("data")


@pytest.mark.parametrize("name", [name.value for name in FigureName])
def test_every_figure_is_made_and_is_the_same_again(name):
    figure, data = build(name, build_inputs())
    assert figure.status is FigureStatus.READY, figure.reason
    assert data
    assert figure.png.startswith(b"\x89PNG")
    again, _ = build(name, build_inputs())
    assert (figure.document, figure.png) == (again.document, again.png)


@pytest.mark.parametrize("name", [name.value for name in FigureName])
def test_a_student_alone_without_validation_and_test(name):
    labels = {Split.TRAIN: LABELS[Split.TRAIN]}
    inputs = build_inputs(
        roles=(Role.STUDENT,), labels=labels, histories={Role.STUDENT: history(1)}
    )
    figure, _ = build(name, inputs)
    wanted = FigureStatus.NOT_AVAILABLE if name == "agreement" else FigureStatus.READY
    assert figure.status is wanted


class TestNotAvailable:
    def check(self, name, inputs, reason, **options):
        figure, _ = build(name, inputs, **options)
        assert figure.status is FigureStatus.NOT_AVAILABLE
        assert reason in figure.reason

    def test_agreement_without_a_teacher(self):
        self.check("agreement", build_inputs(roles=(Role.STUDENT,)), "no teacher")

    def test_curves_of_nothing(self):
        inputs = build_inputs(histories={Role.STUDENT: []})
        self.check("learning_curves", inputs, "no epoch")

    def test_tsne_of_too_few_images(self):
        inputs = build_inputs(labels={**LABELS, Split.TEST: [0, 1, 2]})
        self.check("tsne", inputs, "has 3 images")

    @pytest.mark.parametrize("kind", [AdapterKind.LINEAR_PROBE, AdapterKind.BITFIT])
    def test_weights_of_a_kind_without_matrices(self, kind):
        model = AdaptedModel(make_backbone(), AdapterSpec(kind, 1), CLASSES, seed=0)
        inputs = build_inputs(models={Role.STUDENT: model})
        self.check("weight_histograms", inputs, kind.value)

    def test_attention_of_an_image_that_is_not_there(self):
        self.check("attention_map", build_inputs(), "'nowhere.png'", item="nowhere.png")

    def test_attention_of_a_network_without_a_class_token(self):
        assert IMAGE_PX == 32
        backbone = wrap_backbone(build_tiny("swin"), "swin")
        model = AdaptedModel(backbone, AdapterSpec(AdapterKind.SEQUENTIAL, 2), CLASSES, seed=0)
        inputs = build_inputs(models={Role.STUDENT: model})
        self.check("attention_map", inputs, "no class token")


class TestFailed:
    def test_one_that_breaks_is_said_so_and_logged(self, monkeypatch, caplog):
        def divide(*_):
            return 1 / 0

        monkeypatch.setattr(reliability, "draw", divide)
        figure, data = build("reliability", build_inputs())
        assert figure.status is FigureStatus.FAILED
        assert "ZeroDivisionError" in figure.reason
        assert data is None
        assert "Traceback" in caplog.text


class TestAttentionMap:
    def test_shows_the_first_test_image_unless_told_otherwise(self):
        inputs = build_inputs()
        _, data = build("attention_map", inputs)
        assert (data["item"], data["split"]) == ("test/00000.png", "test")
        assert data["true"] == "class 002"
        assert data["networks"].keys() == {"student", "teacher", "baseline"}
        _, data = build("attention_map", inputs, item="train/00004.png")
        assert (data["item"], data["split"], data["true"]) == (
            "train/00004.png",
            "train",
            "class 001",
        )

    def test_the_one_network_that_has_a_map_is_shown_and_the_other_explained(self):
        inputs = build_inputs(roles=(Role.STUDENT, Role.TEACHER))
        swin = wrap_backbone(build_tiny("swin"), "swin")
        inputs.models[Role.TEACHER] = AdaptedModel(
            swin, AdapterSpec(AdapterKind.SEQUENTIAL, 2), CLASSES, seed=0
        )
        figure, data = build("attention_map", inputs)
        assert figure.status is FigureStatus.READY
        assert data["networks"].keys() == {"student"}
        assert "no class token" in data["without_map"]["teacher"]


class TestTsne:
    def test_all_networks_see_the_same_images(self):
        inputs = build_inputs()
        _, data = build("tsne", inputs)
        assert data["networks"].keys() == {"frozen", "student", "teacher", "baseline"}
        assert data["labels"] == LABELS[Split.TEST]
        assert data["names"] == [item.name for item in inputs.items(Split.TEST)]
        assert {len(n["x"]) for n in data["networks"].values()} == {15}


class TestWeightHistograms:
    def test_densities_and_means_belong_to_the_layers(self):
        inputs = build_inputs(seed=0)
        # `make_model` draws from the seed itself, a run from one derived from it.
        _, data = build("weight_histograms", inputs)
        for model in data["models"].values():
            for part in ("down", "up"):
                layers = model[part]["layers"]
                assert [layer["layer"] for layer in layers] == [0, 1]
                edges = np.array(data["edges"][part])
                for layer in layers:
                    inside = (np.array(layer["density"]) * np.diff(edges)).sum()
                    assert inside == pytest.approx(1 - layer["share_outside"], rel=1e-3)
                    assert layer["drift"] > 0.5
                stds = [layer["std"] for layer in layers]
                assert model[part]["mean"]["std"] == pytest.approx(np.mean(stds), rel=1e-4)
        assert data["distances"].keys() == {"teacher_student", "baseline_student"}
