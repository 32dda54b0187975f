"""Watches one child process and keeps its row's lease: the job's life line.

The supervisor never does the work itself, so a crash, an out-of-memory kill or a CUDA fault costs
one attempt and no worker. It writes to the database only through a fenced renewal, and kills its
child when it has not been able to renew for two thirds of the lease: soon another worker may start.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.platform.db.engine import TRANSIENT_ERRORS, Database
from core.platform.leases import LeaseLostError
from core.settings import build_environment
from worker.child import REQUEST_FILE, STOP_COMMAND
from worker.ending import EndedEarlyError, Ending, Limits, Outcome
from worker.side_work import SideWork

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_PROJECT_ROOT = Path(__file__).resolve().parent.parent
_TICK_S = 0.25
_RENEW_S = 2.0
_RETRY_S = 1.0
#: With a renewal before it and the last write behind it, a worker that is shut down has ended after
#: 25 seconds, and a job that is paused holds no device after 30.
_STOP_GRACE_S = 20.0
_LOG_TAIL_BYTES = 4000
_MESSAGE_BYTES = 1 << 20
_FINAL_MESSAGES = frozenset({"done", "failed", "stopped"})
_CANCELLING = "cancelling"
_PAUSING = "pausing"
#: Read by libraries when they load, so that the child itself comes too late to set it.
_CHILD_ENVIRONMENT = {
    # cuBLAS repeats itself bit for bit only with this.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # OpenMP threads that spin while they wait starve each other as soon as anything else runs:
    # beside two busy processes on two cores a training step took 7.2 s, without spinning 0.4 s.
    "OMP_WAIT_POLICY": "PASSIVE",
}


#: A write that goes into the same transaction as the next renewal.
Write = Callable[[Session], None]
#: Renews the lease, stores progress if there is some, returns the row's state.
Renew = Callable[[Session, dict[str, Any] | None], str]


class Supervisor:
    """Runs one child process to its end."""

    def __init__(
        self,
        module: str,
        workdir: Path,
        *,
        database: Database,
        renew: Renew,
        renewed_s: float,
        limits: Limits,
        is_draining: Callable[[], bool],
        on_message: Callable[[dict[str, Any]], list[Write]],
        find_failure: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        """Prepare; nothing starts before `run`.

        Args:
            module: what to run, as in `python -m module workdir`.
            workdir: folder with the request file; the child's only place to write.
            database: where the renewals go.
            renew: renews the lease inside a transaction; raises `LeaseLostError`.
            renewed_s: monotonic time from which the lease counts, just before the claim.
            limits: see `Limits`.
            is_draining: whether the worker is shutting down.
            on_message: turns a message of the child into writes, made with the next renewal.
            find_failure: why the row must fail now, whatever the child is at: its last message, as
                it were; None while it need not.
        """
        self._module = module
        self._workdir = workdir
        self._database = database
        self._renew = renew
        self._limits = limits
        self._is_draining = is_draining
        self._on_message = on_message
        self._find_failure = find_failure
        self._pending: list[Write] = []
        self._progress: dict[str, Any] | None = None
        self._last_renewal_s = renewed_s
        self._final: dict[str, Any] | None = None
        self._last_word_s = renewed_s
        self._stop_asked_s: float | None = None
        self._state = ""
        self._fenced = threading.Event()
        self._ended = threading.Event()

    def run(self, request: dict[str, Any]) -> Outcome:
        """Start the child, watch it, and return how it ended; it is dead when this returns.

        It is not even started when `renew_while` has met somebody who asks for the end.
        """
        if self._state == _CANCELLING:
            return Outcome(Ending.CANCELLED)
        if self._state == _PAUSING or self._stop_asked_s is not None:
            return Outcome(Ending.STOPPED)
        (self._workdir / REQUEST_FILE).write_text(json.dumps(request))
        with (self._workdir / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-u", "-m", self._module, str(self._workdir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=_PROJECT_ROOT,
                env=build_environment(_CHILD_ENVIRONMENT),
                start_new_session=True,
            )
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        reader = threading.Thread(target=self._read, args=(process, messages), daemon=True)
        watchdog = threading.Thread(target=self._watch, args=(process,), daemon=True)
        reader.start()
        watchdog.start()
        try:
            return self._supervise(process, messages)
        except EndedEarlyError as early:
            return early.outcome
        finally:
            self._ended.set()
            _kill_group(process)
            process.wait()
            reader.join(timeout=5)
            for pipe in (process.stdin, process.stdout):
                # A command that the dead child never read is of no interest.
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def renew_while(self, work: Callable[[], Result]) -> Result:
        """Do something slow outside of the child, and keep the lease meanwhile.

        Raises:
            LeaseLostError: the lease was lost, or could not be renewed for too long.
            EndedEarlyError: the job is to be cancelled, or to be handed back and this took longer
                than there is time for that. A store that stalls holds no job up.
        """
        return self._work_beside(work, None)

    def _work_beside(
        self, work: Callable[[], Result], process: "subprocess.Popen[bytes] | None"
    ) -> Result:
        """Do something slow, look after lease and child meanwhile; raises as `renew_while`."""
        side = SideWork(work)
        while not side.wait(_TICK_S):
            # What the child says meanwhile waits to be read: its silence is no sign of anything.
            self._last_word_s = monotonic_s()
            outcome = self._look_after(process)
            if outcome is None:
                continue
            if outcome.ending is Ending.LOST:
                raise LeaseLostError("the database was out of reach for too long")
            raise EndedEarlyError(outcome)
        self._last_word_s = monotonic_s()
        return side.get_result()

    def write_last(self, write: Write, *, if_lost: Write | None = None) -> None:
        """Make the attempt's last write, trying for as long as the lease may still hold.

        Args:
            write: fenced, as everything that an attempt writes.
            if_lost: what to write instead, in the same transaction, when the fence refuses `write`.

        Raises:
            LeaseLostError: the fence refused, or the database was out of reach for too long. If
                only the answer to a COMMIT was lost, the next try is refused as well: the row has
                got its state all the same.
        """
        while True:
            try:
                with self._database.write() as session:
                    try:
                        write(session)
                    except LeaseLostError:
                        if if_lost is None:
                            raise
                        if_lost(session)
            except TRANSIENT_ERRORS as error:
                self._wait_for_database(error)
            else:
                return

    @property
    def _time_to_fence_s(self) -> float:
        """Seconds left in which this attempt may still write, without another renewal."""
        return self._last_renewal_s + self._limits.fence_s - monotonic_s()

    def _wait_for_database(self, error: Exception) -> None:
        """Wait a moment, or raise when the lease must be taken for lost before another try."""
        logger.warning("could not write: %s", error)
        if self._time_to_fence_s < _RENEW_S:
            raise LeaseLostError("the database was out of reach for too long") from error
        threading.Event().wait(_RETRY_S)

    def _read(
        self, process: "subprocess.Popen[bytes]", messages: "queue.Queue[dict[str, Any] | None]"
    ) -> None:
        assert process.stdout is not None
        try:
            while line := process.stdout.readline(_MESSAGE_BYTES):
                message = _parse_message(line)
                if message is None:
                    logger.warning("not a message of the child: %r", line[:200])
                else:
                    messages.put(message)
            # It may have closed its end and live on: looked after until it has really ended.
            process.wait()
        finally:
            messages.put(None)

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill the child when renewals stop, even while the main loop hangs in the database."""
        while not self._ended.wait(_TICK_S):
            if self._time_to_fence_s < 0:
                self._fenced.set()
                _kill_group(process)
                return
            if _has_died(process):
                # What it started may hold its pipe open and would never say that the child is dead.
                _kill_group(process)

    def _supervise(
        self, process: "subprocess.Popen[bytes]", messages: "queue.Queue[dict[str, Any] | None]"
    ) -> Outcome:
        self._last_word_s = monotonic_s()
        try:
            while self._take_message(messages, process):
                early_end = self._look_after(process)
                if early_end is not None:
                    return early_end
            # The renewal that carries the last writes also tells whether a cancel came first.
            self._flush()
        except LeaseLostError as error:
            logger.warning("%s", error)
            return Outcome(Ending.LOST)
        if self._fenced.is_set():
            return Outcome(Ending.LOST)
        if self._state == _CANCELLING:
            return Outcome(Ending.CANCELLED)
        exit_code = process.wait()
        if self._final is None or exit_code != 0:
            return self._crash("process_died", _describe_exit(exit_code))
        return Outcome(Ending(self._final["type"]), self._final)

    def _take_message(
        self,
        messages: "queue.Queue[dict[str, Any] | None]",
        process: "subprocess.Popen[bytes]",
    ) -> bool:
        """Wait a moment for a message and sort it in; return False once the child has ended."""
        try:
            message = messages.get(timeout=_TICK_S)
        except queue.Empty:
            return True
        if message is None:
            return False
        self._last_word_s = monotonic_s()
        if message["type"] == "progress":
            self._progress = {k: v for k, v in message.items() if k != "type"}
        elif message["type"] in _FINAL_MESSAGES:
            self._final = message
        else:
            # A checkpoint may take a slow store longer than the lease lasts.
            self._pending += self._work_beside(lambda: self._on_message(message), process)
        return True

    def _look_after(self, process: "subprocess.Popen[bytes] | None") -> Outcome | None:
        """Renew, and return an outcome if the attempt must end before it wants to.

        Args:
            process: the child; None before it has begun and after its end.
        """
        if self._fenced.is_set() or self._time_to_fence_s < 0:
            return Outcome(Ending.LOST)
        self._renew_if_due()
        if self._state == _CANCELLING:
            return Outcome(Ending.CANCELLED)
        failure = self._find_failure() if self._final is None else None
        if failure is not None:
            return Outcome(Ending.FAILED, failure)
        now_s = monotonic_s()
        silent_s = now_s - self._last_word_s
        if silent_s > self._limits.progress_timeout_s:
            reason = f"no progress for {silent_s:.0f} seconds; the process was killed"
            return self._crash("no_progress", reason)
        if self._stop_asked_s is None and (self._state == _PAUSING or self._is_draining()):
            self._stop_asked_s = now_s
            if process is not None:
                self._ask_to_stop(process)
        if self._stop_asked_s is not None and now_s - self._stop_asked_s > _STOP_GRACE_S:
            # It did not get to a checkpoint in time; the last one serves.
            return Outcome(Ending.STOPPED)
        return None

    def _renew_if_due(self) -> None:
        since_s = monotonic_s() - self._last_renewal_s
        news = self._progress is not None or bool(self._pending)
        if since_s < min(self._limits.heartbeat_s, 0.5 if news else _RENEW_S):
            return
        try:
            self._renew_now()
        except TRANSIENT_ERRORS as error:
            # Nothing is lost yet: the writes stay pending, and the watchdog counts.
            logger.warning("could not renew the lease: %s", error)

    def _renew_now(self) -> None:
        started_s = monotonic_s()
        with self._database.write() as session:
            state = self._renew(session, self._progress)
            for write in self._pending:
                write(session)
        # Counted from before the statement ran: the lease may be older than the answer.
        self._last_renewal_s = started_s
        self._state = state
        self._progress = None
        self._pending.clear()

    def _flush(self) -> None:
        """Write what is pending, trying until the lease must be taken for lost."""
        while True:
            try:
                self._renew_now()
            except TRANSIENT_ERRORS as error:
                self._wait_for_database(error)
            else:
                return

    def _ask_to_stop(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(f"{STOP_COMMAND}\n".encode())
            process.stdin.flush()

    def _crash(self, code: str, reason: str) -> Outcome:
        log = self._workdir / "log"
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            tail = file.read().decode(errors="replace")
        return Outcome(
            Ending.CRASHED,
            {"code": code, "message": reason, "class": "system", "log_tail": tail},
        )


def _parse_message(line: bytes) -> dict[str, Any] | None:
    try:
        # NaN and infinities are not JSON: PostgreSQL would refuse them with every renewal.
        message = json.loads(line, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        return None
    is_message = isinstance(message, dict) and isinstance(message.get("type"), str)
    return message if is_message else None


def _has_died(process: "subprocess.Popen[bytes]") -> bool:
    """Return whether the child is dead and unburied: its process id cannot be another's yet."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _describe_exit(exit_code: int) -> str:
    if exit_code == -signal.SIGKILL:
        return "the process was killed (SIGKILL): often the system ran out of memory"
    if exit_code < 0:
        return f"the process died of signal {signal.Signals(-exit_code).name}"
    if exit_code == 0:
        return "the process ended without saying how its work ended"
    return f"the process ended with exit code {exit_code}"


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the child and whatever it started; its session makes it the leader of a group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
