"""The losses against values and gradients worked out by hand, in float64."""

import math

import pytest
import torch

from core.catalog.methods import DistillationLoss
from core.ml.losses.kl import kl
from core.ml.losses.mse import mse
from core.ml.losses.registry import build_distillation_loss

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


class TestRegistry:
    @pytest.mark.parametrize("name", list(DistillationLoss))
    def test_every_loss_is_zero_for_equal_logits_and_halves_are_computed_wide(self, name):
        loss = build_distillation_loss(name, temperature=2.0)
        same = torch.randn(3, 4, dtype=torch.bfloat16)
        assert loss(same, same).dtype == torch.float32
        assert loss(same, same).item() == pytest.approx(0.0, abs=1e-7)

    def test_temperature_reaches_kl(self, logits):
        student, teacher = logits
        built = build_distillation_loss(DistillationLoss.KL, temperature=2.0)
        assert built(student, teacher).item() == kl(student, teacher, temperature=2.0).item()
