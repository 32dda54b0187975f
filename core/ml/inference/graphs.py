"""CUDA graphs of a bank's forward: one launch instead of a thousand.

A small network on a GPU waits for Python most of the time. A graph is recorded once for each size
of batch, on tensors that stay where they are: images, and the slot of every image. Which models a
batch has is only what the slots say, so one graph serves any number of models and any mix of them.
A table of slots that has grown lies somewhere else, and its graphs are recorded anew; that happens
a dozen times on the way to thousands of models.

Not run on a GPU yet.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.catalog.methods import AdapterKind
from core.ml.backbones.load import LoadedBackbone
from core.ml.inference.bank import Bank

logger = logging.getLogger(__name__)

#: A batch is filled up to the next of these; above, to a multiple of the last step.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_STEP = 32
_WARM_UPS = 3


def choose_batch_bucket(batch: int) -> int:
    """Return how many images the graph for `batch` images has."""
    for bucket in BATCH_BUCKETS:
        if batch <= bucket:
            return bucket
    return -(-batch // _STEP) * _STEP


@dataclass(frozen=True, eq=False)
class _Recording:
    """A graph and the tensors that it reads and writes.

    Attributes:
        graph: the recorded forward.
        table: rows of adapters that it reads; a grown table is another one.
        index: (bucket,) slots that it reads.
        images: (bucket, 3, px, px), likewise.
        features: (bucket, num_features) that it writes.
    """

    graph: torch.cuda.CUDAGraph
    table: Tensor
    index: Tensor
    images: Tensor
    features: Tensor


class GraphedBank(Bank):
    """A bank on a GPU that replays recordings, and runs as ever where one cannot be made."""

    is_shareable = False  # batches of one size are written into the same tensors

    def __init__(self, backbone: LoadedBackbone, kind: AdapterKind, bucket: int) -> None:
        super().__init__(backbone, kind, bucket)
        self._recordings: dict[int, _Recording] = {}
        self._is_broken = False

    def run(self, slots: Sequence[int], images: Tensor) -> Tensor:
        """Return pooled features, (batch, num_features); see `Bank`."""
        if self._is_broken:
            return super().run(slots, images)
        try:
            recording = self._find_recording(images)
        except RuntimeError as error:  # of CUDA: no memory, or something that cannot be recorded
            logger.warning("batches run without CUDA graphs: %s", error)
            self._is_broken = True
            self._recordings.clear()
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            return super().run(slots, images)
        batch = len(slots)
        # What fills the batch up has the zero row and is thrown away.
        padded = [*slots, *[0] * (len(recording.index) - batch)]
        recording.index.copy_(torch.tensor(padded).pin_memory(), non_blocking=True)
        recording.images[:batch].copy_(images)
        recording.graph.replay()
        return recording.features[:batch].clone()

    def _find_recording(self, images: Tensor) -> _Recording:
        bucket = choose_batch_bucket(images.shape[0])
        table = self.slots.read()  # makes this stream wait for rows that are being written
        recording = self._recordings.get(bucket)
        if recording is None or recording.table is not table:
            recording = self._record(bucket, table, images)
            self._recordings[bucket] = recording
        return recording

    def _record(self, bucket: int, table: Tensor, like: Tensor) -> _Recording:
        index = torch.zeros(bucket, dtype=torch.int64, device=like.device)
        images = torch.zeros(bucket, *like.shape[1:], dtype=like.dtype, device=like.device)
        # Lazy initialisations must happen before a recording, on a stream that is not the default.
        side = torch.cuda.Stream(like.device)  # type: ignore[no-untyped-call] # of torch
        side.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self.run_on(table, index, images)
        torch.cuda.current_stream(like.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on admitting models meanwhile, so only this one's calls are recorded.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            features = self.run_on(table, index, images)
        return _Recording(graph, table, index, images, features)
