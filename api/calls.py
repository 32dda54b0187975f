"""A request's images on their way: sent off together, gathered, answered in time or given up.

Everything of a call happens on its event loop; threads only look at `is_over` and hand tickets
back, a whole batch of them with one wake-up of the loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from core.clock import monotonic_s
from core.errors import DeadlineError
from core.ml.inference.batcher import Ticket

#: A client is watched from then on. Most requests are answered before, and cost no task.
WATCH_AFTER_S = 0.25


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of a request's images.

    Attributes:
        model_id: the model that answered.
        classes: names, in the order of the logits.
        logits: fp32 (images, classes).
        features: fp32 (images, num_features), what the head read.
        decode_ms: until the last image was decoded and resized.
        queue_ms: longest wait of an image between that and the network.
        forward_ms: longest time of a batch in the network.
        precision: number format of the network, `fp32` or `bf16`.
    """

    model_id: str
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    decode_ms: float
    queue_ms: float
    forward_ms: float
    precision: str = "fp32"


class Call:
    """The images of one request.

    Args:
        model_id: for the answer.
        classes: likewise.
        images: how many tickets there will be.
        precision: for the answer.
        retire: called once, when no thread has anything of this call any more.
    """

    __slots__ = (
        "_classes", "_decoded_s", "_forward_s", "_future", "_images", "_model_id", "_outputs",
        "_precision", "_queue_s", "_retire", "_retired", "_started_s", "is_over", "loop",
    )  # fmt: skip

    def __init__(
        self,
        model_id: str,
        classes: tuple[str, ...],
        images: int,
        *,
        precision: str,
        retire: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_over = False
        self._model_id = model_id
        self._classes = classes
        self._images = images
        self._precision = precision
        self._retire = retire
        self._retired = 0
        self._outputs: list[Any] = [None] * images
        self._started_s = monotonic_s()
        self._decoded_s = self._queue_s = self._forward_s = 0.0
        self._future: asyncio.Future[Predictions] = self.loop.create_future()

    async def wait(self, due_s: float, timeout_s: float, request: Request | None) -> Predictions:
        """Return the answer.

        Args:
            due_s: until when, on the monotonic clock.
            timeout_s: how long the request had in all, of which some may be spent; told if it ends.
            request: whose client is watched; None if there is none.

        Raises:
            DeadlineError: there was none in time.
            ClientDisconnect: the client has gone.
            AppError: what an image or the network failed with.
        """
        watching: list[asyncio.Task[None]] = []
        timer: asyncio.TimerHandle
        left_s = due_s - monotonic_s()

        def look() -> None:
            nonlocal timer
            timer = self.loop.call_later(left_s - WATCH_AFTER_S, self._expire, timeout_s)
            if request is not None:
                watching.append(self.loop.create_task(self._watch(request)))

        if left_s > WATCH_AFTER_S:
            timer = self.loop.call_later(WATCH_AFTER_S, look)
        else:
            timer = self.loop.call_later(left_s, self._expire, timeout_s)
        try:
            return await self._future
        finally:
            self.is_over = True
            timer.cancel()
            for task in watching:
                task.cancel()

    def take(self, ticket: Ticket) -> None:
        """Take a ticket back, with its outcome; on the loop."""
        self._retired += 1
        if self._retired == self._images:
            self._retire()
        if self.is_over:
            return
        outcome = ticket.outcome
        if isinstance(outcome, Exception):
            self.fail(outcome)
            return
        self._outputs[ticket.index] = outcome
        self._decoded_s = max(self._decoded_s, ticket.ready_s)
        self._queue_s = max(self._queue_s, ticket.queue_s)
        self._forward_s = max(self._forward_s, ticket.forward_s)
        if self._retired == self._images:
            self._succeed()

    def fail(self, error: Exception) -> None:
        """Answer with an error, once; what is still under way is dropped where it is met."""
        if not self.is_over and not self._future.done():
            self.is_over = True
            self._future.set_exception(error)

    def _succeed(self) -> None:
        self.is_over = True
        if self._future.done():
            return
        outputs = self._outputs
        self._future.set_result(
            Predictions(
                self._model_id,
                self._classes,
                _stack([output.logits for output in outputs]),
                _stack([output.features for output in outputs]),
                decode_ms=max(0.0, self._decoded_s - self._started_s) * 1000,
                queue_ms=self._queue_s * 1000,
                forward_ms=self._forward_s * 1000,
                precision=self._precision,
            )
        )

    def _expire(self, timeout_s: float) -> None:
        self.fail(
            DeadlineError(
                f"there was no answer within {timeout_s:g} s; send fewer images at once, or allow "
                "more time"
            )
        )

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientDisconnect())


def _stack(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return rows as a matrix; a single one, which is what most requests bring, as it is."""
    return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)


def hand_back(tickets: Sequence[Ticket]) -> None:
    """Give tickets back to their calls, from any thread, with one wake-up of each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        call = ticket.call
        assert isinstance(call, Call)
        by_loop.setdefault(call.loop, []).append(ticket)
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_take_all, own)
        except RuntimeError:  # the loop has ended, and nobody waits on it
            for ticket in own:
                ticket.call.is_over = True
            _take_all(own)


def _take_all(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        call = ticket.call
        assert isinstance(call, Call)
        call.take(ticket)
