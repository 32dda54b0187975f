"""The service that the demo talks to: an embedded stack of its own, in a folder of its own."""

import time
from pathlib import Path

from core.clock import monotonic_s
from core.settings import build_environment
from demo.client import Client, DemoError
from embedded.child import Child, ChildSpec, describe_exit
from embedded.lock import find_owner
from embedded.logs import ChildLog

_READY_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 40.0
_POLL_S = 0.2
_TAIL_LINES = 20


class OwnStack:
    """`python -m embedded up` in the background, ended with the demo whatever happens to it."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is started yet.

        Args:
            folder: where the stack keeps everything.
        """
        self.data_dir = folder / "data"
        # Whatever service the user has configured, the demo stays away from it.
        own = {
            "IDAT_DATA_DIR": str(self.data_dir),
            "IDAT_HOST": "127.0.0.1",
            "IDAT_PORT": "0",
            "IDAT_API_KEYS": "",
            "IDAT_ROLES": "control,inference",
            "IDAT_DATABASE_URL": "",
            "IDAT_STORAGE_URL": "",
            "IDAT_BROKER_URL": "",
        }
        spec = ChildSpec(
            "stack",
            ("-m", "embedded", "up"),
            build_environment({**own, "PYTHONUNBUFFERED": "1"}),
            _STOP_TIMEOUT_S,
        )
        self._child = Child(spec, ChildLog(folder / "stack.log"))

    @property
    def log(self) -> Path:
        """What the stack says."""
        return self._child.log.path

    def start(self) -> str:
        """Start the stack; return the URL of its API, which may not answer yet.

        Raises:
            DemoError: it ended instead.
        """
        self._child.start()
        deadline = monotonic_s() + _READY_TIMEOUT_S
        while (owner := find_owner(self.data_dir)) is None:
            self.check_alive()
            if monotonic_s() > deadline:
                raise DemoError(f"the service did not start, see {self.log}")
            time.sleep(_POLL_S)
        return owner.url

    def check_alive(self) -> None:
        """Raise if the stack has ended.

        Raises:
            DemoError: with its last words.
        """
        exit_code = self._child.reap()
        if exit_code is not None or self._child.pid is None:
            fate = "is gone" if exit_code is None else describe_exit(exit_code)
            tail = "\n".join(f"    {line}" for line in self._child.log.read_tail(_TAIL_LINES))
            raise DemoError(f"the service {fate}; its last lines in {self.log}:\n{tail}")

    def stop(self) -> None:
        """Stop the stack and wait until it is gone."""
        self._child.terminate()
        deadline = monotonic_s() + _STOP_TIMEOUT_S
        while self._child.pid is not None:
            self._child.reap()
            if monotonic_s() > deadline:
                self._child.kill()
            time.sleep(_POLL_S / 2)


def wait_until_ready(client: Client, stack: OwnStack | None) -> None:
    """Return once the service answers on `/readyz`.

    Raises:
        DemoError: it has ended, or is not ready in time.
    """
    deadline = monotonic_s() + _READY_TIMEOUT_S
    while not client.is_ready():
        if stack is not None:
            stack.check_alive()
        elif monotonic_s() > deadline:
            raise DemoError(f"{client.url}/readyz is not ready")
        time.sleep(_POLL_S)
