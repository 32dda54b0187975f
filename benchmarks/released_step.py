"""The training step of the released code, written anew from its description, to compare ours with.

What it does that ours does not: decode and resize every JPEG again in every epoch, run two
backwards through both graphs, step two optimizers of the default (unfused) kind.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.inject import attached


class JpegDataset(Dataset[tuple[Tensor, int]]):
    """Encoded photographs, decoded and resized when asked for."""

    def __init__(self, files: list[bytes], labels: NDArray[np.int64], image_px: int) -> None:
        self._files = files
        self._labels = labels
        self._image_px = image_px

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(io.BytesIO(self._files[index])).convert("RGB")
        size = (self._image_px, self._image_px)
        resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1).float().div(255.0)
        return (pixels - 0.5) / 0.5, int(self._labels[index])


def cycle_batches(dataset: JpegDataset, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches for ever; in this process, so that its CPU time is counted."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def forward(model: AdaptedModel, images: Tensor) -> Tensor:
    """Return logits without our speedups: every token of every block, torch's own products."""
    with attached(model.backbone, model.adapters, model.spec):
        features = model.backbone.module(images)
    logits: Tensor = model.head(features)
    return logits


def build_optimizer(model: AdaptedModel, weight_decay: float, lr: float) -> torch.optim.AdamW:
    """Return the AdamW of one model, with torch's default implementation."""
    named = model.trainable_parameters().items()
    plain = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def backward_twice(
    student: AdaptedModel,
    teacher: AdaptedModel,
    images: Tensor,
    labels: Tensor,
    distill: Callable[[Tensor, Tensor], Tensor],
    *,
    autocast: bool,
) -> None:
    """Leave the gradients that the released step leaves: the teacher's accumulated twice.

    Both optimizers step only afterwards: in the released order, student first, the second backward
    meets changed weights, which torch refuses outside of mixed precision.
    """
    context = torch.autocast(images.device.type, torch.bfloat16) if autocast else nullcontext()
    with context:
        student_logits, teacher_logits = forward(student, images), forward(teacher, images)
        loss = (
            functional.cross_entropy(student_logits, labels)
            + functional.cross_entropy(teacher_logits, labels)
            + distill(student_logits, teacher_logits)
        )
    for parameter in [*student.parameters(), *teacher.parameters()]:
        parameter.grad = None
    student_parameters = list(student.parameters())
    torch.autograd.backward(loss, retain_graph=True)
    kept = [p.grad for p in student_parameters]
    for parameter in student_parameters:
        parameter.grad = None
    torch.autograd.backward(loss)
    for parameter, grad in zip(student_parameters, kept, strict=True):
        parameter.grad = grad
