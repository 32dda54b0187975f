"""Every task comes at its size, from names that are known."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks.miniature.suite import CIFAR, SIZES, TASKS, Size, build_task
from benchmarks.tasks import SPLITS
from core.errors import InvalidError

SIZE = Size(train=20, val=10, test=30, epochs=1, batch_size=8)


@pytest.fixture
def cifar(tmp_path):
    """Return a zip of two classes, 30 images a split, each of its own shade."""
    path = tmp_path / "cifar.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for offset, split in enumerate(SPLITS):
            for kind in range(2):
                for number in range(30):
                    data = io.BytesIO()
                    shade = (70 * offset + number, 90 * kind, 0)
                    Image.new("RGB", (32, 32), shade).save(data, "PNG")
                    archive.writestr(f"c/{split}/class{kind}/{number}.png", data.getvalue())
    return path


class TestBuildTask:
    @pytest.mark.parametrize("name", TASKS)
    def test_has_the_size_and_balanced_classes(self, name, cifar):
        task = build_task(name, 0, SIZE, cifar)

        assert [len(task.images[split]) for split in SPLITS] == [20, 10, 30]
        for split in SPLITS:
            counts = np.bincount(task.labels[split], minlength=len(task.classes))
            assert counts.max() - counts.min() <= 1
        assert task.name.startswith(name)

    @pytest.mark.parametrize("name", TASKS)
    def test_other_seeds_are_other_images(self, name, cifar):
        hashes = {build_task(name, seed, SIZE, cifar).sha256() for seed in range(3)}

        assert len(hashes) == 3

    def test_cifar_keeps_its_splits_apart(self, cifar):
        task = build_task(CIFAR, 0, SIZE, cifar)

        for offset, split in enumerate(SPLITS):
            red = task.images[split][:, 0, 0, 0]
            assert (red // 70 == offset).all()

    def test_cifar_needs_its_zip(self):
        with pytest.raises(InvalidError, match="--cifar"):
            build_task(CIFAR, 0, SIZE, None)

    def test_another_name_is_refused_with_those_that_there_are(self):
        with pytest.raises(InvalidError, match="sprites-location"):
            build_task("sprites", 0, SIZE, None)


class TestSizes:
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_no_more_than_a_thousand_labelled_images(self, size):
        assert size.train + size.val <= 1000
