"""The six tasks, and how many of their images a run sees."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmarks.tasks import Task, cifar10_1k, count, digits, location, sprite_orientation, textures
from benchmarks.tasks.base import cut_task
from core.errors import InvalidError

CIFAR = "cifar10-1k"


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        train: training images of a task, at most.
        val: validation images, at most.
        test: test images, at most.
        epochs: passes over the training images.
        batch_size: images per step.
    """

    train: int
    val: int
    test: int
    epochs: int
    batch_size: int


SIZES = {
    "small": Size(train=240, val=80, test=500, epochs=8, batch_size=16),
    "full": Size(train=800, val=200, test=2000, epochs=100, batch_size=32),
}

_DRAWN: dict[str, Callable[..., Task]] = {
    "sprites-location": location,
    "sprites-orientation": sprite_orientation,
    "count": count,
    "textures": textures,
}

TASKS = ("digits", CIFAR, *_DRAWN)


@lru_cache(maxsize=len(TASKS))
def build_task(name: str, seed: int, size: Size, cifar: Path | None) -> Task:
    """Draw a task; other seeds draw other images, or another cut of those that there are.

    Raises:
        InvalidError: there is no task of that name, or it needs a file that was not named.
    """
    if name in _DRAWN:
        return _DRAWN[name](seed, train=size.train, val=size.val, test=size.test)
    if name == "digits":
        whole = digits(seed=seed)
        return cut_task(whole, train=size.train, val=size.val, test=size.test, seed=seed)
    if name != CIFAR:
        raise InvalidError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    if cifar is None:
        raise InvalidError(f"{CIFAR} needs its zip; name it with --cifar, or leave the task out")
    whole = _read_cifar(cifar)
    return cut_task(whole, train=size.train, val=size.val, test=size.test, seed=seed)


@lru_cache(maxsize=1)
def _read_cifar(path: Path) -> Task:
    return cifar10_1k(path)
