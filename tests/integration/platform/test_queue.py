"""Priorities, the order of claims, retries, and what the queue says of its future."""

import math
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import JobRow
from core.platform.jobs import attempts, claiming, control, repository
from core.platform.jobs.control import JobNotFailedError, JobNotWaitingError, JobTerminalError
from core.platform.jobs.queue import Place, find_places
from core.platform.jobs.repository import DatasetUnusableError
from core.platform.projects.repository import ensure_project
from core.types import DatasetState, JobState
from tests.integration.platform.rows import (
    TTL_S,
    add_dataset,
    add_job,
    add_job_in,
    claim,
    columns_of,
    job_of,
    let_lease_run_out,
    pause,
    publish,
    resume,
    retry,
    tell_events,
)


def prioritise(database: Database, job_id: str, priority: int) -> None:
    with database.write() as session:
        control.change_priority(session, job_id, priority)


def change(database: Database, job_id: str, **columns: Any) -> None:
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(**columns))


def places_of(database: Database, *job_ids: str) -> list[Place | None]:
    with database.read() as session:
        jobs = [repository.get_job(session, job_id) for job_id in job_ids]
        places = find_places(session, jobs)
    return [places.get(job_id) for job_id in job_ids]


def now_of(database: Database) -> float:
    with database.read() as session:
        return session.scalars(select(db_now())).one()


def waits_of(database: Database, *job_ids: str) -> list[float | None]:
    """In how many seconds each starts."""
    now_s = now_of(database)
    starts = [place and place.starts_at for place in places_of(database, *job_ids)]
    return [None if start is None else start - now_s for start in starts]


class TestPriority:
    def test_the_highest_is_claimed_first_and_of_equals_the_oldest(
        self, database: Database
    ) -> None:
        dataset_id = add_dataset(database)
        ids = [add_job(database, dataset_id, priority=p) for p in (0, 5, -100, 5, 100)]
        expected = [ids[4], ids[1], ids[3], ids[0], ids[2]]
        places = places_of(database, *expected)
        assert [place.position for place in places if place] == [0, 1, 2, 3, 4]
        assert [claim(database).row_id for _ in ids] == expected

    def test_a_job_that_is_raised_overtakes(self, database: Database) -> None:
        first, second = add_job(database), add_job(database)
        prioritise(database, second, 1)
        assert [p.position for p in places_of(database, first, second) if p] == [1, 0]
        assert claim(database).row_id == second
        assert tell_events(database, second)[1] == "job.priority_changed"

    def test_it_survives_a_pause_and_a_lost_attempt(self, database: Database) -> None:
        low, high = add_job(database), add_job(database, priority=3)
        pause(database, high)
        resume(database, high)
        claimed = claim(database)
        with database.write() as session:
            attempts.release(session, claimed)
        assert claim(database).row_id == claimed.row_id == high
        assert job_of(database, low).state == "queued"

    @pytest.mark.parametrize("state", ["validating_files", "queued", "paused"])
    def test_of_a_waiting_job_can_be_changed(self, database: Database, state: str) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        prioritise(database, job_id, -7)
        prioritise(database, job_id, -7)
        assert job_of(database, job_id).priority == -7
        assert tell_events(database, job_id).count("job.priority_changed") == 1

    @pytest.mark.parametrize("state", ["running", "pausing", "cancelling"])
    def test_of_a_held_job_cannot(self, database: Database, state: str) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        with pytest.raises(JobNotWaitingError, match=state):
            prioritise(database, job_id, 1)

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_of_an_ended_job_cannot(self, database: Database, state: str) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        with pytest.raises(JobTerminalError, match=state):
            prioritise(database, job_id, 1)
        assert job_of(database, job_id).priority == 0

    def test_a_row_of_the_release_before_has_the_middle_one(self, database: Database) -> None:
        """Its processes insert jobs without the columns that they do not know."""
        old = add_job(database, priority=9)
        names = [c.name for c in JobRow.__table__.columns if c.name not in ("priority", "id")]
        columns = ", ".join(names)
        with database.write() as session:
            session.execute(
                text(
                    f"INSERT INTO jobs (id, {columns}) SELECT 'ftjob_old', {columns} FROM jobs"
                    " WHERE id = :id"
                ),
                {"id": old},
            )
        assert job_of(database, "ftjob_old").priority == 0


class TestIndex:
    """The claim reads each project's first job, however long the queue and the history are."""

    def explain(self, database: Database, analyze: str) -> str:
        statements: list[tuple[str, Any]] = []

        def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
            statements.append((statement, parameters))

        with database.write() as session:
            connection = session.connection()
            event.listen(connection, "before_cursor_execute", note)
            assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is not None
            event.remove(connection, "before_cursor_execute", note)
            (claim_made,) = [s for s in statements if s[0].lstrip().startswith("UPDATE jobs")]
            plan = connection.exec_driver_sql(f"{analyze} {claim_made[0]}", claim_made[1]).all()
            session.rollback()
        return "\n".join(" ".join(map(str, row)) for row in plan)

    def fill(self, database: Database) -> None:
        template = columns_of(job_of(database, add_job(database)))
        table = JobRow.__table__
        names = {
            attribute: table.c[attribute] for attribute in ("id", "state", "priority", "project_id")
        }
        with database.write() as session:
            for number in range(10):
                ensure_project(session, f"p{number}")
            for state, count in (("queued", 300), ("succeeded", 1200)):
                session.execute(
                    table.insert(),
                    [
                        {
                            **{
                                JobRow.__mapper__.attrs[key].columns[0].key: value
                                for key, value in template.items()
                            },
                            names["id"].key: f"ftjob_{state}_{number:04}",
                            names["state"].key: state,
                            names["priority"].key: number % 7 - 3,
                            names["project_id"].key: f"p{number % 10}",
                        }
                        for number in range(count)
                    ],
                )
            session.execute(text("ANALYZE"))

    def test_on_sqlite(self, sqlite: Database) -> None:
        self.fill(sqlite)
        plan = self.explain(sqlite, "EXPLAIN QUERY PLAN")
        wanted = "USING COVERING INDEX ix_jobs_project_queue (project_id=? AND state=?"
        assert plan.count(wanted) == 2  # the first in the queue, and how many are running
        assert "SCAN jobs" not in plan
        assert plan.count("TEMP B-TREE") == 1  # of the projects, by when they are due

    def test_on_postgresql(self, postgresql: Database) -> None:
        self.fill(postgresql)
        plan = self.explain(postgresql, "EXPLAIN")
        assert "Index Scan using ix_jobs_project_queue on jobs" in plan
        assert "LockRows" in plan
        assert "Seq Scan on jobs" not in plan
        assert plan.count("Sort Key") == 1  # of the projects, by when they are due


class TestRetry:
    def test_makes_a_new_job_that_asks_for_the_same(self, database: Database) -> None:
        failed = add_job_in(database, JobState.FAILED).row_id
        change(database, failed, labels={"who": "me"}, priority=8, checkpoint_step=3)
        before = columns_of(job_of(database, failed))
        again = job_of(database, retry(database, failed))
        assert columns_of(job_of(database, failed)) == before
        assert again.id != failed
        same = ("name", "spec", "labels", "dataset_id", "priority")
        assert {k: columns_of(again)[k] for k in same} == {k: before[k] for k in same}
        assert (again.state, again.retried_from) == ("queued", failed)
        assert (again.attempt, again.failures, again.checkpoint_step) == (0, 0, None)
        assert (again.error, again.started_at, again.finished_at) == (None, None, None)
        publish(database, claim(database))
        assert job_of(database, again.id).state == "succeeded"

    @pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.FAILED])
    def test_of_any_other_job_is_refused(self, database: Database, state: JobState) -> None:
        job_id = add_job_in(database, state).row_id
        with pytest.raises(JobNotFailedError, match=job_id):
            retry(database, job_id)

    def test_on_a_dataset_that_was_the_reason_is_refused(self, database: Database) -> None:
        failed = add_job_in(database, JobState.FAILED).row_id
        with database.write() as session:
            job = repository.get_job(session, failed)
            repository.get_dataset_of(session, job).state = DatasetState.INVALID.value
        with pytest.raises(DatasetUnusableError):
            retry(database, failed)


class TestEstimatedStart:
    """Constructed rows; sums by hand."""

    def run(self, database: Database, *, eta_s: float | None, elapsed_s: float = 0.0) -> str:
        """A job that runs, with what its trainer last said."""
        job_id = add_job(database, priority=100)
        assert claim(database).row_id == job_id
        change(
            database,
            job_id,
            progress={} if eta_s is None else {"eta_s": eta_s},
            started_at=db_now() - elapsed_s,
        )
        return job_id

    def succeed(self, database: Database, duration_s: float, *, attempt: int = 1) -> None:
        add_job(database, priority=100)
        claimed = claim(database)
        publish(database, claimed)
        change(
            database, claimed.row_id, started_at=db_now() - duration_s, finished_at=db_now(),
            attempt=attempt,
        )  # fmt: skip

    def test_nothing_is_known_without_a_running_job(self, database: Database) -> None:
        self.succeed(database, 100)
        assert places_of(database, add_job(database)) == [Place(0, None)]

    def test_jobs_that_do_not_wait_have_no_place(self, database: Database) -> None:
        self.run(database, eta_s=5)
        ids = [add_job_in(database, state).row_id for state in (JobState.PAUSED, JobState.FAILED)]
        assert places_of(database, *ids) == [None, None]

    def test_one_worker_takes_one_after_the_other(self, database: Database) -> None:
        for duration_s in (90, 100, 5000):
            self.succeed(database, duration_s)
        self.run(database, eta_s=30)
        waiting = [add_job(database) for _ in range(3)]
        assert waits_of(database, *waiting) == pytest.approx([30, 130, 230], abs=2)

    def test_several_slots_share_the_queue(self, database: Database) -> None:
        self.succeed(database, 100)
        self.run(database, eta_s=10)
        self.run(database, eta_s=70)
        waiting = [add_job(database) for _ in range(5)]
        expected = [10, 70, 110, 170, 210]
        assert waits_of(database, *waiting) == pytest.approx(expected, abs=2)
        # Alone, and in another order than the queue's.
        assert waits_of(database, waiting[3], waiting[0]) == pytest.approx([170, 10], abs=2)

    def test_priority_comes_first(self, database: Database) -> None:
        self.succeed(database, 100)
        self.run(database, eta_s=10)
        low, high = add_job(database), add_job(database, priority=1)
        assert waits_of(database, low, high) == pytest.approx([110, 10], abs=2)

    def test_without_a_word_of_the_trainer_a_job_takes_the_usual_time(
        self, database: Database
    ) -> None:
        self.succeed(database, 100)
        self.run(database, eta_s=None, elapsed_s=40)
        assert waits_of(database, add_job(database)) == pytest.approx([60], abs=2)

    def test_it_is_never_in_the_past(self, database: Database) -> None:
        self.succeed(database, 100)
        self.run(database, eta_s=None, elapsed_s=4000)
        self.run(database, eta_s=-30.0)
        first, second, third = waits_of(database, *[add_job(database) for _ in range(3)])
        assert first is not None
        assert second is not None
        assert min(first, second) > -0.001
        assert max(first, second) < 2
        assert third == pytest.approx(100, abs=2)

    def test_before_the_first_success_running_jobs_tell_their_duration(
        self, database: Database
    ) -> None:
        self.run(database, eta_s=20, elapsed_s=60)
        waiting = [add_job(database) for _ in range(2)]
        assert waits_of(database, *waiting) == pytest.approx([20, 100], abs=2)

    def test_nothing_at_all_is_known_of_a_first_job_that_has_said_nothing(
        self, database: Database
    ) -> None:
        self.run(database, eta_s=None, elapsed_s=60)
        assert waits_of(database, add_job(database)) == [None]

    def test_attempts_that_waited_in_between_do_not_count(self, database: Database) -> None:
        self.succeed(database, 90_000, attempt=2)
        self.succeed(database, 50)
        self.run(database, eta_s=0)
        waiting = [add_job(database) for _ in range(2)]
        assert waits_of(database, *waiting)[1] == pytest.approx(50, abs=2)

    def test_a_job_that_is_being_stopped_frees_its_slot_now(self, database: Database) -> None:
        running = self.run(database, eta_s=5000)
        pause(database, running)
        assert waits_of(database, add_job(database)) == pytest.approx([0], abs=2)

    def test_a_worker_that_is_lost_is_no_slot(self, database: Database) -> None:
        let_lease_run_out(database, self.run(database, eta_s=10))
        assert waits_of(database, add_job(database)) == [None]

    @pytest.mark.parametrize("nonsense", [math.inf, "soon", None, [1], True])
    def test_nonsense_of_a_trainer_is_no_estimate(self, sqlite: Database, nonsense: Any) -> None:
        change(sqlite, self.run(sqlite, eta_s=1), progress={"eta_s": nonsense})
        (wait_s,) = waits_of(sqlite, add_job(sqlite))
        assert wait_s is None or wait_s >= 0

    def test_takes_as_many_statements_for_many_jobs_as_for_one(self, database: Database) -> None:
        self.succeed(database, 100)
        self.run(database, eta_s=10)
        waiting = [add_job(database) for _ in range(12)]
        counts = []
        for wanted in (waiting[:1], waiting):
            statements: list[str] = []
            with database.read() as session:
                jobs = [repository.get_job(session, job_id) for job_id in wanted]
                event.listen(
                    session.connection(),
                    "before_cursor_execute",
                    lambda _c, _u, statement, *_m, told=statements: told.append(statement),
                )
                assert len(find_places(session, jobs)) == len(wanted)
            counts.append(len(statements))
        assert counts == [5, 5]
