"""An engine and fronts as real processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from core.settings import build_environment
from tests.integration.api.live import wait_until

_ROOT = Path(__file__).parents[3]
_LEAVE_S = 60.0


class Process:
    """One process of the service.

    Args:
        module: `api` or `api.engine`.
        data_dir: of the service.
        log: where its standard error goes.
        settings: further variables.
    """

    def __init__(self, module: str, data_dir: Path, log: Path, **settings: str) -> None:
        environment = build_environment(
            {
                "IDAT_DATA_DIR": str(data_dir),
                "IDAT_DATABASE_URL": "",
                "IDAT_STORAGE_URL": "",
                "IDAT_HOST": "127.0.0.1",
                "IDAT_PORT": "0",
                "IDAT_ROLES": "inference",
                "IDAT_API_KEYS": "",
                "IDAT_DEVICE": "cpu",
                "IDAT_THREADS": "1",
                "IDAT_INFERENCE_PRECISION": "fp32",
                "IDAT_INFERENCE_DEADLINE_S": "60",
                "IDAT_DRAIN_S": "0.5",
                "IDAT_ENGINE_SOCKET": "",
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                **settings,
            }
        )
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert self._process.stdout is not None
        #: its URL or its socket
        self.address = self._process.stdout.readline().strip()
        assert self.address, self.read_log()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def read_log(self) -> str:
        """Everything it has written so far."""
        return self._log.read_text()

    def send_signal(self, number: int) -> None:
        """Signal it."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code, once it has ended."""
        return self._process.wait(_LEAVE_S)

    def is_ready(self) -> bool:
        """Whether a front says that it is ready."""
        assert self._process.poll() is None, self.read_log()
        try:
            return httpx.get(f"{self.address}/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """End it, by force if need be."""
        self._process.terminate()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def run_process(module: str, data_dir: Path, log: Path, **settings: str) -> Iterator[Process]:
    """Run a process until the end of the block."""
    process = Process(module, data_dir, log, **settings)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def run_split(
    data_dir: Path, fronts: int, **settings: str
) -> Iterator[tuple[Process, list[Process]]]:
    """Run an engine and fronts until the end of the block; they are ready."""
    settings = {"IDAT_ENGINE_SOCKET": str(data_dir / "engine" / "socket"), **settings}
    with ExitStack() as stack:
        engine = stack.enter_context(
            run_process("api.engine", data_dir, data_dir / "engine.log", **settings)
        )
        started = [
            stack.enter_context(
                run_process("api", data_dir, data_dir / f"front{number}.log", **settings)
            )
            for number in range(fronts)
        ]
        for front in started:
            wait_until(front.is_ready)
        yield engine, started
