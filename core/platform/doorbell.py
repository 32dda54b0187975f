"""The doorbell: tells workers that something may be waiting, so that they need not wait for a poll.

The row is the truth. A ring that is lost, late or doubled costs time, never work, and so a broker
that is down or frozen may cost the caller nothing either.
"""

import logging
from typing import Protocol

from celery import Celery
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

#: Names of the Celery tasks, shared by whoever rings and the worker. Stable: messages of an older
#: release may still be in the broker.
TRAIN_TASK = "job.train"
VALIDATE_TASK = "dataset.validate"
DELIVER_TASK = "webhook.deliver"

#: Redis transport options for every process that talks to the broker. The visibility timeout must
#: be the same everywhere; the short socket timeouts keep a frozen broker from hanging a caller.
TRANSPORT_OPTIONS = {
    "visibility_timeout": 3600,
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


class Doorbell(Protocol):
    """Rings for a task; never raises, never blocks for more than a few seconds."""

    def ring(self, task: str) -> None:
        """Tell one worker that work for this task may be waiting."""


class SilentDoorbell:
    """No broker: workers poll the database."""

    def ring(self, task: str) -> None:
        """Do nothing."""


class BrokerDoorbell:
    """Sends an empty Celery message."""

    def __init__(self, broker_url: str) -> None:
        """Prepare a producer; it connects at the first ring."""
        self._celery = Celery(broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_transport_options=TRANSPORT_OPTIONS,
            task_ignore_result=True,
            broker_connection_timeout=2,
        )

    def ring(self, task: str) -> None:
        """Send, or log that it could not be sent: the workers' sweep finds the row anyway."""
        try:
            self._celery.send_task(task, retry=False, ignore_result=True)
        except (OperationalError, OSError) as error:
            logger.warning("the broker did not take a ring for %s: %s", task, error)


def build_doorbell(broker_url: str) -> Doorbell:
    """Return the doorbell for a broker URL; empty means none."""
    return BrokerDoorbell(broker_url) if broker_url else SilentDoorbell()
