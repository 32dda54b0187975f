"""The service of a run: two APIs and two workers, kept alive until they are stopped."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

from benchmarks.chaos.backends import Backend
from benchmarks.chaos.client import wait_until_ready
from benchmarks.chaos.faults import STOP_S
from benchmarks.chaos.injector import Injector
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.processes import (
    ROOT,
    Keeper,
    Service,
    find_free_port,
    find_owned,
    list_descendants,
    python_module,
    signal_all,
)
from benchmarks.chaos.targets import Targets
from core.clock import monotonic_s
from core.errors import UnavailableError
from core.settings import build_environment

#: Short enough for hundreds of faults in minutes, long enough for a busy machine's heartbeats.
LEASE_TTL_S = 6.0
#: A crash is charged to its job, and here there are far more of them than a job may have.
MAX_ATTEMPTS = 1000
_APIS = 2
_WORKERS = 2
_START_S = 180.0
#: What has died so often by itself before the first fault will not live.
_STARTS = 2

_SETTINGS = {
    "IDAT_API_KEYS": "",
    "IDAT_ROLES": "control,inference",
    "IDAT_HOST": "127.0.0.1",
    "IDAT_DEVICE": "cpu",
    "IDAT_THREADS": "1",
    "IDAT_LEASE_TTL_S": str(LEASE_TTL_S),
    "IDAT_HEARTBEAT_S": "2",
    "IDAT_POLL_INTERVAL_S": "0.5",
    "IDAT_SWEEP_INTERVAL_S": "1",
    "IDAT_COLLECT_INTERVAL_S": "1",
    "IDAT_COLLECT_GRACE_S": "4",
    "IDAT_CHECKPOINT_INTERVAL_S": "0.5",
    "IDAT_PROGRESS_TIMEOUT_S": "120",
    "IDAT_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "IDAT_WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class Stack:
    """The processes of the service."""

    def __init__(self, backend: Backend, ledger: Ledger, *, seed: int) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            backend: what they run on.
            ledger: is told of processes that died on their own or did not end.
            seed: of the delays after which dead processes are started again.
        """
        self.backend, self._ledger, self._seed = backend, ledger, seed
        self._injector: Injector | None = None
        self._keeper: Keeper | None = None
        self.apis = [self._build("api", number) for number in range(_APIS)]
        self.workers = [self._build("worker", number) for number in range(_WORKERS)]

    @property
    def ports(self) -> list[int]:
        """Of the APIs."""
        return [api.port for api in self.apis]

    def _build(self, module: str, number: int) -> Service:
        port = find_free_port() if module == "api" else 0
        logs = self.backend.data_dir.parent / "logs"
        return Service(
            f"{module}{number}",
            python_module(module),
            environment={**self._build_environment(), "IDAT_PORT": str(port)},
            logs=logs,
            port=port,
        )

    def _build_environment(self) -> dict[str, str]:
        empty = {"IDAT_DATABASE_URL": "", "IDAT_STORAGE_URL": "", "IDAT_BROKER_URL": ""}
        data = {"IDAT_DATA_DIR": str(self.backend.data_dir)}
        return build_environment({**empty, **_SETTINGS, **self.backend.environment, **data})

    def start(self) -> None:
        """Make the tables, start everything and wait until it is ready.

        Raises:
            UnavailableError: it did not become so.
        """
        command = python_module("migrations", "upgrade")
        made = subprocess.run(  # noqa: S603 - our own module
            command,
            cwd=ROOT,
            env=self._build_environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=_START_S,
        )
        if made.returncode != 0:
            raise UnavailableError(f"the database could not be prepared: {made.stderr[-2000:]}")
        for service in (*self.apis, *self.workers):
            service.start()
        servers = [server for server in (self.backend.broker,) if server is not None]
        services = [*self.apis, *self.workers, *servers]
        self._keeper = Keeper(services, seed=self._seed, on_death=self._on_death)
        deadline_s = monotonic_s() + _START_S
        while wait_until_ready(self.ports, timeout_s=2):
            dying = [service for service in services if service.starts > _STARTS]
            if dying or monotonic_s() > deadline_s:
                told = (dying or self.apis)[0].tail()
                raise UnavailableError(f"the service did not start: {told}")

    def build_injector(self, tell: Callable[[str], None]) -> Injector:
        """Return what strikes this stack."""
        targets = Targets(
            data_dir=self.backend.data_dir,
            lease_ttl_s=LEASE_TTL_S,
            apis=self.apis,
            workers=self.workers,
            links=self.backend.links,
            broker=self.backend.broker,
            database_url=self.backend.settings.resolved_database_url,
            has_small_disk=self.backend.has_small_disk,
            on_broken=lambda name, what: self._ledger.complain("did_not_stop", name, what),
        )
        self._injector = Injector(targets, tell)
        return self._injector

    def stop(self) -> None:
        """End every process the orderly way; complain of those that do not."""
        assert self._keeper is not None
        self._keeper.close()
        for service in (*self.workers, *self.apis):
            with contextlib.suppress(ProcessLookupError):
                service.send(signal.SIGTERM, ends_it=True)
        for service in (*self.workers, *self.apis):
            code = service.wait(STOP_S)
            # The web server ends itself by the signal once it has shut down.
            allowed = (0, -signal.SIGTERM) if service in self.apis else (0,)
            if code not in allowed:
                message = f"exit code {code} after SIGTERM: {service.tail()}"
                self._ledger.complain("did_not_stop", service.name, message)

    def kill(self) -> None:
        """End every process of the run, whatever state it is in."""
        if self._keeper is not None:
            self._keeper.close()
        for service in (*self.apis, *self.workers):
            pids = [service.pid, *list_descendants(service.pid)] if service.pid else []
            signal_all([pid for pid in pids if pid], signal.SIGKILL)
            service.end()
        servers = {server.pid for server in self.backend.servers}
        owned = [found.pid for found in find_owned(self.backend.data_dir)]
        signal_all([pid for pid in owned if pid not in servers], signal.SIGKILL)

    def list_survivors(self) -> list[str]:
        """Return the processes of the service that are left after its end."""
        servers = {server.pid for server in self.backend.servers}
        found = find_owned(self.backend.data_dir)
        return [f"{each.pid} {each.command}" for each in found if each.pid not in servers]

    def _on_death(self, service: Service, code: int) -> None:
        if self._injector is not None and self._injector.is_disturbing:
            return  # it could not start while what it needs was struck
        message = f"ended with {code} and nobody had killed it: {service.tail()}"
        self._ledger.complain("died", service.name, message)


@contextlib.contextmanager
def start_stack(backend: Backend, ledger: Ledger, *, seed: int) -> Iterator[Stack]:
    """Start the service, and kill what is left of it at the end of the block."""
    stack = Stack(backend, ledger, seed=seed)
    try:
        stack.start()
        yield stack
    finally:
        stack.kill()


def wait_for_no_child(stack: Stack, *, timeout_s: float) -> list[str]:
    """Wait until no trainer and no intake runs; return those that still do."""
    data_dir = stack.backend.data_dir
    for _ in range(int(timeout_s * 5)):
        found = [
            each
            for module in ("worker.trainer", "worker.intake")
            for each in find_owned(data_dir, module)
        ]
        if not found:
            return []
        threading.Event().wait(0.2)
    return [f"{each.pid} {each.command}" for each in found]
