"""The doorbell: tells workers that something may be waiting, so that they need not wait for a poll.

The row is the truth. A ring that is lost, late or doubled costs time, never work, and so a broker
that is down or frozen may cost the caller nothing either.
"""

import contextlib
import logging
import queue
import threading
from typing import Any, Protocol

from celery import Celery
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

#: Names of the Celery tasks, shared by whoever rings and the worker. Stable: messages of an older
#: release may still be in the broker.
TRAIN_TASK = "job.train"
VALIDATE_TASK = "dataset.validate"
DELIVER_TASK = "webhook.deliver"
PREDICT_TASK = "batch_prediction.run"

#: More rings than a broker takes in a moment; each wakes at most one worker.
_MOST_WAITING = 256


def build_transport_options(*, visibility_timeout_s: float) -> dict[str, Any]:
    """Return the Redis transport options of every process that talks to the broker.

    Args:
        visibility_timeout_s: after how long Redis gives a message that nobody acknowledged to
            another worker. The same everywhere: the shortest on a broker wins.

    The short socket timeouts keep a frozen broker from hanging a caller.
    """
    return {
        "visibility_timeout": visibility_timeout_s,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


class Doorbell(Protocol):
    """Rings for a task; never raises, never blocks for more than a few seconds."""

    def ring(self, task: str) -> bool:
        """Tell one worker that work for this task may be waiting; return whether that went out."""


class SilentDoorbell:
    """No broker: workers poll the database."""

    def ring(self, task: str) -> bool:  # noqa: ARG002
        """Do nothing."""
        return True


class BrokerDoorbell:
    """Sends an empty Celery message."""

    def __init__(self, broker_url: str, *, visibility_timeout_s: float = 3600) -> None:
        """Prepare a producer; it connects at the first ring."""
        self._celery = Celery(broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_transport_options=build_transport_options(
                visibility_timeout_s=visibility_timeout_s
            ),
            task_ignore_result=True,
            broker_connection_timeout=2,
        )

    def ring(self, task: str) -> bool:
        """Send, or log that it could not be sent: the workers' sweep finds the row anyway."""
        try:
            self._celery.send_task(task, retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            logger.warning("the broker did not take a ring for %s: %s", task, error)
            return False
        return True


class QueuedDoorbell:
    """Rings from a thread of its own, for processes that have requests to answer.

    A frozen broker holds each ring up for seconds: rung by the threads that serve requests, a few
    dozen submissions would leave none of them for the next.
    """

    def __init__(self, doorbell: Doorbell) -> None:
        """Start the thread."""
        self._doorbell = doorbell
        self._waiting: queue.Queue[str] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._ring_on, name="doorbell", daemon=True).start()

    def ring(self, task: str) -> bool:
        """Leave it to the thread; of too many the last are dropped, as any ring may be."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(task)
            return True
        return False

    def _ring_on(self) -> None:
        while True:
            self._doorbell.ring(self._waiting.get())


def build_doorbell(broker_url: str, *, visibility_timeout_s: float = 3600) -> Doorbell:
    """Return the doorbell for a broker URL; empty means none."""
    if not broker_url:
        return SilentDoorbell()
    return BrokerDoorbell(broker_url, visibility_timeout_s=visibility_timeout_s)
