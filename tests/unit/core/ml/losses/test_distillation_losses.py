"""The losses against values and gradients worked out by hand, in float64."""

import dataclasses
import json
import math

import pytest
import torch

from core.catalog.methods import DistillationLoss, KlDirection
from core.errors import InvalidError
from core.ml.losses.cosine import cosine
from core.ml.losses.kl import kl
from core.ml.losses.mae import mae
from core.ml.losses.mse import mse
from core.ml.losses.registry import build_logit_loss
from core.ml.losses.spec import DistillationSpec

B, C, T = 4, 6, 5.0


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        (3 * torch.randn(B, C, dtype=torch.float64, generator=generator)).requires_grad_()
        for _ in range(2)
    )
    return student, teacher


class TestKl:
    def test_gradients_are_the_closed_forms(self, logits):
        student, teacher = logits
        torch.autograd.backward(kl(student, teacher, temperature=T))
        p_s, p_t = (torch.softmax(x.detach() / T, dim=1) for x in logits)
        divergence = (p_t * (p_t.log() - p_s.log())).sum(dim=1, keepdim=True)
        wanted_student = (p_s - p_t) / (T * B)
        wanted_teacher = p_t * ((p_t.log() - p_s.log()) - divergence) / (T * B)
        assert torch.allclose(student.grad, wanted_student, rtol=0, atol=1e-14)
        assert torch.allclose(teacher.grad, wanted_teacher, rtol=0, atol=1e-14)

    def test_value_of_two_classes_by_hand(self):
        student = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
        teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
        value = kl(student, teacher, temperature=1.0)
        assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))

    def test_direction_is_teacher_to_student(self, logits):
        student, teacher = logits
        assert kl(student, teacher).item() != pytest.approx(kl(teacher, student).item())

    def test_no_factor_of_temperature_squared(self):
        small = 1e-3 * torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator())
        zero = torch.zeros_like(small)
        ratio = kl(small, zero, temperature=1.0) / kl(small, zero, temperature=10.0)
        assert ratio.item() == pytest.approx(100.0, rel=1e-2)

    def test_survives_logits_that_underflow(self):
        student = torch.tensor([[2000.0, -2000.0]], requires_grad=True)
        teacher = torch.tensor([[-2000.0, 2000.0]], requires_grad=True)
        value = kl(student, teacher, temperature=1.0)
        torch.autograd.backward(value)
        assert value.item() == pytest.approx(4000.0)
        assert torch.isfinite(student.grad).all()
        assert torch.isfinite(teacher.grad).all()


class TestMse:
    def test_gradients_are_the_closed_forms(self, logits):
        student, teacher = logits
        torch.autograd.backward(mse(student, teacher))
        wanted = 2 * (student - teacher).detach() / (B * C)
        assert torch.allclose(student.grad, wanted, rtol=0, atol=1e-15)
        assert torch.allclose(teacher.grad, -wanted, rtol=0, atol=1e-15)

    def test_mean_over_batch_and_classes(self):
        value = mse(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))
        assert value.item() == pytest.approx((1 + 4 + 9 + 16) / 4)


class TestKlOptions:
    def test_the_other_direction_swaps_the_roles(self, logits):
        student, teacher = logits
        torch.autograd.backward(
            kl(student, teacher, temperature=T, direction=KlDirection.STUDENT_TEACHER)
        )
        p_s, p_t = (torch.softmax(x.detach() / T, dim=1) for x in logits)
        divergence = (p_s * (p_s.log() - p_t.log())).sum(dim=1, keepdim=True)
        wanted_student = p_s * ((p_s.log() - p_t.log()) - divergence) / (T * B)
        wanted_teacher = (p_t - p_s) / (T * B)
        assert torch.allclose(student.grad, wanted_student, rtol=0, atol=1e-14)
        assert torch.allclose(teacher.grad, wanted_teacher, rtol=0, atol=1e-14)

    def test_squared_temperature_is_a_factor(self, logits):
        plain, squared = (
            kl(*logits, temperature=T, squared_temperature=flag).item() for flag in (False, True)
        )
        assert squared == pytest.approx(25 * plain)


class TestCosine:
    def test_value_by_hand(self):
        student = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
        teacher = torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
        assert cosine(student, teacher).item() == pytest.approx(((1 - 24 / 25) + 1) / 2)

    def test_gradients_are_the_closed_forms(self, logits):
        student, teacher = logits
        torch.autograd.backward(cosine(student, teacher))
        s, t = (x.detach() for x in logits)
        norm_s, norm_t = s.norm(dim=1, keepdim=True), t.norm(dim=1, keepdim=True)
        similarity = (s * t).sum(dim=1, keepdim=True) / (norm_s * norm_t)
        wanted_student = -(t / (norm_s * norm_t) - similarity * s / norm_s**2) / B
        wanted_teacher = -(s / (norm_s * norm_t) - similarity * t / norm_t**2) / B
        assert torch.allclose(student.grad, wanted_student, rtol=0, atol=1e-14)
        assert torch.allclose(teacher.grad, wanted_teacher, rtol=0, atol=1e-14)


class TestMae:
    def test_value_by_hand(self):
        value = mae(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.zeros(2, 2))
        assert value.item() == pytest.approx((1 + 2 + 3 + 4) / 4)

    def test_gradients_are_signs(self, logits):
        student, teacher = logits
        torch.autograd.backward(mae(student, teacher))
        wanted = (student - teacher).detach().sign() / (B * C)
        assert torch.equal(student.grad, wanted)
        assert torch.equal(teacher.grad, -wanted)


LOGIT_LOSSES = [loss for loss in DistillationLoss if loss is not DistillationLoss.FEATURE]


class TestRegistry:
    @pytest.mark.parametrize("name", LOGIT_LOSSES)
    def test_every_loss_is_zero_for_equal_logits_and_halves_are_computed_wide(self, name):
        loss = build_logit_loss(DistillationSpec(loss=name, temperature=2.0))
        same = torch.randn(3, 4, dtype=torch.bfloat16)
        assert loss(same, same).dtype == torch.float32
        assert loss(same, same).item() == pytest.approx(0.0, abs=1e-6)

    def test_settings_reach_kl(self, logits):
        settings = {
            "temperature": 2.0,
            "squared_temperature": True,
            "direction": KlDirection.STUDENT_TEACHER,
        }
        built = build_logit_loss(DistillationSpec(loss=DistillationLoss.KL, **settings))
        assert built(*logits).item() == kl(*logits, **settings).item()

    @pytest.mark.parametrize("name", LOGIT_LOSSES)
    def test_a_detached_teacher_gets_no_gradient_and_the_student_the_same(self, logits, name):
        student, teacher = logits
        torch.autograd.backward(build_logit_loss(DistillationSpec(loss=name))(student, teacher))
        attached = student.grad.clone()
        assert teacher.grad.abs().sum() > 0
        student.grad = teacher.grad = None
        detached = build_logit_loss(DistillationSpec(loss=name, detach_teacher=True))
        torch.autograd.backward(detached(student, teacher))
        assert teacher.grad is None
        assert torch.equal(student.grad, attached)


class TestSpec:
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"temperature": 0.0}, "temperature"),
            ({"temperature": math.nan}, "temperature"),
            ({"weight": -1.0}, "weight"),
            ({"weight": math.inf}, "weight"),
            ({"layers": ()}, "layers"),
            ({"layers": (1, 1)}, "layers"),
            ({"layers": (-1,)}, "layers"),
        ],
    )
    def test_refuses_what_cannot_be(self, changes, field):
        with pytest.raises(InvalidError, match=field) as caught:
            DistillationSpec(**changes)
        assert caught.value.fields[0].pointer == f"/method/distillation/{field}"

    def test_survives_json(self):
        spec = DistillationSpec(loss=DistillationLoss.FEATURE, layers=(1, 3), weight=0.5)
        stored = json.loads(json.dumps(dataclasses.asdict(spec)))
        assert DistillationSpec.from_json(stored) == spec
