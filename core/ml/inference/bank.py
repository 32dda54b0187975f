"""The adapters of many models of one kind on one backbone, and a forward for any mix of them."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from core.catalog.methods import AdapterKind
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.last_block import find_trimmable_block, trimmed
from core.ml.backbones.load import LoadedBackbone
from core.ml.inference.banked_kinds import BANKED_METHODS
from core.ml.inference.layout import Layout
from core.ml.inference.rows import Rows
from core.ml.inference.slots import Slots


class Bank:
    """Rows of adapters, row 0 the bare backbone.

    A row has all numbers of one model, in the backbone's format, so a batch takes its models by one
    `index_select`. The hooks stay on the network between batches and read the rows of the batch
    that runs in their thread.

    Args:
        backbone: the network, where it will stay.
        kind: of the adapters.
        bucket: hidden dimension that they are padded to.
    """

    is_shareable = True  # each thread has the rows of its own part of the batch

    def __init__(self, backbone: LoadedBackbone, kind: AdapterKind, bucket: int) -> None:
        self._method = BANKED_METHODS[kind]
        self._backbone = backbone
        self._layout = Layout(self._method.lay_out(backbone, bucket))
        self.slots = Slots(self._layout.size, dtype=backbone.dtype, device=backbone.device)
        self._running = _Running()
        self._trimmable = (
            find_trimmable_block(backbone.module) if self._method.allows_trimming else None
        )

    def take(self, spec: AdapterSpec, state: Mapping[str, Tensor]) -> int:
        """Put a model in; return its slot.

        Args:
            spec: kind, size and scale.
            state: adapters by their names in a bundle, checked.
        """
        packed = self._method.pack(self._backbone, spec, state)
        return self.slots.take(self._layout.pack(packed))

    def mount(self, stack: ExitStack) -> None:
        """Attach to the network until `stack` is closed."""
        stack.enter_context(trimmed(self._trimmable))
        for handle in self._method.attach(self._backbone, self._read):
            stack.callback(handle.remove)

    def run(self, slots: Sequence[int], images: Tensor) -> Tensor:
        """Return pooled features, (batch, num_features), in the backbone's format.

        The bank must be mounted.

        Args:
            slots: of every image.
            images: (batch, 3, px, px), normalised, in the backbone's format.
        """
        distinct = slots[:1] if len(set(slots)) == 1 else slots
        index = torch.tensor(distinct, device=images.device)
        return self.run_on(self.slots.read(), index, images)

    def run_on(self, table: Tensor, index: Tensor, images: Tensor) -> Tensor:
        """Return what `run` does.

        Args:
            table: rows of adapters, (slots, size).
            index: (batch,) slots, or (1,) if all images have the same; on the backbone's device.
            images: as there.
        """
        numbers = table.index_select(0, index)
        self._running.rows = Rows(self._layout, numbers, images.shape[0])
        try:
            features: Tensor = self._backbone.module(images)
        finally:
            self._running.rows = None
        return features

    def _read(self) -> Rows:
        rows = self._running.rows
        assert rows is not None, "hooks run within `run` alone"
        return rows


class _Running(threading.local):
    """What the hooks read in this thread."""

    rows: Rows | None = None


def find_bucket(backbone: LoadedBackbone, spec: AdapterSpec) -> int | None:
    """Return the bucket of the bank that a model like this one belongs in; None: it has none."""
    method = BANKED_METHODS.get(spec.kind)
    return None if method is None else method.find_bucket(backbone, spec)
