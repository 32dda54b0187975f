"""The keys: sizes, balance, and images of their own in every split."""

import numpy as np

from benchmarks.tasks import SPLITS, orientation


class TestOrientation:
    def test_repeats_by_seed(self):
        first, again = (orientation(3, train=8, val=4, test=4) for _ in range(2))
        other = orientation(4, train=8, val=4, test=4)
        np.testing.assert_array_equal(first.images["train"], again.images["train"])
        assert not np.array_equal(first.images["train"], other.images["train"])

    def test_classes_are_balanced(self):
        task = orientation(train=120, val=12, test=24)
        assert len(task.classes) == 12
        assert np.bincount(task.labels["train"]).tolist() == [10] * 12

    def test_splits_share_no_image(self):
        task = orientation(train=30, val=30, test=30)
        together = np.concatenate([task.images[split] for split in SPLITS])
        assert len(np.unique(together.reshape(90, -1), axis=0)) == 90
