"""What a task is, how it is drawn, cut to size and named by its content."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """A named data set: images and labels by split, and the classes' names in label order."""

    name: str
    classes: tuple[str, ...]
    images: dict[str, U8]  # split → (images, height, width, 3)
    labels: dict[str, I64]  # split → (images,)

    def sha256(self) -> str:
        """Return a hash (hex) of every split's images and labels."""
        digest = hashlib.sha256()
        for split in SPLITS:
            images, labels = self.images[split], self.labels[split]
            digest.update(f"{split} {images.shape} {len(self.classes)}\n".encode())
            digest.update(np.ascontiguousarray(images).tobytes())
            digest.update(labels.astype("<i8").tobytes())
        return digest.hexdigest()


def draw_task(
    name: str,
    classes: Sequence[str],
    draw: Callable[[np.random.Generator, int], U8],
    *,
    seed: int,
    salt: int,
    counts: tuple[int, int, int],
) -> Task:
    """Draw every split with a generator of its own; the classes differ by one image at most.

    Args:
        name: of the task.
        classes: names, in label order.
        draw: makes the image (height, width, 3) of a label.
        seed: of the task.
        salt: a number of the task's own, so that equal seeds of two tasks draw different numbers.
        counts: images in train, val and test.
    """
    images, labels = {}, {}
    for index, (split, number) in enumerate(zip(SPLITS, counts, strict=True)):
        rng = np.random.default_rng([seed, salt, index])
        labels[split] = rng.permutation(np.arange(number) % len(classes))
        images[split] = np.stack([draw(rng, int(label)) for label in labels[split]])
    return Task(name, tuple(classes), images, labels)


def cut_task(task: Task, *, train: int, val: int, test: int, seed: int) -> Task:
    """Return at most so many images of each split, drawn by seed, with the classes kept balanced.

    From every class comes the same number; where that does not add up, or a class has too few,
    what is missing is drawn from the rest.
    """
    images, labels = {}, {}
    for index, (split, wanted) in enumerate(zip(SPLITS, (train, val, test), strict=True)):
        rng = np.random.default_rng([seed, 7919, index])
        own = task.labels[split]
        order = rng.permutation(len(own))
        share = wanted // len(task.classes)
        first = [order[own[order] == label][:share] for label in range(len(task.classes))]
        chosen = np.concatenate(first)
        rest = order[~np.isin(order, chosen)][: max(0, wanted - len(chosen))]
        rows = rng.permutation(np.concatenate([chosen, rest]))
        images[split], labels[split] = task.images[split][rows], own[rows]
    return Task(task.name, task.classes, images, labels)


def add_noise(rng: np.random.Generator, image: F64, deviation: float) -> U8:
    """Return an image in 0..255 with Gaussian noise, as uint8."""
    noisy = image + rng.normal(0, deviation, image.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
