"""Every surface is its own kind of pattern, whatever its turn, scale and colours."""

import numpy as np
import pytest

from benchmarks.tasks import textures
from benchmarks.tasks.surfaces import PATTERNS


def spectrum(surface):
    """Return the power by radius of frequency (1..31), as shares: blind to turn and lightness."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(surface - surface.mean()))) ** 2
    y, x = np.mgrid[-32:32, -32:32]
    radius = np.hypot(x, y).round().astype(int)
    shares = np.bincount(radius.ravel(), power.ravel())[1:32]
    return shares / shares.sum()


def folds(surface, times):
    """Return how much the strong frequencies repeat under a turn by 360°/times."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(surface - surface.mean()))) ** 2
    y, x = np.mgrid[-32:32, -32:32]
    ring = (np.hypot(x, y) > 3) & (np.hypot(x, y) < 14)
    weight, angle = power[ring], np.arctan2(y, x)[ring]
    return np.abs((weight * np.exp(1j * times * angle)).sum()) / weight.sum()


class TestPatterns:
    @pytest.mark.parametrize("name", PATTERNS)
    def test_stays_in_range_and_is_not_flat(self, name):
        rng = np.random.default_rng(0)
        for _ in range(5):
            surface = PATTERNS[name](rng)

            assert surface.shape == (64, 64)
            assert surface.min() >= 0
            assert surface.max() <= 1
            assert surface.std() > 0.05

    def test_a_honeycomb_repeats_by_sixths_and_a_weave_by_quarters(self):
        rng = np.random.default_rng(0)
        six, four = (
            np.mean([[folds(PATTERNS[name](rng), n) for n in (6, 4)] for _ in range(20)], axis=0)
            for name in ("honeycomb", "woven")
        )

        assert six[0] > 2 * six[1]
        assert four[1] > 2 * four[0]

    def test_a_labyrinth_has_one_wavelength_and_scratches_have_many(self):
        rng = np.random.default_rng(0)
        sharp, broad = (
            np.mean([np.sort(spectrum(PATTERNS[name](rng)))[-3:].sum() for _ in range(20)])
            for name in ("labyrinth", "scratches")
        )

        assert sharp > 2 * broad


class TestTask:
    def test_brightness_and_colour_do_not_tell_the_class(self):
        task = textures(1, train=400, val=10, test=10)
        means = task.images["train"].mean(axis=(1, 2))
        by_class = np.stack([means[task.labels["train"] == k].mean(axis=0) for k in range(10)])

        # The spread of ten means of 40 values each, a little more than chance would make it.
        assert (by_class.std(axis=0) < 2 * means.std(axis=0) / np.sqrt(40)).all()
