"""Processes of a run: start them, keep them alive, find all that belong to it, and end them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from core.clock import monotonic_s

ROOT = Path(__file__).parents[2]

_TICK_S = 0.1
_RESTART_DELAY_S = (0.2, 2.0)


@dataclass(frozen=True)
class Found:
    """A process that was found in the system's table.

    Attributes:
        pid: its id.
        command: its command line, arguments separated by blanks.
    """

    pid: int
    command: str


class Service:
    """One long-lived process of the run, started again whenever it has ended.

    Attributes:
        name: `api0`, `worker1`, `redis` …
        port: where it listens, 0 if nowhere.
        starts: how often it was started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        logs: Path,
        port: int = 0,
    ) -> None:
        """Prepare; nothing runs before `start`."""
        self.name, self.port, self.starts = name, port, 0
        self._command, self._environment = list(command), dict(environment)
        self.log = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_end_expected = False
        self._due_s: float | None = None

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts} of {self.name}\n".encode())
            log.flush()
            self._process = subprocess.Popen(  # noqa: S603 - our own modules and servers
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1
        self._is_end_expected, self._due_s = False, None

    @property
    def pid(self) -> int | None:
        """The process id, None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def send(self, number: signal.Signals, *, ends_it: bool) -> int:
        """Send a signal and return the process's id.

        Raises:
            ProcessLookupError: it does not run.
        """
        pid = self.pid
        if pid is None:
            raise ProcessLookupError(f"{self.name} does not run")
        self._is_end_expected |= ends_it
        os.kill(pid, number)
        return pid

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end and return the exit code, or None if it goes on for too long."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Kill it and bury it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def revive(self, draw: Random, on_death: Callable[["Service", int], None]) -> None:
        """Start it again a little after its end; tell of an end that nobody brought about."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        if self._due_s is None:
            self._due_s = monotonic_s() + draw.uniform(*_RESTART_DELAY_S)
            if not self._is_end_expected:
                on_death(self, code)
        elif monotonic_s() >= self._due_s:
            self.start()

    def tail(self, size_bytes: int = 1500) -> str:
        """Return the end of the log."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - size_bytes))
            return log.read().decode(errors="replace")
        return ""


class Keeper:
    """A thread that starts ended services again until it is closed."""

    def __init__(
        self, services: Sequence[Service], *, seed: int, on_death: Callable[[Service, int], None]
    ) -> None:
        """Begin to look after services that were started."""
        self._services, self._draw, self._on_death = services, Random(seed), on_death  # noqa: S311
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper")
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(_TICK_S):
            for service in self._services:
                service.revive(self._draw, self._on_death)

    def close(self) -> None:
        """Start nothing any more."""
        self._closed.set()
        self._thread.join()


def find_free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command line of `python -m module`."""
    return [sys.executable, "-m", module, *arguments]


def list_descendants(pid: int) -> list[int]:
    """Return the process ids below a process, deepest last."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += [int(child) for child in task.read_text().split()]
    return children + [deeper for child in children for deeper in list_descendants(child)]


def list_children(pid: int) -> list[int]:
    """Return the process ids just below a process."""
    nested = {deeper for child in list_descendants(pid) for deeper in list_descendants(child)}
    return [child for child in list_descendants(pid) if child not in nested]


def find_owned(data_dir: Path, module: str = "") -> list[Found]:
    """Return the live processes that were started with this data directory, in any generation.

    Args:
        data_dir: of the run; the environment that it is named in is inherited by everything.
        module: only those with this word in the command line.
    """
    mark = f"IDAT_DATA_DIR={data_dir}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_dead = (entry / "stat").read_text().rsplit(") ", 1)[-1].startswith("Z")
        except OSError:
            continue
        if module in command and not is_dead and int(entry.name) != os.getpid():
            found.append(Found(int(entry.name), command.strip()))
    return found


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to all that still are."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
