import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from demo.digits import build_digits


def entries(archive):
    with zipfile.ZipFile(archive.path) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


class TestBuildDigits:
    def test_every_digit_is_in_exactly_one_split(self, tmp_path):
        digits = build_digits(
            tmp_path, train_images=800, val_images=200, held_out_images=10, seed=0
        )

        names = list(entries(digits))
        rows = [name.split("/")[2] for name in names]
        splits = [name.split("/")[0] for name in names]

        assert digits.splits == {"train": 800, "val": 200, "test": 797}
        assert {split: splits.count(split) for split in set(splits)} == digits.splits
        assert len(rows) == len(set(rows)) == 1797

    def test_each_file_is_the_scan_in_the_folder_of_its_class(self, tmp_path):
        digits = build_digits(tmp_path, train_images=20, val_images=20, held_out_images=0, seed=3)
        real = load_digits()

        for name, content in list(entries(digits).items())[::100]:
            _split, label, file = name.split("/")
            row = int(file.removesuffix(".png"))
            levels = np.asarray(Image.open(io.BytesIO(content)), dtype=float)
            assert label == str(real.target[row])
            # 16 grey levels, spread over 256: half a step of rounding.
            assert np.abs(levels * 16 / 255 - real.images[row]).max() < 0.04

    def test_held_out_images_are_of_the_test_split_one_of_each_class_first(self, tmp_path):
        digits = build_digits(
            tmp_path, train_images=800, val_images=200, held_out_images=12, seed=0
        )
        test_images = {
            (name.split("/")[1], content)
            for name, content in entries(digits).items()
            if name.startswith("test/")
        }

        assert [image.label for image in digits.held_out] == [*"0123456789", "0", "1"]
        assert len({image.path for image in digits.held_out}) == 12
        for image in digits.held_out:
            assert (image.label, image.path.read_bytes()) in test_images

    def test_same_seed_same_archive(self, tmp_path):
        sizes = {"train_images": 30, "val_images": 10, "held_out_images": 0}
        for folder in ("a", "b", "c"):
            (tmp_path / folder).mkdir()
        first = build_digits(tmp_path / "a", **sizes, seed=1)
        again = build_digits(tmp_path / "b", **sizes, seed=1)
        other = build_digits(tmp_path / "c", **sizes, seed=2)

        assert entries(first) == entries(again)
        assert entries(first).keys() != entries(other).keys()

    def test_refuses_splits_that_leave_nothing_to_test_on(self, tmp_path):
        with pytest.raises(ValueError, match="there are 1797 digits"):
            build_digits(tmp_path, train_images=1500, val_images=300, held_out_images=1, seed=0)
