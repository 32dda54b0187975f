"""Threads that decode images, so that the network's thread never does.

They take turns between projects as the network does: otherwise a flood would fill them, and a quiet
project would wait for its turn here instead of there.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from core.clock import monotonic_s
from core.ml.inference.batcher import Dropped, Ticket
from core.ml.inference.queueing import FairQueue

#: Weight of the newest image in the mean time that an image takes.
_NEWEST = 0.02


class DecodePool:
    """A fixed number of threads; what may wait for them is bounded by admission.

    Args:
        threads: how many images are decoded at once.
        decode: turns a ticket's source into pixels; raises what is wrong with the image.
        ready: takes a ticket that has its pixels.
        failed: takes a ticket whose outcome is the exception.
        weight_of: share of a project relative to others.
    """

    def __init__(
        self,
        threads: int,
        decode: Callable[[Ticket], Any],
        *,
        ready: Callable[[Ticket], None],
        failed: Callable[[Ticket], None],
        weight_of: Callable[[str], float] | None = None,
    ) -> None:
        self._decode = decode
        self._ready = ready
        self._failed = failed
        self._queue: FairQueue[Ticket] = FairQueue(weight_of)
        self._changed = threading.Condition(threading.Lock())
        self._is_closed = False
        self._mean_s: float | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"decode {index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    def find_rate(self) -> float | None:
        """Return the images a second that all threads together decode; None before the first."""
        return len(self._threads) / self._mean_s if self._mean_s else None

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue images; safe from any thread."""
        with self._changed:
            for ticket in tickets:
                self._queue.put(ticket, project=ticket.project)
            self._changed.notify(len(tickets))

    def close(self, timeout_s: float) -> bool:
        """End the threads once the queue is empty; return whether they have ended in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        deadline_s = monotonic_s() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - monotonic_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not len(self._queue):
                    if self._is_closed:
                        return
                    self._changed.wait()
                ticket = self._queue.pop(self._queue.next_key())
            if ticket.call.is_over:
                ticket.outcome = Dropped()
            else:
                started_s = monotonic_s()
                try:
                    ticket.pixels = self._decode(ticket)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's
                    ticket.outcome = error
                took_s = monotonic_s() - started_s
                mean_s = took_s if self._mean_s is None else self._mean_s
                self._mean_s = mean_s + _NEWEST * (took_s - mean_s)
            ticket.source = None
            if ticket.outcome is None:
                self._ready(ticket)
            else:
                self._failed(ticket)
