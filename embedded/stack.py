"""The embedded stack as a whole: migrate, start, announce, watch, stop."""

import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from urllib.parse import urlsplit

from core.clock import monotonic_s
from core.errors import AppError
from core.settings import Settings, build_environment
from embedded.address import Address
from embedded.child import Child, ChildSpec, describe_exit
from embedded.lock import DataDirLock, Owner
from embedded.logs import ChildLog

#: A worker that is asked to stop ends its step, writes a checkpoint and gives its job back.
STOP_GRACE_S = 30.0
_READY_TIMEOUT_S = 180.0
_TICK_S = 0.1
_PROBE_INTERVAL_S = 0.25
_TAIL_LINES = 20

#: The stack's processes, by module name: this package imports neither of them.
CHILDREN = {"api": ("-m", "api"), "worker": ("-m", "worker")}
_ENGINE = ("-m", "api.engine")
_MIGRATE = ("-m", "migrations", "upgrade")


class StackError(AppError):
    """The stack could not be started or kept up."""

    code = "stack_failed"


def list_children(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return what follows `python` for each process of the stack, by its name.

    They are started in this order, and told to stop in it: a front may outlive the engine and the
    other way round.
    """
    if settings.resolved_engine_socket is None:
        return dict(CHILDREN)
    engine = {"engine": _ENGINE} if "inference" in settings.roles else {}
    fronts = {f"api{number}": CHILDREN["api"] for number in range(1, settings.api_processes + 1)}
    return {**engine, **fronts, "worker": CHILDREN["worker"]}


class StopRequest:
    """Counts the signals that ask to stop: the first one politely, the second at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


class Stack:
    """Runs the API and the worker as children of this process."""

    def __init__(
        self,
        settings: Settings,
        address: Address,
        lock: DataDirLock,
        *,
        pid: int,
        echo_logs: bool,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            settings: the same that the children will read.
            address: where the API shall listen.
            lock: the data directory's lock, held.
            pid: of this process.
            echo_logs: whether the children's log lines are repeated on standard error.
        """
        self._settings = settings
        self._address = address
        self._lock = lock
        self._pid = pid
        self._echo_logs = echo_logs
        self._stop = StopRequest()
        self._logs_dir = settings.data_dir.resolve() / "logs"
        self._environment = build_environment(
            {"IDAT_PORT": str(address.port), "PYTHONUNBUFFERED": "1"}
        )
        self._children = [
            Child(
                ChildSpec(name, arguments, self._environment, STOP_GRACE_S, lock.fd),
                ChildLog(self._logs_dir / f"{name}.log"),
            )
            for name, arguments in list_children(settings).items()
        ]

    def run(self, announce: Callable[[], None]) -> int:
        """Run until a signal asks to stop, or until a child cannot be kept alive.

        Args:
            announce: called once, when the API is ready.

        Returns:
            The exit code of the launcher.
        """
        try:
            self._migrate()
            self._lock.record_owner(Owner(self._pid, self._address.url))
            for child in self._children:
                child.start()
            if self._wait_until_ready():
                announce()
                self._watch()
        except StackError as error:
            self._say(error.message)
            return 1
        finally:
            self._shut_down()
        return 0

    def _migrate(self) -> None:
        log = ChildLog(self._logs_dir / "migrations.log")
        with log.open_for_child() as output:
            outcome = subprocess.run(  # noqa: S603 - our own module
                [sys.executable, *_MIGRATE],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=(self._lock.fd,),
                start_new_session=True,  # a Ctrl-C waits until the schema is whole
                check=False,
            )
        if outcome.returncode != 0:
            raise StackError(
                f"the database could not be migrated: it {describe_exit(outcome.returncode)}\n"
                + _quote_tail(log)
            )

    def _wait_until_ready(self) -> bool:
        """Return True once `/readyz` answers 200, False if a stop was asked for before."""
        deadline = monotonic_s() + _READY_TIMEOUT_S
        while not self._stop.count:
            self._follow_logs()
            for child in self._children:
                exit_code = child.reap()
                if exit_code is not None:
                    # A death this early is a wrong setting or a broken install; trying again will
                    # not help.
                    raise StackError(
                        f"the {child.spec.name} {describe_exit(exit_code)} while starting\n"
                        + _quote_tail(child.log)
                    )
            if _is_ready(self._address.url):
                return True
            if monotonic_s() > deadline:
                tails = "\n".join(_quote_tail(child.log) for child in self._children)
                probe = f"{self._address.url}/readyz"
                raise StackError(f"{probe} was not ready in {_READY_TIMEOUT_S:.0f} s\n{tails}")
            time.sleep(_PROBE_INTERVAL_S)
        return False

    def _watch(self) -> None:
        while not self._stop.count:
            self._follow_logs()
            for child in self._children:
                self._revive(child)
            time.sleep(_TICK_S)

    def _revive(self, child: Child) -> None:
        if child.restart_if_due():
            self._say(f"the {child.spec.name} runs again (pid {child.pid})")
        exit_code = child.reap()
        if exit_code is None:
            return
        fate = f"the {child.spec.name} {describe_exit(exit_code)}"
        delay_s = child.schedule_restart()
        if delay_s is None:
            raise StackError(f"{fate}, too often in a row to go on\n{_quote_tail(child.log)}")
        self._say(f"{fate}; starting it again in {delay_s:.1f} s")

    def _shut_down(self) -> None:
        """Stop the children: politely, by force after a second signal or the grace time."""
        running = [child for child in self._children if child.pid is not None]
        if running:
            self._say("stopping (once more Ctrl-C kills at once)")
        for child in running:
            child.terminate()
        signals_before = self._stop.count
        deadline = monotonic_s() + STOP_GRACE_S
        forced = False
        while any(child.pid is not None for child in running):
            if not forced and (self._stop.count > signals_before or monotonic_s() > deadline):
                forced = True
                self._say("killing what still runs")
                for child in running:
                    child.kill()
            for child in running:
                child.reap()
            self._follow_logs()
            time.sleep(_TICK_S / 2)
        self._follow_logs()
        self._lock.release()

    def _follow_logs(self) -> None:
        if not self._echo_logs:
            return
        for child in self._children:
            for line in child.log.read_lines():
                print(f"{child.spec.name:<6} | {line}", file=sys.stderr, flush=True)

    def _say(self, message: str) -> None:
        print(f"idat   | {message}", file=sys.stderr, flush=True)


def _is_ready(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _quote_tail(log: ChildLog) -> str:
    lines = log.read_tail(_TAIL_LINES)
    return "\n".join([f"last lines of {log.path}:", *(f"    {line}" for line in lines)])
