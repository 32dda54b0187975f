"""Tasks of real images: sizes, and images that are what their labels say."""

import io
import zipfile

import numpy as np
from PIL import Image

from benchmarks.tasks import SPLITS, cifar10_1k, digits


class TestDigits:
    def test_splits_cover_every_image_once(self):
        task = digits()
        assert [len(task.images[split]) for split in SPLITS] == [800, 200, 797]
        assert task.images["train"].shape[1:] == (8, 8, 3)
        together = np.concatenate([task.images[split] for split in SPLITS])
        assert len(np.unique(together.reshape(1797, -1), axis=0)) == 1797

    def test_uses_the_whole_range_of_lightness(self):
        images = digits().images["train"]
        assert images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)


class TestCifar:
    def test_reads_splits_and_classes_from_paths(self, tmp_path):
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for shade, split in enumerate(SPLITS):
                for kind in ("cat", "ape"):
                    data = io.BytesIO()
                    Image.new("RGB", (4, 4), (shade, 0, 0)).save(data, "PNG")
                    archive.writestr(f"some/{split}/{kind}/0.png", data.getvalue())
        task = cifar10_1k(path)
        assert task.classes == ("ape", "cat")
        assert task.labels["val"].tolist() == [0, 1]
        assert task.images["test"].shape == (2, 4, 4, 3)
        assert (task.images["test"][..., 0] == 2).all()
