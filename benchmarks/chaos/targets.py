"""What faults can strike, and who may strike it at the moment."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.processes import Service
from benchmarks.chaos.proxy import Proxy


class NotStruckError(Exception):
    """There was nothing to strike: no trainer was running, say."""


@dataclass
class Targets:
    """What faults can strike.

    Attributes:
        data_dir: of the run.
        lease_ttl_s: how long a lease lasts.
        apis: the API processes.
        workers: the main processes of the workers.
        links: `database`, `redis`, `store` -> the proxy before it.
        broker: the Redis server, if there is one.
        database_url: of the database itself, not of its proxy.
        has_small_disk: whether the data directory is a file system of its own that may be filled.
        on_broken: told of a service and what it did not do.
    """

    data_dir: Path
    lease_ttl_s: float
    apis: Sequence[Service]
    workers: Sequence[Service]
    links: dict[str, Proxy]
    broker: Service | None
    database_url: str
    has_small_disk: bool
    on_broken: Callable[[str, str], None]
    #: held while a worker is stopped: with all of them asleep nobody would take a lease over
    stopping: threading.Lock = field(default_factory=threading.Lock)
    _taken: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def take(self, services: Sequence[Service], pick: float) -> Iterator[Service]:
        """Keep one running service for this fault alone.

        Raises:
            NotStruckError: none is free and runs.
        """
        with self._lock:
            free = [s for s in services if s.name not in self._taken and s.pid is not None]
            if not free:
                raise NotStruckError
            service = free[int(pick * len(free))]
            self._taken.add(service.name)
        try:
            yield service
        finally:
            with self._lock:
                self._taken.discard(service.name)
