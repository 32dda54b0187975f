"""The worker's own doorbell: rings at an interval, so that no work depends on a message.

Without a broker it is the only one; with a broker it catches what a lost message left waiting.
"""

import logging
import math
from collections import Counter
from typing import Any

from celery import Celery, bootsteps
from celery.worker import state as worker_state
from kombu.exceptions import OperationalError

from core.clock import monotonic_s
from core.platform.doorbell import DELIVER_TASK, PREDICT_TASK, TRAIN_TASK, VALIDATE_TASK
from core.settings import Settings
from worker.tasks import SWEEP_TASK

logger = logging.getLogger(__name__)


class PollerStep(bootsteps.StartStopStep):  # type: ignore[misc] # Celery is untyped
    """Celery bootstep that rings for every kind of work, unless a ring for it is still waiting."""

    requires = frozenset({"celery.worker.components:Timer"})

    def __init__(self, worker: Any, **options: Any) -> None:  # noqa: ANN401
        """Remember the timer; nothing runs before `start`."""
        super().__init__(worker, **options)
        self._entry: Any = None
        self._last_sweep_s = -math.inf  # the first tick sweeps, however young the machine's clock

    def start(self, worker: Any) -> None:  # noqa: ANN401
        """Begin to ring."""
        settings: Settings = worker.app.conf.idat_settings
        interval_s = settings.sweep_interval_s if settings.broker_url else settings.poll_interval_s
        self._entry = worker.timer.call_repeatedly(
            interval_s, self._ring, (worker.app, settings), priority=10
        )

    def stop(self, _worker: Any) -> None:  # noqa: ANN401
        """Ring no more."""
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def _ring(self, app: Celery, settings: Settings) -> None:
        waiting = Counter(request.name for request in list(worker_state.reserved_requests))
        limits = {TRAIN_TASK: settings.worker_slots, VALIDATE_TASK: 1, PREDICT_TASK: 1}
        limits[DELIVER_TASK] = 1
        due = [name for name, limit in limits.items() if waiting[name] < limit]
        if monotonic_s() - self._last_sweep_s >= settings.sweep_interval_s:
            due.append(SWEEP_TASK)
        for name in due:
            try:
                app.send_task(name, retry=False, ignore_result=True)
            except (OperationalError, OSError) as error:
                logger.warning("could not ring for %s: %s", name, error)
                return  # each try holds up the main process for seconds
            if name == SWEEP_TASK:
                self._last_sweep_s = monotonic_s()
