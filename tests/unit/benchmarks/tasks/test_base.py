"""What holds for every drawn task, and how a task is cut and named."""

import hashlib

import numpy as np
import pytest

from benchmarks.tasks import SPLITS, Task, count, location, sprite_orientation, textures
from benchmarks.tasks.base import cut_task

DRAWN = [location, sprite_orientation, count, textures]


def rows_of(images):
    return images.reshape(len(images), -1)


@pytest.fixture(params=DRAWN, ids=lambda draw: draw.__name__)
def draw(request):
    return request.param


class TestDrawnTasks:
    def test_repeat_by_seed(self, draw):
        first, again = (draw(3, train=12, val=6, test=6) for _ in range(2))
        other = draw(4, train=12, val=6, test=6)

        assert first.sha256() == again.sha256()
        assert not np.array_equal(first.images["val"], other.images["val"])

    def test_a_split_does_not_depend_on_the_sizes_of_the_others(self, draw):
        few, many = draw(3, train=4, val=6, test=6), draw(3, train=12, val=2, test=6)

        np.testing.assert_array_equal(few.images["test"], many.images["test"])

    def test_classes_are_balanced_and_shuffled(self, draw):
        task = draw(0, train=80, val=20, test=41)

        for split in SPLITS:
            counts = np.bincount(task.labels[split], minlength=len(task.classes))
            assert counts.max() - counts.min() <= 1
            assert counts.sum() == len(task.images[split])
            assert (np.diff(task.labels[split]) < 0).any()

    def test_images_are_colour_and_of_one_size(self, draw):
        images = draw(0, train=4, val=4, test=4).images["train"]

        assert images.dtype == np.uint8
        assert images.shape == (4, 64, 64, 3)

    def test_splits_share_no_image(self, draw):
        task = draw(0, train=40, val=40, test=40)

        together = np.concatenate([rows_of(task.images[split]) for split in SPLITS])
        assert len(np.unique(together, axis=0)) == 120


def numbered(classes, *counts):
    """Return a task whose images have their number within the split as every pixel."""
    images = {
        split: np.arange(n, dtype=np.uint8).repeat(3).reshape(n, 1, 1, 3)
        for split, n in zip(SPLITS, counts, strict=True)
    }
    labels = {split: np.arange(len(x)) % classes for split, x in images.items()}
    return Task("numbered", tuple("abcdefgh"[:classes]), images, labels)


class TestCutTask:
    def test_takes_as_many_of_every_class(self):
        task = cut_task(numbered(4, 100, 60, 40), train=20, val=8, test=12, seed=1)

        assert [np.bincount(task.labels[s]).tolist() for s in SPLITS] == [[5] * 4, [2] * 4, [3] * 4]

    def test_keeps_images_with_their_labels_and_takes_none_twice(self):
        task = cut_task(numbered(4, 100, 60, 40), train=22, val=8, test=12, seed=1)

        numbers = task.images["train"][:, 0, 0, 0]
        assert len(set(numbers.tolist())) == 22
        assert (numbers % 4 == task.labels["train"]).all()

    def test_other_seeds_cut_other_images(self):
        whole = numbered(4, 100, 60, 40)
        cuts = [cut_task(whole, train=20, val=8, test=12, seed=seed) for seed in (1, 1, 2)]

        assert cuts[0].sha256() == cuts[1].sha256() != cuts[2].sha256()

    def test_takes_everything_where_more_is_wanted_than_there_is(self):
        task = cut_task(numbered(4, 10, 10, 10), train=50, val=10, test=3, seed=1)

        assert sorted(task.images["train"][:, 0, 0, 0].tolist()) == list(range(10))
        assert len(task.images["test"]) == 3


class TestSha256:
    def test_is_the_hash_of_what_the_docstring_says(self):
        task = numbered(2, 3, 1, 1)
        text = b"train (3, 1, 1, 3) 2\n" + bytes([0, 0, 0, 1, 1, 1, 2, 2, 2])
        text += b"".join(n.to_bytes(8, "little") for n in (0, 1, 0))
        for split in (b"val", b"test"):
            text += split + b" (1, 1, 1, 3) 2\n" + bytes(3) + bytes(8)

        assert task.sha256() == hashlib.sha256(text).hexdigest()

    def test_sees_one_changed_label(self):
        task = numbered(2, 3, 1, 1)
        before = task.sha256()
        task.labels["test"][0] = 1

        assert task.sha256() != before
