"""The heads of all models on one backbone, and the logits of a mixed batch."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.ml.inference.layout import Layout
from core.ml.inference.slots import Slots

_BUCKETS = (16, 128, 1024)


@dataclass(frozen=True)
class HeadSlot:
    """Where a model's head lies.

    Attributes:
        bucket: classes that it is padded to; 0 if the model has no head.
        index: row in the table of that bucket.
        classes: how many it has.
        size_bytes: of the row.
    """

    bucket: int
    index: int
    classes: int
    size_bytes: int


NO_HEAD = HeadSlot(0, 0, 0, 0)


class Heads:
    """fp32 matrices and biases in one table for each bucket of class counts.

    Args:
        num_features: inputs F of every head.
        device: where the features are.
    """

    def __init__(self, num_features: int, device: torch.device) -> None:
        self._num_features = num_features
        self._device = device
        self._lock = threading.Lock()
        self._tables: dict[int, tuple[Layout, Slots]] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all tables."""
        with self._lock:
            return sum(slots.size_bytes for _, slots in self._tables.values())

    def take(self, weight: Tensor, bias: Tensor) -> HeadSlot:
        """Put a head in, (classes, F) and (classes,)."""
        classes = weight.shape[0]
        bucket = choose_class_bucket(classes)
        layout, slots = self._table(bucket)
        index = slots.take(layout.pack({"weight": weight, "bias": bias}))
        return HeadSlot(bucket, index, classes, slots.row_bytes)

    def give_back(self, head: HeadSlot) -> None:
        """Take a head out. No batch with it may be running."""
        if head.bucket:
            self._table(head.bucket)[1].give_back(head.index)

    def run(self, heads: Sequence[HeadSlot], features: Tensor) -> list[NDArray[np.float32]]:
        """Return each image's logits, (classes,) of its own head.

        Args:
            heads: of every image.
            features: fp32 (batch, F).
        """
        logits: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(heads)
        for group, scores in self._multiply(heads, features):
            table: NDArray[np.float32] = scores.cpu().numpy()
            for image, row in zip(group, table, strict=True):
                logits[image] = row[: heads[image].classes]
        return logits

    def _multiply(
        self, heads: Sequence[HeadSlot], features: Tensor
    ) -> list[tuple[list[int], Tensor]]:
        """Return images and their scores, padded, in groups; all are queued before any is read."""
        # A GPU wants few calls, so it copies the heads of a bucket and multiplies them all at once.
        # On a CPU that copy is most of the work: there each head multiplies its own images.
        is_cpu = self._device.type == "cpu"
        groups: dict[tuple[int, int], list[int]] = {}
        for image, head in enumerate(heads):
            if head.bucket:
                groups.setdefault((head.bucket, head.index if is_cpu else 0), []).append(image)
        done = []
        for (bucket, index), group in groups.items():
            layout, slots = self._table(bucket)
            all_images = len(group) == len(heads)
            read = features if all_images else features[torch.tensor(group, device=self._device)]
            if is_cpu:
                tensors = layout.split(slots.read()[index : index + 1])
                scores = tensors["bias"].addmm(read, tensors["weight"][0].t())
            else:
                chosen = torch.tensor([heads[image].index for image in group], device=self._device)
                tensors = layout.split(slots.read().index_select(0, chosen))
                weights = tensors["weight"].transpose(1, 2)
                scores = tensors["bias"].unsqueeze(1).baddbmm(read.unsqueeze(1), weights).squeeze(1)
            done.append((group, scores))
        return done

    def _table(self, bucket: int) -> tuple[Layout, Slots]:
        with self._lock:
            if bucket not in self._tables:
                layout = Layout({"weight": (bucket, self._num_features), "bias": (bucket,)})
                slots = Slots(layout.size, dtype=torch.float32, device=self._device)
                self._tables[bucket] = (layout, slots)
            return self._tables[bucket]


def choose_class_bucket(classes: int) -> int:
    """Return how many classes a head is padded to: 16, 128, 1024, 2048, 4096, …."""
    for bucket in _BUCKETS:
        if classes <= bucket:
            return bucket
    return 1 << (classes - 1).bit_length()
