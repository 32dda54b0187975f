"""What a worker process needs at hand: settings, database, store, its worker's folder."""

import os
import signal
import socket
from functools import cache
from pathlib import Path

from celery.signals import worker_process_init

from core.platform.db.engine import Database
from core.platform.doorbell import Doorbell, build_doorbell
from core.platform.storage.base import BlobStore
from core.platform.storage.factory import build_store
from core.settings import Settings
from worker.workdirs import WORKER_PREFIX

_in_pool_process = False


@worker_process_init.connect
def _note_pool_process(**_kw: object) -> None:
    global _in_pool_process  # noqa: PLW0603 - true for the life of this process
    _in_pool_process = True
    # systemd and container engines send SIGTERM to every process of a service at once. A supervisor
    # must outlive it to hand its job back; the main process tells it through the draining flag.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Runtime:
    """Opened once in every pool process; connections must not cross a fork.

    Attributes:
        settings: the worker's settings.
        database: the truth.
        store: the blobs.
        doorbell: for work that this worker has made possible.
        owner: name that claims carry, `host:pid`.
    """

    def __init__(self, settings: Settings) -> None:
        """Open the database and the store."""
        self.settings = settings
        self.database = Database(settings.resolved_database_url)
        self.store: BlobStore = build_store(settings)
        self.doorbell: Doorbell = build_doorbell(
            settings.broker_url, visibility_timeout_s=settings.broker_visibility_timeout_s
        )
        self.owner = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def folder(self) -> Path:
        """Folder of this worker (not of this process): slot locks and the draining flag."""
        return worker_folder(self.settings)

    @property
    def is_draining(self) -> bool:
        """Whether the worker has been asked to shut down."""
        return draining_flag(self.settings).exists()


def worker_folder(settings: Settings) -> Path:
    """Return the folder that the main process of a worker and its pool processes share."""
    main_pid = os.getppid() if _in_pool_process else os.getpid()
    # With the host's name: containers that share a data directory have the same process ids.
    return settings.scratch_dir / f"{WORKER_PREFIX}{socket.gethostname()}-{main_pid}"


def draining_flag(settings: Settings) -> Path:
    """Return the file whose presence tells supervisors to hand their work back."""
    return worker_folder(settings) / "draining"


@cache
def _runtime_of(_pid: int) -> Runtime:
    return Runtime(Settings())


def get_runtime() -> Runtime:
    """Return this process's runtime, opened at the first call."""
    return _runtime_of(os.getpid())
