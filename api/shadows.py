"""Shadow evaluation: a second model answers a share of an alias's requests, for nobody.

It runs after the answer has been given, in a thread of its own that asks the engine as a caller of
the lowest standing: one request at a time, and only while nothing else is under way on the
backbone. What does not fit is dropped and counted. Nothing of it reaches the request.
"""

import asyncio
import logging
import queue
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from api.calls import Predictions
from api.resolution import ServedModel, Shadow
from core.clock import monotonic_s
from core.errors import AppError
from core.ml.inference.agreement import compare
from core.platform.db.engine import Database
from core.platform.models.shadow import Agreement, add_agreement

logger = logging.getLogger(__name__)

#: Whose turn a comparison takes: nobody's; no project can have a name with a space.
SHADOW_PROJECT = "shadow evaluation"
#: Requests that may wait to be compared; more are dropped.
_MAX_WAITING = 8
_FLUSH_S: Final = 3.0
#: How long one waits for the backbone to have nothing else to do.
_PATIENCE_S = 1.0
_LOOK_S = 0.01
_ANSWER_S = 60.0

Predict = Callable[[ServedModel, Sequence[Any]], Awaitable[Predictions]]


@dataclass(frozen=True, eq=False)
class _Offer:
    shadow: Shadow
    images: Sequence[Any]
    answered: Predictions
    loop: asyncio.AbstractEventLoop


class Shadows:
    """Compares models in a thread that starts with the first shadowed request.

    Args:
        database: where the counts go, every few seconds.
        predict: asks a model, on the event loop.
        is_idle: whether nothing is under way on the model's backbone.
        draw: returns a number of [0, 1): below the fraction, a request is compared.
    """

    def __init__(
        self,
        database: Database,
        *,
        predict: Predict,
        is_idle: Callable[[ServedModel], bool],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._predict = predict
        self._is_idle = is_idle
        self._draw = draw
        self._offers: queue.Queue[_Offer | None] = queue.Queue(_MAX_WAITING)
        self._lock = threading.Lock()
        self._counted: dict[int, Agreement] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = threading.Event()

    def offer(self, shadow: Shadow, images: Sequence[Any], answered: Predictions) -> None:
        """Take a request that has been answered, if its turn is drawn; never waits, never fails."""
        if self._is_closed.is_set() or self._draw() >= shadow.fraction:
            return
        offer = _Offer(shadow, images, answered, asyncio.get_running_loop())
        try:
            self._offers.put_nowait(offer)
        except queue.Full:
            self._count(offer, Agreement(dropped=len(images)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Compare no more, and write down what has been counted."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self.flush()

    def flush(self) -> None:
        """Write down what has been counted; what cannot be written now is kept."""
        with self._lock:
            counted, self._counted = self._counted, {}
        for change_id, agreement in sorted(counted.items()):
            try:
                with self._database.write() as session:
                    add_agreement(session, change_id, agreement)
            except SQLAlchemyError as error:
                logger.warning("the counts of a shadow could not be written: %s", error)
                self._add(change_id, agreement)

    def _run(self) -> None:
        flushed_s = monotonic_s()
        while not self._is_closed.is_set():
            try:
                offer = self._offers.get(timeout=_FLUSH_S / 10)
            except queue.Empty:
                offer = None
            if offer is not None:
                self._count(offer, self._compare(offer))
            if monotonic_s() - flushed_s >= _FLUSH_S:
                self.flush()
                flushed_s = monotonic_s()

    def _compare(self, offer: _Offer) -> Agreement:
        images = len(offer.images)
        if not self._wait_until_idle(offer.shadow.model):
            return Agreement(dropped=images)
        asked = asyncio.run_coroutine_threadsafe(
            self._ask(offer.shadow.model, offer.images), offer.loop
        )
        try:
            given = asked.result(_ANSWER_S)
        except (AppError, OSError, RuntimeError, TimeoutError) as error:
            logger.info("shadow model %s did not answer: %s", offer.shadow.model.id, error)
            asked.cancel()
            return Agreement(failed=images)
        answered = offer.answered
        found = compare(answered.classes, answered.logits, given.classes, given.logits)
        return Agreement(
            images=found.images,
            agreed=found.agreed,
            delta_sum=found.delta_sum,
            disagreements=found.disagreements,
        )

    async def _ask(self, model: ServedModel, images: Sequence[Any]) -> Predictions:
        return await self._predict(model, images)

    def _wait_until_idle(self, model: ServedModel) -> bool:
        deadline_s = monotonic_s() + _PATIENCE_S
        while not self._is_idle(model):
            if monotonic_s() >= deadline_s or self._is_closed.wait(_LOOK_S):
                return False
        return True

    def _count(self, offer: _Offer, agreement: Agreement) -> None:
        self._add(offer.shadow.change_id, agreement)

    def _add(self, change_id: int, more: Agreement) -> None:
        with self._lock:
            had = self._counted.get(change_id, Agreement())
            self._counted[change_id] = Agreement(
                images=had.images + more.images,
                agreed=had.agreed + more.agreed,
                delta_sum=had.delta_sum + more.delta_sum,
                dropped=had.dropped + more.dropped,
                failed=had.failed + more.failed,
                disagreements=Counter(had.disagreements) + Counter(more.disagreements),
            )
