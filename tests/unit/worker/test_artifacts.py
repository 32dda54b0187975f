"""What the trainer leaves beside a model, of a real if tiny run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from api.schemas.evaluation import Evaluation
from core.catalog.methods import MethodType
from core.ml.backbones.load import wrap_backbone
from core.ml.data.manifest import ManifestItem, build_manifest
from core.ml.training.loop import TrainResult, build_trainee_model, train
from core.types import Split
from tests.unit.core.ml.conftest import (
    CLASSES,
    build_tiny,
    build_tiny_data,
    build_tiny_plan,
)
from worker.artifacts import write_artifacts

CPU = torch.device("cpu")
FIGURES: list[dict[str, Any]] = [
    {"name": "confusion_matrix"},
    {"name": "weight_histograms"},
    {"name": "attention_map", "item": "nowhere.png"},
]


class Run:
    """A finished run and everything that `write_artifacts` takes."""

    def __init__(self) -> None:
        self.data = build_tiny_data(train=20, val=12, test=9)
        splits = {name: getattr(self.data, name.value) for name in Split}
        items = [
            ManifestItem(f"{name.value}/{row:03d}.png", int(label), name, "0" * 64, 32, 32)
            for name, split in splits.items()
            for row, label in enumerate(split.labels)
        ]
        self.manifest = build_manifest(
            [f"class {n}" for n in range(CLASSES)], items, seed=0, preprocess_version=1
        )
        student, teacher = (
            wrap_backbone(build_tiny("vit", width=width, seed=seed), f"tiny{width}")
            for width, seed in ((24, 0), (12, 1))
        )
        self.plan = build_tiny_plan(epochs=2)
        options: Any = {"student": student, "device": CPU}
        self.result = train(self.plan, self.data, teacher=teacher, **options)
        alone = build_tiny_plan(epochs=2, method=MethodType.ADAPTER)
        self.baseline = train(alone, self.data, teacher=None, **options)

    def write(self, out: Path, *, baseline: TrainResult | None, figures: Any = FIGURES) -> None:
        write_artifacts(
            out,
            training=SimpleNamespace(data=self.data),
            result=self.result,
            baseline=baseline,
            manifest=self.manifest,
            figures=figures,
            seed=self.plan.seed,
        )


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def messages(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


class TestEvaluation:
    def test_has_the_documented_form_and_the_figures_of_training(
        self, run: Run, tmp_path: Path
    ) -> None:
        run.write(tmp_path / "out", baseline=run.baseline)
        text = (tmp_path / "out" / "evaluation.json").read_text()
        evaluation = Evaluation.model_validate_json(text)
        result = run.result
        assert evaluation.split == "test"
        assert evaluation.top1_accuracy == pytest.approx(result.test.accuracy, rel=1e-5)
        assert evaluation.loss == pytest.approx(result.test.loss, rel=1e-5)
        assert evaluation.teacher is not None
        assert evaluation.teacher.loss == pytest.approx(result.teacher_test.loss, rel=1e-5)
        assert evaluation.baseline is not None
        gain = result.test.accuracy - run.baseline.test.accuracy
        assert evaluation.baseline.gain == pytest.approx(gain, rel=1e-5, abs=1e-9)
        assert evaluation.misclassified.total == 9 - result.test.correct
        # Every documented field is there, and no other.
        assert json.loads(text) == json.loads(evaluation.model_dump_json(by_alias=True))

    def test_without_teacher_and_twin(self, run: Run, tmp_path: Path) -> None:
        alone = Run.__new__(Run)
        alone.__dict__.update(run.__dict__)
        alone.result = run.baseline
        alone.write(tmp_path, baseline=None, figures=[])
        evaluation = Evaluation.model_validate_json((tmp_path / "evaluation.json").read_text())
        assert evaluation.teacher is None
        assert evaluation.baseline is None
        assert list((tmp_path / "figures").iterdir()) == []

    def test_weights_are_only_looked_at(self, run: Run, tmp_path: Path) -> None:
        before = {n: p.detach().clone() for n, p in run.result.student.named_parameters()}
        run.write(tmp_path, baseline=None)
        for name, parameter in run.result.student.named_parameters():
            assert torch.equal(parameter, before[name])


class TestFigures:
    def test_files_for_what_was_asked_and_the_same_ones_again(
        self, run: Run, tmp_path: Path
    ) -> None:
        for folder in ("first", "second"):
            run.write(tmp_path / folder, baseline=run.baseline)
        first, second = (
            {
                str(path.relative_to(tmp_path / folder)): path.read_bytes()
                for path in (tmp_path / folder).rglob("*.*")
            }
            for folder in ("first", "second")
        )
        assert first.keys() == {
            "evaluation.json",
            "figures/confusion_matrix.json",
            "figures/confusion_matrix.png",
            "figures/weight_histograms.json",
            "figures/weight_histograms.png",
            "figures/attention_map.json",
        }
        assert first == second

    def test_drift_is_that_of_the_trained_adapters(self, run: Run, tmp_path: Path) -> None:
        run.write(tmp_path, baseline=None, figures=[{"name": "weight_histograms"}])
        data = json.loads((tmp_path / "figures" / "weight_histograms.json").read_text())["data"]
        for role, model in (("student", run.result.student), ("teacher", run.result.teacher)):
            began = build_trainee_model(run.plan, role, model.backbone)
            now, before = (
                m.adapters[0].down.weight.detach().double().numpy() for m in (model, began)
            )
            (layer, *_) = data["models"][role]["down"]["layers"]
            drift = np.sqrt(((now - before) ** 2).sum() / (before**2).sum())
            assert layer["drift"] == pytest.approx(drift, rel=1e-5)
            assert layer["std"] == pytest.approx(np.std(now), rel=1e-5)
        (layer, *_) = data["models"]["student"]["down"]["layers"]
        assert layer["width"] == 24

    def test_the_supervisor_hears_of_each_part_and_of_what_is_missing(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.write(tmp_path, baseline=None)
        sent = messages(capsys)
        progress = [message for message in sent if message["type"] == "progress"]
        assert progress[0]["phase"] == "evaluating"
        drawing = [m["figure"] for m in progress if m["phase"] == "drawing" and "doing" not in m]
        assert drawing == [figure["name"] for figure in FIGURES]
        assert all((m["epoch"], m["percent"]) == (2, 100.0) for m in progress)
        (event,) = [message for message in sent if message["type"] == "log"]
        assert event["level"] == "warning"
        assert "attention_map is not available" in event["message"]
        assert "nowhere.png" in event["message"]
        document = json.loads((tmp_path / "figures" / "attention_map.json").read_text())
        assert document["status"] == "not_available"
