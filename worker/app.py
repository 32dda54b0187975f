"""The Celery application: `python -m worker`, or `celery -A worker.app` with other options."""

import logging
from typing import Any

from celery import Celery
from celery.signals import after_setup_logger, worker_init, worker_shutdown, worker_shutting_down

from core.platform.doorbell import build_transport_options
from core.settings import Settings
from worker.poller import PollerStep
from worker.runtime import draining_flag, worker_folder
from worker.workdirs import hold_worker_folder

#: Kombu's in-process transport: the worker's own timer is the only one who rings.
_NO_BROKER = "memory://localhost/"


def create_app(settings: Settings) -> Celery:
    """Return the Celery application for these settings."""
    options = build_transport_options(visibility_timeout_s=settings.broker_visibility_timeout_s)
    app = Celery("idat", broker=settings.broker_url or _NO_BROKER, include=["worker.tasks"])
    app.conf.update(
        idat_settings=settings,
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_transport_options=options if settings.broker_url else {},
        task_acks_late=False,  # the row, not the message, says whether work is left
        task_ignore_result=True,
        task_reject_on_worker_lost=False,
        task_serializer="json",
        # One more for validation and sweeps, one for batch predictions, and one that may wait for
        # webhooks' receivers.
        worker_concurrency=settings.worker_slots + 3,
        worker_enable_remote_control=bool(settings.broker_url),
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
    )
    if settings.broker_url:
        # A message that waits behind a long training would hide from idle workers.
        app.conf.worker_disable_prefetch = True
    app.steps["worker"].add(PollerStep)
    return app


app = create_app(Settings())


@worker_init.connect
def _make_folder(**_kw: Any) -> None:  # noqa: ANN401
    # Never closed: the operating system does that when the worker has ended, however it ends.
    hold_worker_folder(worker_folder(app.conf.idat_settings))
    # A worker with this process id may have lived here before.
    draining_flag(app.conf.idat_settings).unlink(missing_ok=True)


@worker_shutting_down.connect
def _drain(**_kw: Any) -> None:  # noqa: ANN401
    draining_flag(app.conf.idat_settings).touch()


@worker_shutdown.connect
def _remove_folder(**_kw: Any) -> None:  # noqa: ANN401
    folder = worker_folder(app.conf.idat_settings)
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)
    folder.rmdir()


@after_setup_logger.connect
def _quieten(**_kw: Any) -> None:  # noqa: ANN401
    # A line for every ring, once a second, would bury the lines that matter.
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)
