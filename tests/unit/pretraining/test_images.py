"""Drawn images: repeatable, complete, and labelled by what was drawn."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from pretraining.images.banks import CATEGORIES, OFFSETS, build_banks
from pretraining.images.degrade import Degrader
from pretraining.images.scenes import LABELS, draw_batch, render_many


@pytest.fixture(scope="module")
def banks():
    return build_banks()


class TestDrawBatch:
    def test_same_seed_and_step_give_the_same_images(self, banks):
        first, first_labels = draw_batch(banks, 3, 5, 6)
        draw_batch(banks, 9, 9, 2)
        again, again_labels = draw_batch(banks, 3, 5, 6)
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(first_labels, again_labels)

    def test_another_step_gives_other_images(self, banks):
        first, _ = draw_batch(banks, 3, 5, 6)
        other, _ = draw_batch(banks, 3, 6, 6)
        assert (np.abs(first - other).mean(axis=(1, 2, 3)) > 0.01).all()

    def test_what_was_in_memory_does_not_show(self, banks):
        """Painting blends, so a pixel never painted would keep what the array held before."""
        clean, dirty = np.zeros((40, 64, 64, 3), np.float32), np.full((40, 64, 64, 3), np.nan)
        labels = np.empty((40, len(LABELS)), np.int64)
        render_many(clean, labels, 11, banks)
        dirty = dirty.astype(np.float32)
        render_many(dirty, labels, 11, banks)
        np.testing.assert_array_equal(clean, dirty)

    def test_every_label_stays_in_its_range(self, banks):
        _, labels = draw_batch(banks, 0, 0, 300)
        for column, (name, count) in enumerate(LABELS.items()):
            lowest = -1 if name in ("x", "y") else 0
            assert labels[:, column].min() >= lowest, name
            assert labels[:, column].max() < count, name

    def test_all_families_occur(self, banks):
        _, labels = draw_batch(banks, 0, 0, 300)
        families = np.searchsorted(OFFSETS, labels[:, 0], side="right") - 1
        assert set(families) == {0, 1, 2, 3, 4}

    def test_categories_add_up(self, banks):
        sizes = [len(banks.contours), len(banks.glyphs), len(banks.fractals), len(banks.assemblies)]
        assert list(OFFSETS) == [0, *np.cumsum(sizes)]
        assert OFFSETS[-1] + 12 == CATEGORIES

    def test_position_labels_name_the_cell_of_the_object(self, banks):
        """Checked on printed glyphs, where everything unlike the corner is the glyph."""
        images, labels = draw_batch(banks, 1, 0, 400)
        distances = []
        for image, row in zip(images, labels, strict=True):
            rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            if not (OFFSETS[1] <= row[0] < OFFSETS[2]) or row[3] < 0 or np.ptp(rim) > 0:
                continue
            rows, columns = np.nonzero(np.abs(image[..., 0] - image[0, 0, 0]) > 0.3)
            x, y = (row[3] + 0.5) * 64 / 6, (row[4] + 0.5) * 64 / 6
            distances.append(np.hypot(columns.mean() - x, rows.mean() - y))
        assert len(distances) > 8
        assert np.mean(distances) < 8  # half a cell is 5 px; cells at random are 20 px apart


class TestDegrader:
    def test_keeps_range_and_shape(self):
        images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 3 - 1
        degraded = Degrader()(images, torch.Generator().manual_seed(1))
        assert degraded.shape == images.shape
        assert degraded.min() >= 0
        assert degraded.max() <= 1

    def test_every_resampling_keeps_a_flat_image_flat(self):
        for matrix in Degrader().matrices:
            torch.testing.assert_close(matrix.sum(dim=1), torch.ones(64), atol=1e-4, rtol=0)

    def test_passing_through_eight_pixels_removes_fine_stripes(self):
        stripes = (torch.arange(64) % 2).float().expand(64, 64)
        matrix = Degrader().matrices[3]
        assert (matrix @ stripes @ matrix.T).std() < 0.05
