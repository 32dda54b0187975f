"""What every kind of adapter promises of whole training runs, and of two kinds at once."""

from itertools import pairwise

import pytest
import safetensors.torch
import torch

from core.catalog.methods import MethodType
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.training.loop import TrainingStoppedError, train
from core.ml.training.observer import SilentObserver
from core.ml.training.seeds import derive_seed

CPU = torch.device("cpu")
KINDS = list(ADAPTER_METHODS)
#: Each kind with the next one, and the last with the first.
COUPLES = [*pairwise(KINDS), (KINDS[-1], KINDS[0])]
every_couple = pytest.mark.parametrize(("kind", "other"), COUPLES, ids=lambda kind: kind.value)
# 20 images in batches of 8: three steps an epoch, six in all.
STEPS = 6


class StopAt(SilentObserver):
    """Asks to stop after some step."""

    def __init__(self, stop):
        self.stop, self.step = stop, 0

    def on_step(self, step, total_steps):
        self.step = step

    def should_stop(self):
        return self.step == self.stop


@pytest.fixture
def run(tiny_backbone, tiny_data):
    """Train a student, with a teacher of another width where the plan has one."""

    def start(plan, folder=None, observer=None):
        teacher = None
        if plan.method is MethodType.IDAT:
            teacher = tiny_backbone(width=12, depth=2, seed=1)
        return train(
            plan,
            tiny_data(),
            student=tiny_backbone(width=24, depth=2, seed=0),
            teacher=teacher,
            device=CPU,
            observer=observer,
            checkpoint_dir=folder,
        )

    return start


def read_bytes(result):
    models = [model for model in (result.student, result.teacher) if model is not None]
    return [safetensors.torch.save(model.state_dict()) for model in models]


class TestAlone:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
    @pytest.mark.parametrize("stop", [2, 4], ids=["mid-epoch", "second epoch"])
    def test_same_bytes_again_and_after_an_interruption(self, run, tiny_plan, tmp_path, kind, stop):
        plan = tiny_plan(kind=kind, method=MethodType.ADAPTER, epochs=2)
        whole = run(plan)
        assert whole.steps == STEPS
        with pytest.raises(TrainingStoppedError):
            run(plan, tmp_path, StopAt(stop))
        assert read_bytes(run(plan, tmp_path)) == read_bytes(whole)
        assert read_bytes(run(plan)) == read_bytes(whole)

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
    def test_moves_what_it_should(self, run, tiny_plan, tiny_backbone, kind):
        plan = tiny_plan(kind=kind, method=MethodType.ADAPTER, epochs=2)
        trained = run(plan).student
        seed = derive_seed(plan.seed, "init/student")
        fresh = AdaptedModel(tiny_backbone(width=24, depth=2), plan.adapter, 3, seed=seed)
        for name, parameter in fresh.trainable_parameters().items():
            assert not torch.equal(parameter, trained.trainable_parameters()[name]), name
        assert trained.backbone.weights_sha256 == fresh.backbone.weights_sha256


@every_couple
class TestTwoKinds:
    def test_are_student_and_teacher(self, run, tiny_plan, tmp_path, kind, other):
        plan = tiny_plan(kind=kind, teacher_adapter=AdapterSpec(other, 2, 0.3), epochs=1)
        result = run(plan)
        assert (result.student.spec.kind, result.teacher.spec.kind) == (kind, other)
        metrics = result.history[0]
        losses = (metrics.ce_student, metrics.ce_teacher, metrics.distillation)
        assert all(0 < loss < 100 for loss in losses)
        with pytest.raises(TrainingStoppedError):
            run(plan, tmp_path, StopAt(1))
        assert read_bytes(run(plan, tmp_path)) == read_bytes(result)

    def test_take_turns_on_one_backbone(self, tiny_backbone, strengthen, read_images, kind, other):
        backbone, images = tiny_backbone(), read_images()
        models = [
            strengthen(AdaptedModel(backbone, AdapterSpec(k, 4, 0.5), 3, seed=1))
            for k in (kind, other)
        ]

        def forward(model):
            model.zero_grad()
            return model(images, None, torch.Generator().manual_seed(5))

        def read_gradients(model):
            return [p.grad.clone() for p in model.trainable_parameters().values()]

        alone = []
        for model in models:
            logits = forward(model)
            torch.autograd.backward(logits.square().mean())
            alone.append((logits, read_gradients(model)))
        together = [forward(model) for model in models]
        torch.autograd.backward(sum(logits.square().mean() for logits in together))
        for model, logits, (expected, gradients) in zip(models, together, alone, strict=True):
            assert torch.equal(logits, expected)
            for got, wanted in zip(read_gradients(model), gradients, strict=True):
                assert torch.equal(got, wanted)
