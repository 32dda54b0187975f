"""Real handwritten digits as an archive of PNG files in class folders.

The images are scikit-learn's bundled 1,797 scans of 8x8 pixels (a part of the UCI "Optical
Recognition of Handwritten Digits" set). They are written as they are: the service enlarges them.
"""

import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

_BRIGHTEST = 16  # of the scans' grey levels


@dataclass(frozen=True)
class HeldOutImage:
    """An image of the test split.

    Attributes:
        path: its file.
        label: the class it belongs to.
    """

    path: Path
    label: str


@dataclass(frozen=True)
class DigitsArchive:
    """What was written.

    Attributes:
        path: the zip, entries `{train,val,test}/{0..9}/NNNN.png`.
        splits: number of images in each split.
        held_out: some images of the test split, as files of their own, one class after the other.
    """

    path: Path
    splits: dict[str, int]
    held_out: list[HeldOutImage]


def build_digits(
    folder: Path, *, train_images: int, val_images: int, held_out_images: int, seed: int
) -> DigitsArchive:
    """Write `digits.zip` and some test images into `folder`.

    Args:
        folder: exists.
        train_images: size of the train split.
        val_images: size of the val split; the rest is the test split.
        held_out_images: how many test images to write out.
        seed: of the shuffle that makes the splits.

    Raises:
        ValueError: no image would be left to test on.
    """
    digits = load_digits()
    count = len(digits.target)
    if train_images + val_images + held_out_images > count:
        raise ValueError(f"there are {count} digits, fewer than the splits ask for")
    order = np.random.default_rng(seed).permutation(count)
    rows = {
        "train": order[:train_images],
        "val": order[train_images : train_images + val_images],
        "test": order[train_images + val_images :],
    }
    archive = folder / "digits.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for split, members in rows.items():
            for row in members:
                name = f"{split}/{digits.target[row]}/{row:04d}.png"
                zipped.writestr(name, _encode_png(digits.images[row]))
    shown = []
    for row in _one_class_after_the_other(rows["test"], digits.target)[:held_out_images]:
        path = folder / f"held-out-{row:04d}.png"
        path.write_bytes(_encode_png(digits.images[row]))
        shown.append(HeldOutImage(path, str(digits.target[row])))
    return DigitsArchive(archive, {split: len(members) for split, members in rows.items()}, shown)


def _one_class_after_the_other(rows: np.ndarray, classes: np.ndarray) -> list[int]:
    """Return the rows, the first of each class before the second of any."""
    seen: Counter[int] = Counter()
    ranked = []
    for row in rows:
        label = int(classes[row])
        ranked.append((seen[label], label, int(row)))
        seen[label] += 1
    return [row for _, _, row in sorted(ranked)]


def _encode_png(scan: np.ndarray) -> bytes:
    """Return a scan, (8, 8) grey levels 0..16, as the bytes of a PNG."""
    levels = np.rint(scan * (255 / _BRIGHTEST)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()
