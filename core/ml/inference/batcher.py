"""Batches as large as what waits, taken whenever the network is free: no image waits for another.

A thread takes what is queued, runs it, hands the results over and looks again. Under light load
batches are small and nobody waits; under heavy load they fill by themselves. On a GPU there is one
thread for each backbone. On a CPU there is one for each core: under heavy load batches run side by
side, each on a core of its own, so that none waits for another's slowest part and whoever comes
next waits for the first of them, not for all; a lone image has as many cores as pay (`spread`).
"""

import logging
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from core.clock import monotonic_s
from core.errors import DeadlineError
from core.ml.inference.admission import BatchTimes
from core.ml.inference.batch_size import BatchSize
from core.ml.inference.queueing import FairQueue
from core.ml.inference.spread import Spread

logger = logging.getLogger(__name__)

#: A project that asks little is expected again for so long after its last image.
_MODEST_S = 5.0

#: Within this factor a batch with one image more takes as long as without.
_HARDLY_LONGER = 1.2


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
        forward: runs a batch; residents and pixels, one for each image, and the cores that it may
            use, to outputs in their order.
        deliver: takes tickets that have their outcome; called in the batcher's threads.
        max_batch: most images of a batch.
        times: told of every batch on one core, asked how long the next one will take.
        cores: how many batches may run side by side.
        weight_of: share of a project relative to others.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[[Sequence[Any], Sequence[Any], int], Sequence[Any]],
        deliver: Callable[[list[Ticket]], None],
        *,
        max_batch: int,
        times: BatchTimes,
        cores: int = 1,
        weight_of: Callable[[str], float] | None = None,
    ) -> None:
        self._name = name
        self._forward = forward
        self._deliver = deliver
        self._size = BatchSize(max_batch)
        self._spread = Spread(cores)
        self._modest_until_s = 0.0
        self._times = times
        times.abreast = cores
        self._queue: FairQueue[Ticket] = FairQueue(weight_of)
        self._changed = threading.Condition(threading.Lock())
        self._is_closed = False
        self._failures = 0
        self._cores = self._idle_cores = cores
        #: of the batches that run, and how many images may still join them though others are next
        self._key: Hashable = None
        self._quota = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"network {name}", daemon=True)
            for _ in range(cores)
        ]
        for thread in self._threads:
            thread.start()

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
                self._queue.put(ticket, project=ticket.project, key=ticket.batch_key)
                if self._queue.is_modest(ticket.project, ticket.batch_key):
                    self._modest_until_s = now_s + _MODEST_S
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """End the threads once the queue is empty; return whether they have ended in time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        until_s = monotonic_s() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - monotonic_s()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._may_begin():
                    if self._is_closed and not len(self._queue):
                        return
                    self._changed.wait()
                batch, rejected, cores = self._gather(monotonic_s())
                self._idle_cores -= cores
                if len(self._queue):
                    self._changed.notify()  # there may be a core for the next batch
            if batch:
                self._run_batch(batch, cores)
            with self._changed:
                self._idle_cores += cores
                self._changed.notify_all()
            try:
                self._deliver(batch + rejected)
            except Exception:
                logger.exception("the answers of a batch of %s could not be delivered", self._name)

    def _may_begin(self) -> bool:
        """Say whether something waits that may run now; under the lock.

        What runs side by side has one batch key. When others' turn comes, those that run may be
        joined until they are as many images as one batch on all cores, and are then waited for.
        """
        if not len(self._queue) or not self._idle_cores:
            return False
        if self._idle_cores == self._cores:
            return True
        if self._queue.next_key() == self._key:
            return True
        return self._quota > 0 and self._queue.count(self._key) > 0

    def _gather(self, now_s: float) -> tuple[list[Ticket], list[Ticket], int]:
        """Take the next batch, what turned out to be too late, and cores; under the lock."""
        queue = self._queue
        most = self._times.size = self._size.find(beside_modest=now_s < self._modest_until_s)
        if self._idle_cores == self._cores:
            self._key, self._quota = queue.next_key(), self._cores * most
        key = self._key
        batch: list[Ticket] = []
        rejected: list[Ticket] = []
        tightest_s = float("inf")
        for_modest, alone_s = False, 0.0
        # What waits is shared among the cores that wait.
        most = min(most, math.ceil(queue.count(key) / self._idle_cores))
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
            took_s = self._times.predict_s(len(batch) + 1)
            done_s = now_s + took_s
            if batch and done_s > min(tightest_s, ticket.deadline_s):
                break
            # Nor at the price of a project that has little here: others wait longer already for
            # their own images than for a batch that is not filled.
            is_modest = queue.is_modest(ticket.project, key)
            if for_modest and not is_modest and took_s > _HARDLY_LONGER * alone_s:
                break
            if not batch:
                for_modest, alone_s = is_modest, took_s
            if done_s <= ticket.deadline_s:
                tightest_s = min(tightest_s, ticket.deadline_s)
            batch.append(queue.pop(key))
        self._quota -= len(batch)
        return batch, rejected, self._choose_cores(len(batch))

    def _choose_cores(self, images: int) -> int:
        """Return how many of the idle cores a batch has.

        That is an equal part of them, with those that follow, and of it what pays for one image.
        """
        if not images:
            return 0
        following = math.ceil(self._queue.count(self._key) / images)
        part = self._idle_cores // (1 + min(self._idle_cores - 1, following))
        return self._spread.find(part) if images == 1 else part

    def _run_batch(self, batch: list[Ticket], cores: int) -> None:
        started_s = monotonic_s()
        try:
            outputs = self._forward(
                [ticket.resident for ticket in batch], [ticket.pixels for ticket in batch], cores
            )
        except Exception as error:
            with self._changed:
                self._failures += 1
            logger.exception("a batch of %d images failed on %s", len(batch), self._name)
            outputs = [error] * len(batch)
        else:
            self._learn(len(batch), monotonic_s() - started_s, cores)
        took_s = monotonic_s() - started_s
        for ticket, output in zip(batch, outputs, strict=True):
            ticket.outcome = output
            ticket.pixels = None
            ticket.queue_s = started_s - ticket.ready_s
            ticket.forward_s = took_s

    def _learn(self, images: int, took_s: float, cores: int) -> None:
        with self._changed:
            self._failures = 0
            if images == 1:
                self._spread.add(cores, took_s)
            if cores == 1 or self._times.line is None:
                self._times.add(images, took_s * cores)
                self._size.add(images, took_s * cores)
