"""Where the tensors of one model lie in one row of a bank."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: Every tensor begins at a multiple of this, in numbers: 64 bytes in bf16, a line of the cache.
_ALIGNMENT = 32


class Layout:
    """Named tensors of fixed shapes, one behind the other.

    Args:
        shapes: by name.

    Attributes:
        size: numbers in a row.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = dict(shapes)
        self._sizes = [
            -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in self._shapes.values()
        ]
        self.size = sum(self._sizes)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return fp32 (size,) with every tensor in its place.

        A tensor may be smaller than its place: it lies in the corner of the low indices, and the
        rest is 0.
        """
        assert tensors.keys() == self._shapes.keys(), "a kind packs what it lays out"
        row = torch.zeros(self.size)
        for name, place in self.split(row.unsqueeze(0)).items():
            tensor = tensors[name]
            place[0][tuple(slice(size) for size in tensor.shape)] = tensor
        return row

    def split(self, numbers: Tensor) -> dict[str, Tensor]:
        """Return views of rows, (rows, size), by name: (rows, *shape)."""
        parts = torch.split(numbers, self._sizes, dim=1) if self._sizes else ()
        views = {}
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            exact = part[:, : math.prod(shape)]
            views[name] = exact if len(shape) == 1 else exact.view(-1, *shape)
        return views
