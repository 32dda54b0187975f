import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from core.ml.training.schedule import learning_rate


def run_timm(peak, epochs, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-8, warmup_t=warmup, warmup_lr_init=1e-7
    )
    rates = []
    for epoch in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    return rates


def run_ours(peak, epochs, warmup, total):
    return [learning_rate(e, peak=peak, epochs=epochs, warmup_epochs=warmup) for e in range(total)]


class TestLearningRate:
    @pytest.mark.parametrize("peak", [1e-3, 5e-3, 5e-2])
    @pytest.mark.parametrize(
        ("epochs", "warmup", "total"), [(100, 10, 110), (30, 3, 30), (8, 0, 8)]
    )
    def test_equals_timm(self, peak, epochs, warmup, total):
        ours, theirs = (run(peak, epochs, warmup, total) for run in (run_ours, run_timm))
        assert ours == pytest.approx(theirs, rel=1e-14, abs=0)

    def test_official_run_by_hand(self):
        rates = run_ours(5e-3, 100, 10, 110)
        assert rates[0] == 1e-7
        assert rates[5] == pytest.approx((1e-7 + 5e-3) / 2)
        assert rates[10] == max(rates)  # the peak asked for is never reached
        assert rates[10] == pytest.approx(5e-3 * 0.5 * (1 + math.cos(math.pi / 10)), rel=1e-5)
        assert rates[50] == pytest.approx(2.5e-3, rel=1e-4)
        assert rates[100:] == [1e-8] * 10
        assert sum(rates) == pytest.approx(45.07 * 5e-3, rel=1e-3)
