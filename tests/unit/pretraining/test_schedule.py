"""The schedule follows progress, whatever the number of steps."""

import pytest

from pretraining.schedule import (
    FINAL_RATE_SHARE,
    WARMUP_STEPS,
    learning_rate,
    patches_to_keep,
)


class TestLearningRate:
    def test_half_way_is_half_the_peak(self):
        expected = FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) / 2
        assert learning_rate(1.0, 0.5, 10**6) == pytest.approx(expected)

    def test_ends_at_its_final_share(self):
        assert learning_rate(1.0, 1.0, 10**6) == pytest.approx(FINAL_RATE_SHARE)

    def test_rises_again_after_every_start(self):
        resumed = learning_rate(1.0, 0.3, WARMUP_STEPS // 10 - 1)
        assert resumed == pytest.approx(learning_rate(1.0, 0.3, 10**6) / 10)


class TestPatchesToKeep:
    def test_sees_everything_in_the_end_only(self):
        assert patches_to_keep(0.0) == 24
        assert patches_to_keep(0.74) == 24
        assert patches_to_keep(0.76) == 64
