"""A Redis server of a test's own, which may be frozen, killed and emptied."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from tests.e2e.stack import find_free_port, wait_until


class OwnRedis:
    """A server on a free port, without persistence: what it held is lost with it."""

    def __init__(self, folder: Path) -> None:
        """Start it; the test is skipped where there is no server to start."""
        found = shutil.which("redis-server")
        if found is None:
            pytest.skip("redis-server is not installed")
        self._command = [found, "--port", str(find_free_port()), "--bind", "127.0.0.1"]
        self._command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        self.url = f"redis://127.0.0.1:{self._command[2]}/0"
        self.client = redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=2)
        self.start()

    def start(self) -> None:
        """Start the server, with nothing in it."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until(self._answers, timeout_s=30, what="Redis to answer")

    def freeze(self) -> None:
        """Keep it from doing anything; its connections stay."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a warning."""
        self._process.kill()
        self._process.wait()

    def cut(self) -> int:
        """Close every other connection; return how many there were."""
        own = self.client.client_id()
        others = [each for each in self.client.client_list() if int(each["id"]) != own]
        for each in others:
            self.client.client_kill_filter(_id=each["id"])
        return len(others)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False
