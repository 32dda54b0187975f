"""Small image classification tasks for measuring backbones and methods.

Every task is a `Task` of uint8 images (images, height, width, 3) split into train, val and test.
Nothing here is used in pretraining; the drawn tasks share no code with the pretraining images.
"""

from collections.abc import Callable

from benchmarks.tasks.base import I64, SPLITS, U8, Task
from benchmarks.tasks.counting import count
from benchmarks.tasks.keys import orientation
from benchmarks.tasks.real import cifar10_1k, digits
from benchmarks.tasks.sprites import location, sprite_orientation
from benchmarks.tasks.surfaces import textures

#: Tasks that the starter pair is judged by and that need no file, by name.
BUILT_IN: dict[str, Callable[[], Task]] = {"digits": digits, "orientation": orientation}

__all__ = [
    "BUILT_IN",
    "I64",
    "SPLITS",
    "U8",
    "Task",
    "cifar10_1k",
    "count",
    "digits",
    "location",
    "orientation",
    "sprite_orientation",
    "textures",
]
