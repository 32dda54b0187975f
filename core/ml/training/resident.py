"""A dataset that lies in memory as uint8, on the device that trains."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InvalidError


@dataclass(frozen=True, eq=False)
class ResidentSplit:
    """The images of one split at the sizes that the two networks read.

    Attributes:
        student_images: uint8 (images, px, px, 3).
        teacher_images: the same images at the teacher's size; the very same tensor where the sizes
            are equal, None where there is no teacher.
        labels: int64 (images,), from 0.
    """

    student_images: Tensor
    teacher_images: Tensor | None
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True, eq=False)
class ResidentData:
    """The splits of a dataset.

    Attributes:
        train: what the loss is computed on.
        val: what the epoch is chosen on; None takes the last epoch.
        test: measured once, at the end; None measures nothing.
        fingerprint: names the dataset's content, splits and preprocessing; a checkpoint of another
            is refused.
    """

    train: ResidentSplit
    val: ResidentSplit | None
    test: ResidentSplit | None
    fingerprint: str


def build_split(
    student_images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    device: torch.device,
    teacher_images: NDArray[np.uint8] | None = None,
) -> ResidentSplit:
    """Put one split on `device`.

    Pass the same array as `teacher_images` where the sizes are equal: it is held once.

    Args:
        student_images: (images, px, px, 3). On a CPU a writable array, `np.load(...,
            mmap_mode="c")` among them, is used in place; a read-only one is copied, as everything
            is for a GPU.
        labels: (images,), from 0.
        device: where training happens.
        teacher_images: likewise at the teacher's size; None without a teacher.

    Raises:
        InvalidError: the arrays do not belong together, or are empty.
    """
    for images in (student_images, teacher_images):
        if images is None:
            continue
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:  # noqa: PLR2004
            raise InvalidError(
                f"images are {images.dtype} {images.shape}, not uint8 (n, px, px, 3)"
            )
        if len(images) != len(labels):
            raise InvalidError(f"there are {len(images)} images but {len(labels)} labels")
    if len(labels) == 0:
        raise InvalidError("a split without images cannot be used")
    student = _to_device(student_images, device)
    teacher = None
    if teacher_images is not None:
        same = teacher_images is student_images
        teacher = student if same else _to_device(teacher_images, device)
    return ResidentSplit(
        student_images=student,
        teacher_images=teacher,
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
    )


def _to_device(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    if device.type == "cpu" and images.flags.writeable:
        return torch.from_numpy(images)
    return torch.tensor(images, device=device)
