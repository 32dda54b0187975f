"""A folder in VTAB-1k's layout, small enough to train on in seconds."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.vtab.lists import Expected, ListName
from core.catalog.recipes import get_recipe

CLASSES = 3
EXPECTED = Expected(train=24, val=8, train_val=32, test=20, num_classes=CLASSES)
#: The starter pair ships its weights; two epochs on 24 images take a second.
FAST = [
    *("--pair", "starter", "--epochs", "2", "--batch-size", "8", "--device", "cpu"),
    *("--precision", "fp32", "--threads", "1", "--decode", "none"),
]


def draw(label: int, rng: np.random.Generator) -> bytes:
    """Return a JPEG of 40 x 32 pixels: a grating whose direction is the class."""
    rows, columns = np.mgrid[0:32, 0:40] / 32
    angle = np.pi * label / CLASSES
    wave = np.sin(rng.uniform(0, 6) + 20 * (columns * np.cos(angle) + rows * np.sin(angle)))
    pixels = 128 + 60 * wave[..., None] + rng.normal(0, 25, (32, 40, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def build_folder(root: Path, *names: str) -> Path:
    """Write datasets of `EXPECTED`'s sizes below `root`; return it."""
    sizes = {ListName.TRAIN: 24, ListName.VAL: 8, ListName.TEST: 20}
    for number, name in enumerate(names):
        folder = root / get_recipe(name).folder
        rng = np.random.default_rng(number)
        drawn: dict[ListName, list[tuple[int, bytes]]] = {
            split: [(k % CLASSES, draw(k % CLASSES, rng)) for k in range(count)]
            for split, count in sizes.items()
        }
        drawn[ListName.TRAIN_VAL] = drawn[ListName.TRAIN] + drawn[ListName.VAL]
        for split, images in drawn.items():
            (folder / "images" / split.value).mkdir(parents=True)
            lines = []
            for index, (label, content) in enumerate(images):
                path = f"images/{split.value}/{index:06d}.jpg"
                (folder / path).write_bytes(content)
                lines.append(f"{path} {label}\n")
            (folder / split.file_name).write_text("".join(lines))
    return root


@pytest.fixture
def expected():
    """The sizes of `vtab_root`."""
    return EXPECTED


@pytest.fixture
def fast():
    """Options that make a run take seconds."""
    return FAST


@pytest.fixture
def vtab_root(tmp_path):
    """A folder with CIFAR-100 and KITTI, so to speak."""
    return build_folder(tmp_path / "vtab", "vtab-cifar100", "vtab-kitti")
