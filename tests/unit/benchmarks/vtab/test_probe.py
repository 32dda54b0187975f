"""The probe on stored features is the linear probe that the training code would train."""

import pytest
import torch

from benchmarks.vtab.folder import check_root
from benchmarks.vtab.images import ImageStore
from benchmarks.vtab.learners import Workplace
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.probe import ProbeLearner
from benchmarks.vtab.watch import Console, StopSignal
from core.catalog.methods import AdapterKind, MethodType, Precision
from core.catalog.pairs import STARTER_STUDENT
from core.catalog.recipes import get_recipe
from core.ml.backbones.load import load_backbone
from core.ml.training.loop import DivergedError, TrainingStoppedError, train
from core.ml.training.plan import build_plan
from core.ml.training.resident import ResidentData, build_split

CPU = torch.device("cpu")


@pytest.fixture
def place(vtab_root, tmp_path, expected):
    (dataset,) = check_root(vtab_root, [get_recipe("vtab-kitti")], expected=expected)
    stop, console = StopSignal(), Console()
    store = ImageStore(tmp_path / "images", stop=stop, console=console)
    return Workplace(
        dataset=dataset,
        store=store,
        device=CPU,
        folder=tmp_path / "checkpoints",
        checkpoint_every_s=60.0,
        stop=stop,
        console=console,
    )


@pytest.fixture
def student():
    return load_backbone(STARTER_STUDENT)


def build(**changes):
    return build_plan(
        method=MethodType.ADAPTER,
        kind=AdapterKind.LINEAR_PROBE,
        num_classes=3,
        learning_rate=changes.pop("learning_rate", 0.02),
        weight_decay=0.05,
        precision=Precision.FP32,
        epochs=4,
        warmup_epochs=1,
        batch_size=8,
        seed=5,
        **changes,
    )


def test_equals_the_kind_linear_probe(place, student):
    plan = build()
    fit = ProbeLearner(place, student=student).fit(
        plan, ListName.TRAIN, ListName.VAL, label="probe"
    )
    splits = {
        name: build_split(place.images(name, 64), place.dataset.lists[name].labels(), device=CPU)
        for name in (ListName.TRAIN, ListName.VAL)
    }
    data = ResidentData(splits[ListName.TRAIN], splits[ListName.VAL], None, "probe")
    result = train(plan, data, student=student, teacher=None, device=CPU)
    assert [epoch.accuracy for epoch in fit.history] == [m.val_accuracy for m in result.history]
    assert fit.best_epoch == result.best_epoch
    assert fit.best.loss == pytest.approx(result.val.loss, rel=1e-4)
    theirs = result.student.state_dict()
    for name, tensor in fit.models["student"].state_dict().items():
        torch.testing.assert_close(tensor, theirs[f"head.{name}"], rtol=1e-3, atol=1e-5)


def test_features_keep_nothing_else_alive(place, student):
    learner = ProbeLearner(place, student=student)
    features = learner._read(ListName.TEST)
    assert features.shape == (20, 192)
    assert features.untyped_storage().nbytes() == 20 * 192 * 4
    assert learner._read(ListName.TEST) is features


def test_the_last_epoch_without_a_measured_list(place, student):
    learner = ProbeLearner(place, student=student)
    fit = learner.fit(build(), ListName.TRAIN_VAL, None, label="probe")
    assert (fit.best_epoch, fit.best, fit.history, fit.epochs) == (3, None, (), 4)
    assert learner.measure(fit, ListName.TEST)["student"].images == 20


def test_stops_when_asked(place, student):
    place.stop.is_set = True
    with pytest.raises(TrainingStoppedError):
        ProbeLearner(place, student=student).fit(build(), ListName.TRAIN, None, label="probe")


def test_weights_that_are_no_numbers(place, student):
    learner = ProbeLearner(place, student=student)
    learner._read(ListName.TRAIN).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"diverged in epoch 0 at learning rate 0\.02"):
        learner.fit(build(), ListName.TRAIN, None, label="probe")
