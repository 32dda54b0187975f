"""Batches as large as what waits, taken whenever the network is free: no image waits for another.

One thread for each backbone takes what is queued, runs it, hands the results over and looks again.
Under light load batches are small and nobody waits; under heavy load they fill by themselves.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.clock import monotonic_s
from core.errors import DeadlineError
from core.ml.inference.admission import BatchTimes
from core.ml.inference.batch_size import BatchSize
from core.ml.inference.queueing import FairQueue

logger = logging.getLogger(__name__)

#: A network is shared for so long after images of one project have followed another's.
_SHARED_S = 5.0


class Call(Protocol):
    """The request that an image belongs to, as the threads see it."""

    is_over: bool  #: it has been answered, or nobody waits for the answer any more


class Dropped(Exception):  # noqa: N818 - no error: nobody waits for this image
    """The image was not looked at, because its request is over."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One image on its way.

    Attributes:
        call: its request.
        index: its place there.
        project: whose turn it takes.
        resident: the model, in the engine's own form.
        batch_key: images with equal keys can share a batch.
        deadline_s: on the monotonic clock; later nobody wants the answer.
        source: what it is made of, in the form of whoever decodes.
        pixels: what the network reads, once decoded.
        outcome: the engine's output, or the exception in its place.
        ready_s: when it was ready for the network.
        queue_s: how long it waited for it.
        forward_s: how long the network took.
    """

    call: Call
    index: int
    project: str
    resident: Any
    batch_key: Hashable
    deadline_s: float
    source: Any
    pixels: Any = None
    outcome: Any = None
    ready_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0


class Batcher:
    """The queue and the thread of one backbone.

    Args:
        name: for the thread and the log.
        forward: runs a batch; residents and pixels, one for each image, to outputs in their order.
        deliver: takes tickets that have their outcome; called in the batcher's thread.
        max_batch: most images of a batch.
        times: told of every batch, asked how long the next one will take.
        weight_of: share of a project relative to others.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]],
        deliver: Callable[[list[Ticket]], None],
        *,
        max_batch: int,
        times: BatchTimes,
        weight_of: Callable[[str], float] | None = None,
    ) -> None:
        self._name = name
        self._forward = forward
        self._deliver = deliver
        self._size = BatchSize(max_batch)
        self._last_project = ""
        self._shared_until_s = 0.0
        self._times = times
        self._queue: FairQueue[Ticket] = FairQueue(weight_of)
        self._changed = threading.Condition(threading.Lock())
        self._is_closed = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"network {name}", daemon=True)
        self._thread.start()

    @property
    def failures(self) -> int:
        """How many batches have failed since the last one that did not."""
        return self._failures

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue images that are ready for the network; safe from any thread."""
        now_s = monotonic_s()
        with self._changed:
            for ticket in tickets:
                ticket.ready_s = now_s
                if ticket.project != self._last_project:
                    self._shared_until_s = now_s + _SHARED_S if self._last_project else 0.0
                    self._last_project = ticket.project
                self._queue.put(ticket, project=ticket.project, key=ticket.batch_key)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """End the thread once the queue is empty; return whether it has ended in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not len(self._queue):
                    if self._is_closed:
                        return
                    self._changed.wait()
                batch, rejected = self._gather(monotonic_s())
            if batch:
                self._run_batch(batch)
            try:
                self._deliver(batch + rejected)
            except Exception:
                logger.exception("the answers of a batch of %s could not be delivered", self._name)

    def _gather(self, now_s: float) -> tuple[list[Ticket], list[Ticket]]:
        """Take the next batch, and what turned out to be too late on the way; under the lock."""
        queue = self._queue
        key = queue.next_key()
        batch: list[Ticket] = []
        rejected: list[Ticket] = []
        tightest_s = float("inf")
        most = self._times.size = self._size.find(is_shared=now_s < self._shared_until_s)
        while len(batch) < most:
            ticket = queue.find_next(key)
            if ticket is None:
                break
            if ticket.call.is_over:
                ticket.outcome = Dropped()
                rejected.append(queue.pop(key, is_charged=False))
                continue
            if now_s >= ticket.deadline_s:
                ticket.outcome = DeadlineError("the image waited for the network until it was late")
                rejected.append(queue.pop(key, is_charged=False))
                continue
            # One more makes the batch longer: not at the price of somebody's deadline. Who would be
            # late even alone does not hold the others back.
            done_s = now_s + self._times.predict_s(len(batch) + 1)
            if batch and done_s > min(tightest_s, ticket.deadline_s):
                break
            if done_s <= ticket.deadline_s:
                tightest_s = min(tightest_s, ticket.deadline_s)
            batch.append(queue.pop(key))
        return batch, rejected

    def _run_batch(self, batch: list[Ticket]) -> None:
        started_s = monotonic_s()
        try:
            outputs = self._forward(
                [ticket.resident for ticket in batch], [ticket.pixels for ticket in batch]
            )
        except Exception as error:
            self._failures += 1
            logger.exception("a batch of %d images failed on %s", len(batch), self._name)
            outputs = [error] * len(batch)
        else:
            self._failures = 0
            took_s = monotonic_s() - started_s
            self._times.add(len(batch), took_s)
            self._size.add(len(batch), took_s)
        took_s = monotonic_s() - started_s
        for ticket, output in zip(batch, outputs, strict=True):
            ticket.outcome = output
            ticket.pixels = None
            ticket.queue_s = started_s - ticket.ready_s
            ticket.forward_s = took_s
