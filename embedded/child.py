"""One child process of the stack: started, watched, restarted, stopped, never orphaned."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

from core.clock import monotonic_s
from embedded.logs import ChildLog
from embedded.restarts import RestartPolicy


@dataclass(frozen=True)
class ChildSpec:
    """What to run.

    Attributes:
        name: shown before its log lines.
        arguments: what follows `python`.
        environment: the child's whole environment.
        grace_s: seconds between SIGTERM and SIGKILL when the launcher is gone.
        lock_fd: descriptor of the data directory's lock, which the leash keeps; None without one.
    """

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    grace_s: float
    lock_fd: int | None = None


@dataclass
class Child:
    """A process in a session of its own, so that Ctrl-C in the terminal reaches the launcher only.

    Attributes:
        spec: what to run.
        log: where its output goes.
        policy: when it is started again.
    """

    spec: ChildSpec
    log: ChildLog
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    _process: subprocess.Popen[bytes] | None = None
    _leash_fd: int = -1
    _started_at_s: float = 0.0
    _restart_at_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, on its leash."""
        watched_fd, self._leash_fd = os.pipe()
        held_fds = () if self.spec.lock_fd is None else (self.spec.lock_fd,)
        command = [
            sys.executable,
            "-m",
            "embedded.leash",
            str(self.spec.grace_s),
            ",".join(str(fd) for fd in (watched_fd, *held_fds)),
            sys.executable,
            *self.spec.arguments,
        ]
        try:
            with self.log.open_for_child() as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own modules
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.spec.environment,
                    pass_fds=(watched_fd, *held_fds),
                    start_new_session=True,
                )
        finally:
            os.close(watched_fd)
        self._started_at_s = monotonic_s()
        self._restart_at_s = None

    def reap(self) -> int | None:
        """Return the exit code once, when the process has ended since the last call."""
        if self._process is None:
            return None
        exit_code = self._process.poll()
        if exit_code is not None:
            self._process = None
            os.close(self._leash_fd)
        return exit_code

    def schedule_restart(self) -> float | None:
        """Plan the next start after a death.

        Returns:
            Seconds until then, None when the child has died too often.
        """
        now_s = monotonic_s()
        delay_s = self.policy.delay_after_death(now_s - self._started_at_s)
        if delay_s is not None:
            self._restart_at_s = now_s + delay_s
        return delay_s

    def restart_if_due(self) -> bool:
        """Start again if a restart is planned and its time has come."""
        if self._restart_at_s is None or monotonic_s() < self._restart_at_s:
            return False
        self.start()
        return True

    def terminate(self) -> None:
        """Ask the process alone to finish: a worker tells its own children itself."""
        self._restart_at_s = None
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the whole process group at once."""
        self._restart_at_s = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def describe_exit(exit_code: int) -> str:
    """Say how a process ended."""
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
