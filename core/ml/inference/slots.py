"""Rows of numbers in one tensor, taken and given back while others are read.

A row is written once, before anybody may read it, and not again until it was given back; so readers
need no lock. Room grows by a larger tensor that has the same rows: a forward that began on the
old one finishes on it. On a GPU rows are copied by a stream of their own, and readers wait for its
last event.
"""

import heapq
import threading

import torch
from torch import Tensor

_FIRST_ROWS = 16
#: Room doubles up to this many more rows at a time.
_MOST_NEW_ROWS = 1024


class Slots:
    """A growing table of rows; row 0 is zero for ever.

    Args:
        size: numbers in a row.
        dtype: their format.
        device: where they lie.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._lock = threading.Lock()
        self._numbers = torch.zeros(_FIRST_ROWS, size, dtype=dtype, device=device)
        self._free = list(range(1, _FIRST_ROWS))  # a heap: low rows first, as growing copies less
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call] # of torch
        self._written = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call] # of torch
        if self._stream is not None:  # the zeros above come from another one
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._numbers.shape[1] * self._numbers.element_size()

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows, taken or free."""
        return self._numbers.nbytes

    @property
    def taken(self) -> int:
        """How many rows are in use, the zero row not counted."""
        with self._lock:
            return self._numbers.shape[0] - 1 - len(self._free)

    def take(self, row: Tensor) -> int:
        """Write fp32 numbers (size,) from the CPU into a free row; return its index."""
        with self._lock:
            if not self._free:
                self._grow()
            index = heapq.heappop(self._free)
            self._write(index, row)
            return index

    def give_back(self, index: int) -> None:
        """Zero a row and let others have it. Nobody may be reading it."""
        with self._lock:
            assert 0 < index < self._numbers.shape[0] and index not in self._free  # noqa: PT018
            self._write(index, None)
            heapq.heappush(self._free, index)

    def read(self) -> Tensor:
        """Return the table, (rows, size), as it is for work that is queued from now on."""
        with self._lock:
            if self._written is not None:
                stream = torch.cuda.current_stream(self._numbers.device)
                stream.wait_event(self._written)
                self._numbers.record_stream(stream)  # a replaced table lives until it was read
            return self._numbers

    def _write(self, index: int, row: Tensor | None) -> None:
        with torch.no_grad(), torch.cuda.stream(self._stream):
            if row is None:
                self._numbers[index].zero_()
            else:
                self._numbers[index].copy_(row)
        if self._stream is not None and self._written is not None:
            self._written.record(self._stream)

    def _grow(self) -> None:
        old = self._numbers
        rows = old.shape[0] + min(old.shape[0], _MOST_NEW_ROWS)
        with torch.no_grad(), torch.cuda.stream(self._stream):
            numbers = torch.zeros(rows, old.shape[1], dtype=old.dtype, device=old.device)
            numbers[: old.shape[0]].copy_(old)
        for index in range(old.shape[0], rows):
            heapq.heappush(self._free, index)
        self._numbers = numbers
