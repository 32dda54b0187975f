"""A batch in parts is the same step: gradients, losses, and whole runs."""

import pytest
import torch

from core.catalog.methods import AdapterKind, DistillationLoss
from core.ml.losses.distillation import Distillation
from core.ml.losses.spec import DistillationSpec
from core.ml.training.loop import build_trainee_model, train
from core.ml.training.optim import build_optimizer
from core.ml.training.step import Trainee, TrainStep

CPU = torch.device("cpu")
ROWS = torch.tensor([4, 0, 9, 7, 2, 11, 3])


def gradients(plan, split, pair, micro_batch):
    student, teacher = (
        Trainee(role, build_trainee_model(plan, role, backbone))
        for role, backbone in zip(("student", "teacher"), pair, strict=True)
    )
    tie = Distillation(plan.distillation, *pair, seed=0)
    models = [student.model, teacher.model, tie]
    parameters = [dict(model.named_parameters()) for model in models]
    optimizer = build_optimizer(parameters, weight_decay=0.0)
    step = TrainStep(plan, student, teacher, tie, optimizer, micro_batch=micro_batch)
    losses = step(split, ROWS, epoch=0, step=3)
    return losses, [p.grad for group in parameters for p in group.values()]


@pytest.mark.parametrize("loss", list(DistillationLoss))
@pytest.mark.parametrize("micro_batch", [1, 3, 6])
def test_gradients_and_losses_are_those_of_the_whole_batch(
    pair, tiny_plan, tiny_data, loss, micro_batch
):
    plan = tiny_plan(distillation=DistillationSpec(loss=loss), drop_path=0.4)
    split = tiny_data().train
    whole_losses, whole = gradients(plan, split, pair, None)
    part_losses, parts = gradients(plan, split, pair, micro_batch)
    assert torch.allclose(part_losses, whole_losses, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(parts, whole, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_batch_that_fits_is_not_divided(pair, tiny_plan, tiny_data):
    split = tiny_data().train
    for micro_batch in (len(ROWS), 100):
        whole = gradients(tiny_plan(), split, pair, None)[1]
        fits = gradients(tiny_plan(), split, pair, micro_batch)[1]
        assert all(torch.equal(a, b) for a, b in zip(whole, fits, strict=True))


@pytest.mark.parametrize("kind", [AdapterKind.SEQUENTIAL, AdapterKind.MOSA])
def test_a_whole_run_in_parts_learns_and_repeats_itself(tiny_backbone, tiny_plan, tiny_data, kind):
    plan = tiny_plan(kind=kind, epochs=12, drop_path=0.0)
    data = tiny_data(train=48, val=24, test=24)

    def run():
        student, teacher = tiny_backbone(width=24, seed=0), tiny_backbone(width=12, seed=1)
        return train(plan, data, student=student, teacher=teacher, device=CPU, micro_batch=3)

    first, second = run(), run()
    assert first.test.accuracy >= 0.75
    state = second.student.state_dict()
    assert all(
        torch.equal(value, state[name]) for name, value in first.student.state_dict().items()
    )
