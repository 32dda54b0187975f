"""Tasks of real images: scikit-learn's digits, and a cut of CIFAR-10 from the user's zip."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tasks.base import SPLITS, U8, Task


def digits(*, train: int = 800, val: int = 200, seed: int = 0) -> Task:
    """Return scikit-learn's 1,797 handwritten 8 x 8 digits; what is not drawn is the test split.

    Stratified by nothing: the classes are nearly balanced (174 to 183 images each).
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - only this task needs scikit-learn

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    order = np.random.default_rng(seed).permutation(len(images))
    parts = dict(zip(SPLITS, np.split(order, [train, train + val]), strict=True))
    return Task(
        name="digits",
        classes=tuple(str(k) for k in range(10)),
        images={split: images[index] for split, index in parts.items()},
        labels={split: bunch.target[index].astype(np.int64) for split, index in parts.items()},
    )


def cifar10_1k(path: Path) -> Task:
    """Read a zip laid out as <any folder>/{train,val,test}/<class>/<image>, as it is."""
    images: dict[str, list[U8]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        classes = tuple(sorted({name.split("/")[-2] for name in names}))
        for name in names:
            *_, split, label, _ = name.split("/")
            with Image.open(io.BytesIO(archive.read(name))) as image:
                images[split].append(np.asarray(image.convert("RGB")))
            labels[split].append(classes.index(label))
    return Task(
        name="cifar10-1k",
        classes=classes,
        images={split: np.stack(images[split]) for split in SPLITS},
        labels={split: np.array(labels[split], np.int64) for split in SPLITS},
    )
