"""One training step: its gradients against two backwards, and what it leaves alone."""

import pytest
import torch
from torch.nn import functional

from core.catalog.methods import DistillationLoss, MethodType, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.normalise import normalise_images
from core.ml.losses.distillation import Distillation
from core.ml.losses.registry import build_logit_loss
from core.ml.training.optim import build_optimizer, set_learning_rate
from core.ml.training.step import Trainee, TrainStep


@pytest.fixture
def build_step():
    def build(plan, student_backbone, teacher_backbone):
        trainees = [
            Trainee(role, AdaptedModel(backbone, plan.adapter, plan.num_classes, seed=seed))
            for seed, (role, backbone) in enumerate(
                (("student", student_backbone), ("teacher", teacher_backbone))
            )
            if backbone is not None
        ]
        optimizer = build_optimizer(
            [t.model.trainable_parameters() for t in trainees], weight_decay=plan.weight_decay
        )
        set_learning_rate(optimizer, plan.learning_rate)
        teacher = trainees[1] if teacher_backbone is not None else None
        distillation = teacher and Distillation(
            plan.distillation, trainees[0].model.backbone, teacher.model.backbone, seed=0
        )
        return TrainStep(plan, trainees[0], teacher, distillation, optimizer), trainees

    return build


LOGIT_LOSSES = [loss for loss in DistillationLoss if loss is not DistillationLoss.FEATURE]
ROWS = torch.tensor([3, 1, 7, 0, 12])


class TestGradients:
    @pytest.mark.parametrize("loss", LOGIT_LOSSES)
    def test_student_exact_and_teacher_half_of_two_backwards(
        self, pair, tiny_plan, tiny_data, build_step, loss
    ):
        plan, split = tiny_plan(loss=loss, loss_weight=1.0, drop_path=0.0), tiny_data().train
        step, trainees = build_step(plan, *pair)
        torch.autograd.backward(step.losses(split, ROWS, epoch=0, step=0)[0])
        ours = [[p.grad.clone() for p in t.model.parameters()] for t in trainees]
        for trainee in trainees:
            trainee.model.zero_grad()

        # The released code: forward once, backward twice, gradients zeroed once before.
        student, teacher = (t.model for t in trainees)
        images, labels = split.student_images[ROWS], split.labels[ROWS]
        s = student(normalise_images(images, student.backbone))
        t = teacher(normalise_images(images, teacher.backbone))
        distill = build_logit_loss(plan.distillation)
        total = functional.cross_entropy(s, labels) + functional.cross_entropy(t, labels)
        total = total + distill(s, t)
        torch.autograd.backward(total, retain_graph=True)
        once = [p.grad.clone() for p in student.parameters()]
        torch.autograd.backward(total)
        twice = [p.grad for p in teacher.parameters()]

        for mine, theirs in zip(ours[0], once, strict=True):
            assert torch.equal(mine, theirs)
        for mine, theirs in zip(ours[1], twice, strict=True):
            assert torch.allclose(2 * mine, theirs, rtol=1e-6, atol=1e-9)

    def test_distillation_reaches_the_teacher(self, pair, tiny_plan, tiny_data, build_step):
        step, trainees = build_step(tiny_plan(), *pair)
        distillation = step.losses(tiny_data().train, ROWS, epoch=0, step=0)[3]
        torch.autograd.backward(distillation)
        assert all(p.grad.any() for p in [t.model.head.weight for t in trainees])

    def test_weight_multiplies_the_distillation(self, pair, tiny_plan, tiny_data, build_step):
        step, _ = build_step(tiny_plan(loss_weight=3.0), *pair)
        total, ce_s, ce_t, d = step.losses(tiny_data().train, ROWS, epoch=0, step=0)
        assert total.item() == pytest.approx((ce_s + ce_t + 3.0 * d).item())

    def test_without_a_teacher_the_loss_is_cross_entropy(
        self, pair, tiny_plan, tiny_data, build_step
    ):
        plan = tiny_plan(method=MethodType.ADAPTER)
        step, _ = build_step(plan, pair[0], None)
        total, ce_s, ce_t, d = step.losses(tiny_data().train, ROWS, epoch=0, step=0)
        assert (total.item(), ce_t.item(), d.item()) == (ce_s.item(), 0.0, 0.0)

    def test_bf16_points_the_same_way(self, tiny_backbone, tiny_plan, tiny_data, build_step):
        grads = []
        for precision in Precision:
            backbones = tiny_backbone(width=24, seed=0), tiny_backbone(width=12, seed=1)
            for backbone in backbones:
                backbone.place(device=torch.device("cpu"), precision=precision)
            step, trainees = build_step(tiny_plan(drop_path=0.0), *backbones)
            torch.autograd.backward(step.losses(tiny_data().train, ROWS, epoch=0, step=0)[0])
            parameters = [p for t in trainees for p in t.model.parameters()]
            assert all(p.dtype == torch.float32 for p in parameters)
            grads.append(torch.cat([p.grad.flatten() for p in parameters]))
        assert torch.cosine_similarity(*grads, dim=0) > 0.99


class TestWhatChanges:
    def test_everything_trainable_and_no_byte_of_the_backbones(
        self, pair, tiny_plan, tiny_data, build_step
    ):
        step, trainees = build_step(tiny_plan(), *pair)
        names = [compute_tensors_sha256(b.module.state_dict()) for b in pair]
        before = [{n: p.clone() for n, p in t.model.named_parameters()} for t in trainees]
        data = tiny_data().train
        for index in range(3):
            step(data, ROWS, epoch=0, step=index)
        assert [compute_tensors_sha256(b.module.state_dict()) for b in pair] == names
        assert [b.weights_sha256 for b in pair] == names
        for trainee, old in zip(trainees, before, strict=True):
            for name, parameter in trainee.model.named_parameters():
                assert not torch.equal(parameter, old[name]), name

    def test_drop_path_depends_on_the_step_alone(self, pair, tiny_plan, tiny_data, build_step):
        step, _ = build_step(tiny_plan(drop_path=0.8), *pair)
        data = tiny_data().train
        losses = [step.losses(data, ROWS, epoch=0, step=index)[0].item() for index in (4, 5, 4)]
        assert losses[0] == losses[2] != losses[1]

    def test_teacher_and_student_normalise_differently(self, pair, tiny_data):
        images = tiny_data().train.student_images[:2]
        student, teacher = (normalise_images(images, backbone) for backbone in pair)
        assert not torch.allclose(student, teacher)
        by_hand = (images[0, 5, 6].double() / 255 - 0.45) / torch.tensor([0.5, 0.4, 0.3])
        assert torch.allclose(teacher[0, :, 5, 6].double(), by_hand, atol=1e-6)
