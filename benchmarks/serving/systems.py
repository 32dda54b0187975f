"""The systems as running processes: started, asked whether they are ready, stopped, paused."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.serving.catalogue import fill_catalogue
from benchmarks.serving.load import Plan
from benchmarks.serving.models import Stock
from core.types import DEFAULT_PROJECT

_ROOT = Path(__file__).resolve().parents[2]
_START_S = 900.0


@dataclass
class System:
    """A server under test.

    Attributes:
        label: how rows name it.
        command: what starts it; `{port}` is filled in.
        path: of a classify request.
        names: models' names, as its path or headers want them.
        environment: further variables.
        headers: of every request.
        health: path that answers 200 when it is ready.
        precision: of its network.
        settings: what was chosen for it, for the rows.
    """

    label: str
    command: list[str]
    path: str
    names: list[str]
    precision: str
    environment: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    health: str = "/health"
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it is ready."""
        self.port = _find_port()
        command = [part.replace("{port}", str(self.port)) for part in self.command]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "IDAT_PORT": str(self.port)}
        self._process = subprocess.Popen(  # noqa: S603 - the commands below
            command,
            cwd=_ROOT,
            env={**os.environ, **environment, **self.environment},  # noqa: TID251 - passed on whole
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline_s = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.label} ended with {self._process.returncode}")
            if time.monotonic() > deadline_s:
                self.__exit__()
                raise RuntimeError(f"{self.label} was not ready in {_START_S:.0f} s")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it and all of its processes."""
        if self._process is None:
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def seen_by(self, project: str, index: int) -> "System":
        """Return it as a client of a project sees it, that has the model with this index."""
        headers = {"Authorization": f"Bearer key-{project}"}
        return replace(self, names=[self.names[index]], headers=headers)

    def adopt(self, running: "System") -> None:
        """Send load to a system that is running already; entering and leaving stay with that."""
        self.port, self._process = running.port, running._process  # noqa: SLF001 - of its own class

    def pause(self) -> None:
        """Stop the clock of all of its processes, so that an idle loop costs the others nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def rss_bytes(self) -> int:
        """Return the memory that its processes hold, pages shared between them counted once."""
        assert self._process is not None
        return sum(_read_pss(pid) for pid in _list_session(self._process.pid))

    def cpu_s(self) -> float:
        """Return the processor time that its processes have used, in seconds."""
        assert self._process is not None
        ticks = sum(_read_ticks(pid) for pid in _list_session(self._process.pid))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{self.health}", timeout=5
            ) as answer:
                return bool(answer.status == 200)  # noqa: PLR2004
        except (OSError, urllib.error.URLError):
            return False

    def plan(self, stock: Stock, **changes: Any) -> Plan:  # noqa: ANN401
        """Return a slice of load for this system."""
        plan = Plan(
            port=self.port,
            path=self.path,
            names=self.names,
            zipf=0.0,
            images=str(stock.folder / "images"),
            seconds=5.0,
            rate=None,
            connections=32,
            deadline_s=5.0,
            headers=self.headers,
        )
        return replace(plan, **changes)

    def load(self, plan: Plan) -> dict[str, Any]:
        """Let a process of its own send the load, and return its figures and the CPU it cost."""
        before_s = self.cpu_s()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.serving.load"],
            input=json.dumps(plan.__dict__).encode(),
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            check=True,
        )
        figures: dict[str, Any] = json.loads(done.stdout)
        answers = sum(figures["statuses"].values())
        used_s = self.cpu_s() - before_s
        figures["cpu_ms_per_request"] = round(used_s / answers * 1000, 2) if answers else None
        return figures


def build_service(
    stock: Stock, models: int, folder: Path, *, precision: str, projects: Sequence[str] = ()
) -> System:
    """Return this service, inference role, with the models published in a database of its own.

    With projects the models are theirs in turn, and each has the key `key-PROJECT`.
    """
    names = fill_catalogue(stock, models, folder, projects or (DEFAULT_PROJECT,))
    keys = ",".join(f"{project}:key-{project}" for project in projects)
    return System(
        label="service",
        command=[sys.executable, "-m", "api"],
        path="/v1/models/{model}/classify",
        names=names,
        precision=precision,
        health="/readyz",
        environment={
            "IDAT_DATA_DIR": str(folder),
            "IDAT_ROLES": "inference",
            "IDAT_DEVICE": "auto",
            "IDAT_WEIGHTS_DIR": str(stock.weights_dir),
            "IDAT_INFERENCE_PRECISION": precision,
            "IDAT_LOG_LEVEL": "WARNING",
            **({"IDAT_API_KEYS": keys} if keys else {}),
        },
    )


def build_litserve(
    stock: Stock,
    models: int,
    *,
    precision: str,
    strategy: str = "grouping",
    decoder: str = "pillow",
    workers: int = 1,
    batch: int = 8,
    timeout_s: float = 0.001,
) -> System:
    """Return LitServe with one setting."""
    settings = {
        "strategy": strategy,
        "decoder": decoder,
        "workers": workers,
        "threads": max(1, (os.cpu_count() or 1) // workers),
        "batch": batch,
        "timeout_s": timeout_s,
    }
    return System(
        label="litserve",
        command=_peer_command("litserve_server", stock, models, precision, settings),
        path="/predict",
        names=[str(index) for index in range(models)],
        precision=precision,
        headers={"X-Model": "{model}"},
        settings=settings,
    )


def build_fastapi(
    stock: Stock,
    models: int,
    *,
    precision: str,
    strategy: str = "grouping",
    decoder: str = "pillow",
    workers: int = 2,
) -> System:
    """Return FastAPI + timm with one setting."""
    settings = {
        "strategy": strategy,
        "decoder": decoder,
        "workers": workers,
        "threads": max(1, (os.cpu_count() or 1) // workers),
    }
    return System(
        label="fastapi+timm",
        command=_peer_command("fastapi_server", stock, models, precision, settings),
        path="/classify/{model}",
        names=[str(index) for index in range(models)],
        precision=precision,
        settings=settings,
    )


def _peer_command(
    name: str, stock: Stock, models: int, precision: str, settings: dict[str, Any]
) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.serving.peers.{name}"]
    command += ["--stock", stock.to_json(), "--models", str(models), "--port", "{port}"]
    command += ["--precision", precision]
    for key, value in settings.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    return command


def _find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _list_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found


def _read_pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _read_ticks(pid: int) -> int:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0
