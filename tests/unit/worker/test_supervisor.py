"""The supervisor with real children and a real job row: how they end, and who is dead then."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import worker.supervisor
from core.clock import monotonic_s
from core.platform.db.engine import Database
from core.platform.jobs import attempts, control, events
from core.platform.leases import Claim, LeaseLostError
from tests.integration.platform.rows import TTL_S, add_job, claim, job_of, lose
from tests.unit.worker.processes import wait_for_death, wait_for_file
from worker.ending import EndedEarlyError, Ending, Limits, Outcome
from worker.supervisor import Renew, Supervisor, Write

CHILD = "tests.unit.worker.children.scripted"
UNREACHABLE = OperationalError("UPDATE", None, ConnectionError("no route to the database"))


class Rig:
    """A claimed job and what happens around its child."""

    def __init__(self, database: Database, workdir: Path) -> None:
        self.database = database
        self.workdir = workdir
        add_job(database)
        self.claim: Claim = claim(database)
        self.renew: Renew = self.renew_for_real
        self.limits = Limits(heartbeat_s=0.1, fence_s=120, progress_timeout_s=120)
        self.is_draining: Callable[[], bool] = lambda: False
        self.on_message: Callable[[dict[str, Any]], object] = lambda _message: None
        self.build_write: Callable[[str], Write] = self.build_log_write
        self.pids: list[int] = []

    def renew_for_real(self, session: Session, progress: dict[str, Any] | None) -> str:
        return attempts.report_progress(session, self.claim, ttl_s=TTL_S, progress=progress)

    def take(self, message: dict[str, Any]) -> list[Write]:
        if message["type"] == "pid":
            self.pids.append(message["pid"])
        self.on_message(message)
        if message["type"] != "log":
            return []
        return [self.build_write(message["message"])]

    def build_log_write(self, text: str) -> Write:
        return lambda session: events.add_event(session, self.claim.row_id, text, event_type="log")

    def build_supervisor(self) -> Supervisor:
        return Supervisor(
            CHILD,
            self.workdir,
            database=self.database,
            renew=self.renew,
            renewed_s=monotonic_s(),
            limits=self.limits,
            is_draining=self.is_draining,
            on_message=self.take,
        )

    def run(self, script: str, **request: Any) -> Outcome:
        """Supervise a child to its end; whoever said its process id is dead then."""
        outcome = self.build_supervisor().run({"script": script, **request})
        for pid in self.pids:
            wait_for_death(pid)
        return outcome

    def cancel(self) -> None:
        with self.database.write() as session:
            control.request_cancel(session, self.claim.row_id)

    def pause(self) -> None:
        with self.database.write() as session:
            control.request_pause(session, self.claim.row_id)

    def logged(self) -> list[str]:
        with self.database.read() as session:
            listed = events.list_events(session, self.claim.row_id, after=0, limit=100)
        return [event.message for event in listed if event.type == "log"]


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What slow work waits for, until the test is over."""
    never = threading.Event()
    yield never
    never.set()


@pytest.fixture
def rig(sqlite: Database, tmp_path: Path) -> Rig:
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    return Rig(sqlite, workdir)


class TestEnding:
    def test_done(self, rig: Rig) -> None:
        outcome = rig.run("succeed", log=["one", "two"])
        assert outcome.ending is Ending.DONE
        assert outcome.message["metrics"] == {"accuracy": 0.5}
        assert rig.logged() == ["one", "two"]
        job = job_of(rig.database, rig.claim.row_id)
        assert (job.state, job.progress) == ("running", {"step": 1})

    def test_failed(self, rig: Rig) -> None:
        outcome = rig.run("fail")
        assert outcome.ending is Ending.FAILED
        reason = {k: outcome.message[k] for k in ("code", "class", "data")}
        assert reason == {"code": "out_of_memory", "class": "system", "data": {"bytes": 7}}

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("exit_badly", "exit code 3"),
            ("say_done_and_exit_badly", "exit code 3"),
            ("exit_without_a_word", "without saying"),
            ("kill_yourself", "SIGKILL"),
        ],
    )
    def test_crashed(self, rig: Rig, script: str, words: str) -> None:
        outcome = rig.run(script)
        assert outcome.ending is Ending.CRASHED
        assert (outcome.message["code"], outcome.message["class"]) == ("process_died", "system")
        assert words in outcome.message["message"]
        assert ("the reason why" in outcome.message["log_tail"]) == (script == "exit_badly")

    def test_nonsense_is_not_taken_for_messages(self, rig: Rig) -> None:
        assert rig.run("talk_nonsense").ending is Ending.DONE

    def test_figures_that_are_no_numbers_become_null(self, rig: Rig) -> None:
        assert rig.run("diverge").message["metrics"] == {"loss": None, "least": None}

    @pytest.mark.parametrize("script", ["hang", "hang_without_stdout"])
    def test_silence_is_no_progress(self, rig: Rig, script: str) -> None:
        rig.limits = Limits(heartbeat_s=0.1, fence_s=120, progress_timeout_s=1.0)
        outcome = rig.run(script)
        assert outcome.ending is Ending.CRASHED
        assert outcome.message["code"] == "no_progress"

    def test_nothing_outlives_a_child_that_is_done(self, rig: Rig) -> None:
        assert rig.run("leave_a_grandchild").ending is Ending.DONE
        assert len(rig.pids) == 2

    def test_nothing_outlives_a_child_that_was_killed(self, rig: Rig) -> None:
        assert rig.run("die_and_leave_a_grandchild").ending is Ending.CRASHED
        assert len(rig.pids) == 2


class TestStop:
    def test_a_child_hands_its_work_back(self, rig: Rig) -> None:
        rig.is_draining = lambda: bool(rig.pids)
        assert rig.run("stop_when_asked").ending is Ending.STOPPED

    def test_a_child_that_does_not_listen_is_killed(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker.supervisor, "_STOP_GRACE_S", 0.5)
        rig.is_draining = lambda: bool(rig.pids)
        assert rig.run("hang").ending is Ending.STOPPED


class TestPause:
    def test_a_child_hands_its_work_back(self, rig: Rig) -> None:
        rig.on_message = lambda message: rig.pause() if message["type"] == "pid" else None
        assert rig.run("stop_when_asked").ending is Ending.STOPPED

    def test_a_child_that_does_not_listen_is_killed(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker.supervisor, "_STOP_GRACE_S", 0.5)
        rig.on_message = lambda message: rig.pause() if len(rig.pids) == 2 else None
        assert rig.run("hang_with_grandchild").ending is Ending.STOPPED
        assert len(rig.pids) == 2

    def test_the_time_that_a_child_has_for_it_fits_the_promise(self) -> None:
        """No GPU is held 30 seconds later, a renewal before it included."""
        slowest_s = worker.supervisor._RENEW_S + worker.supervisor._STOP_GRACE_S
        assert slowest_s + 2 * worker.supervisor._TICK_S < 30

    def test_work_that_is_done_stays_done(self, rig: Rig) -> None:
        rig.on_message = lambda message: rig.pause() if message["type"] == "log" else None
        assert rig.run("succeed", log=["last"]).ending is Ending.DONE

    def test_a_cancel_overrides_it(self, rig: Rig) -> None:
        def pause_and_cancel(message: dict[str, Any]) -> None:
            if message["type"] == "pid":
                rig.pause()
                rig.cancel()

        rig.on_message = pause_and_cancel
        assert rig.run("hang").ending is Ending.CANCELLED

    @pytest.mark.parametrize(
        ("ask", "ending"), [(Rig.pause, Ending.STOPPED), (Rig.cancel, Ending.CANCELLED)]
    )
    def test_a_child_that_would_have_to_stop_at_once_is_not_started(
        self, rig: Rig, ask: Callable[[Rig], None], ending: Ending
    ) -> None:
        """Asked for while the supervisor fetched what the child needs."""
        ask(rig)
        supervisor = rig.build_supervisor()
        supervisor._renew_now()
        assert supervisor.renew_while(lambda: True)
        assert supervisor.run({"script": "hang"}).ending is ending
        assert not (rig.workdir / "log").exists()


class TestCancel:
    def test_the_whole_group_is_killed(self, rig: Rig) -> None:
        def cancel_with_two(_message: dict[str, Any]) -> None:
            if len(rig.pids) == 2:
                rig.cancel()

        rig.on_message = cancel_with_two
        assert rig.run("hang_with_grandchild").ending is Ending.CANCELLED
        assert len(rig.pids) == 2

    def test_a_cancel_before_the_last_word_wins(self, rig: Rig) -> None:
        rig.on_message = lambda message: rig.cancel() if message["type"] == "log" else None
        assert rig.run("succeed", log=["last"]).ending is Ending.CANCELLED


class TestLease:
    def test_an_overtaken_attempt_kills_its_child_and_writes_nothing(self, rig: Rig) -> None:
        def overtake(message: dict[str, Any]) -> None:
            if message["type"] == "log":
                lose(rig.database, rig.claim)
                claim(rig.database, owner="host:2")

        rig.on_message = overtake
        outcome = rig.run("succeed_when_told", log=["late"], go_file="/nonexistent")
        assert outcome.ending is Ending.LOST
        assert rig.logged() == []
        assert job_of(rig.database, rig.claim.row_id).lease_owner == "host:2"

    def test_a_lost_lease_found_with_the_last_word(self, rig: Rig) -> None:
        def lose_it(_session: Session, _progress: dict[str, Any] | None) -> str:
            raise LeaseLostError("overtaken")

        rig.limits = Limits(heartbeat_s=100, fence_s=120, progress_timeout_s=120)
        rig.renew = lose_it
        assert rig.run("succeed").ending is Ending.LOST

    def test_an_outage_shorter_than_the_fence_costs_nothing(self, rig: Rig, tmp_path: Path) -> None:
        go_file = tmp_path / "go"
        failures = 0

        def fail_thrice(session: Session, progress: dict[str, Any] | None) -> str:
            nonlocal failures
            if rig.pids and failures < 3:
                failures += 1
                raise UNREACHABLE
            go_file.touch()
            return rig.renew_for_real(session, progress)

        rig.renew = fail_thrice
        outcome = rig.run("succeed_when_told", log=["one", "two"], go_file=str(go_file))
        assert (outcome.ending, failures) == (Ending.DONE, 3)
        assert rig.logged() == ["one", "two"]

    def test_writes_are_made_once_when_a_transaction_breaks_in_its_middle(self, rig: Rig) -> None:
        tries = 0

        def write_then_break(session: Session) -> None:
            nonlocal tries
            events.add_event(session, rig.claim.row_id, "one", event_type="log")
            tries += 1
            if tries == 1:
                raise UNREACHABLE

        rig.build_write = lambda _text: write_then_break
        assert rig.run("succeed", log=["one"]).ending is Ending.DONE
        assert (rig.logged(), tries) == (["one"], 2)

    def test_an_outage_longer_than_the_fence_kills_the_child(self, rig: Rig) -> None:
        def fail(_session: Session, _progress: dict[str, Any] | None) -> str:
            raise UNREACHABLE

        rig.limits = Limits(heartbeat_s=0.1, fence_s=3.0, progress_timeout_s=120)
        rig.renew = fail
        assert rig.run("hang").ending is Ending.LOST

    def test_work_that_ends_in_an_outage_is_not_taken_for_done(self, rig: Rig) -> None:
        def fail(_session: Session, _progress: dict[str, Any] | None) -> str:
            raise UNREACHABLE

        rig.limits = Limits(heartbeat_s=0.1, fence_s=3.0, progress_timeout_s=120)
        rig.renew = fail
        assert rig.run("succeed", log=["one"]).ending is Ending.LOST
        assert rig.logged() == []

    def test_the_child_is_killed_while_the_renewal_hangs(self, rig: Rig) -> None:
        answered = threading.Event()
        asked = threading.Event()

        def hang(session: Session, progress: dict[str, Any] | None) -> str:
            if rig.pids:
                asked.set()
                assert answered.wait(timeout=200)
            return rig.renew_for_real(session, progress)

        rig.limits = Limits(heartbeat_s=0.1, fence_s=4.0, progress_timeout_s=120)
        rig.renew = hang
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rig.run, "hang")
            try:
                assert asked.wait(timeout=100)
                wait_for_death(rig.pids[0])
                assert not running.done()
            finally:
                answered.set()
            assert running.result().ending is Ending.LOST


class TestSlowWork:
    def test_the_lease_is_renewed_meanwhile(self, rig: Rig) -> None:
        renewed = threading.Event()

        def renew(session: Session, progress: dict[str, Any] | None) -> str:
            renewed.set()
            return rig.renew_for_real(session, progress)

        rig.renew = renew
        # Ends only once a renewal has been made beside it.
        assert rig.build_supervisor().renew_while(lambda: renewed.wait(60)) is True

    def test_a_lease_lost_meanwhile_is_told(self, rig: Rig) -> None:
        lose(rig.database, rig.claim)
        claim(rig.database, owner="host:2")
        done = threading.Event()
        threading.Timer(2.0, done.set).start()
        with pytest.raises(LeaseLostError):
            rig.build_supervisor().renew_while(lambda: done.wait(60))

    def test_what_the_work_raises_is_raised(self, rig: Rig) -> None:
        def fail() -> None:
            raise FileNotFoundError("no such blob")

        with pytest.raises(FileNotFoundError, match="blob"):
            rig.build_supervisor().renew_while(fail)

    @pytest.mark.parametrize(
        ("ask", "ending"), [(Rig.pause, Ending.STOPPED), (Rig.cancel, Ending.CANCELLED)]
    )
    def test_is_left_behind_by_a_job_that_has_to_end(
        self,
        rig: Rig,
        never: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        ask: Callable[[Rig], None],
        ending: Ending,
    ) -> None:
        """Before the child and behind it: a store that stalls for minutes holds nobody up."""
        monkeypatch.setattr(worker.supervisor, "_STOP_GRACE_S", 0.5)
        ask(rig)
        with pytest.raises(EndedEarlyError) as early:
            rig.build_supervisor().renew_while(never.wait)
        assert early.value.outcome.ending is ending

    def test_is_left_behind_by_a_worker_that_shuts_down(
        self, rig: Rig, never: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker.supervisor, "_STOP_GRACE_S", 0.5)
        rig.is_draining = lambda: True
        supervisor = rig.build_supervisor()
        with pytest.raises(EndedEarlyError) as early:
            supervisor.renew_while(never.wait)
        assert early.value.outcome.ending is Ending.STOPPED
        assert supervisor.run({"script": "hang"}).ending is Ending.STOPPED
        assert not (rig.workdir / "log").exists()

    def test_is_left_behind_with_a_lease_that_is_lost(
        self, rig: Rig, never: threading.Event
    ) -> None:
        lose(rig.database, rig.claim)
        with pytest.raises(LeaseLostError):
            rig.build_supervisor().renew_while(never.wait)

    @pytest.mark.parametrize(
        ("ask", "ending"), [(Rig.pause, Ending.STOPPED), (Rig.cancel, Ending.CANCELLED)]
    )
    def test_keeps_no_child_alive(
        self,
        rig: Rig,
        never: threading.Event,
        monkeypatch: pytest.MonkeyPatch,
        ask: Callable[[Rig], None],
        ending: Ending,
    ) -> None:
        """A checkpoint on its way to a store that stalls, while the child trains on."""
        monkeypatch.setattr(worker.supervisor, "_STOP_GRACE_S", 0.5)

        def store(message: dict[str, Any]) -> None:
            if message["type"] == "log":
                ask(rig)
                never.wait()

        rig.on_message = store
        outcome = rig.run("succeed_when_told", log=["checkpoint"], go_file="/nonexistent")
        assert outcome.ending is ending
        assert len(rig.pids) == 1

    def test_keeps_no_request_to_stop_from_the_child(self, rig: Rig) -> None:
        """Else it would train on for as long as the store stalls."""
        stopped = rig.workdir / "stopped"
        rig.is_draining = lambda: bool(rig.pids)
        rig.on_message = lambda _message: wait_for_file(stopped)
        assert rig.run("stop_when_asked", stopped_file=str(stopped)).ending is Ending.STOPPED
        assert stopped.exists()

    def test_takes_as_long_as_it_likes_without_the_child_being_called_silent(
        self, rig: Rig
    ) -> None:
        rig.limits = Limits(heartbeat_s=0.1, fence_s=120, progress_timeout_s=1.0)
        waited = threading.Event()
        rig.on_message = lambda message: waited.wait(2.5) if message["type"] == "pid" else None
        assert rig.run("succeed").ending is Ending.DONE
