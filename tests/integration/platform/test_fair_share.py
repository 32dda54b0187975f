"""Projects share the workers: by weight, within their limits, and as the forecast says."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from core.errors import InvalidError
from core.platform.db.base import Base
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import JobRow, ProjectRow
from core.platform.jobs import claiming, repository
from core.platform.jobs.claiming import Room
from core.platform.jobs.queue import find_places
from core.platform.jobs.repository import TooManyQueuedJobsError
from core.platform.leases import Claim
from core.platform.projects.repository import change_project, get_load, list_loads
from core.types import DatasetId
from tests.integration.platform.rows import (
    SPEC,
    TTL_S,
    add_dataset,
    cancel,
    job_of,
    lose,
    publish,
    retry,
)

GIB = 1 << 30


def add(
    database: Database,
    project: str,
    *,
    dataset_id: DatasetId | None = None,
    max_queued_jobs: int = 0,
    **columns: int,
) -> str:
    dataset_id = dataset_id or add_dataset(database, project=project)
    with database.write() as session:
        return repository.create_job(
            session,
            dataset_id=dataset_id,
            name="f",
            spec=SPEC,
            metadata={},
            project=project,
            max_queued_jobs=max_queued_jobs,
            **columns,
        ).id


def add_many(database: Database, project: str, count: int, **columns: int) -> list[str]:
    dataset_id = add_dataset(database, project=project)
    return [add(database, project, dataset_id=dataset_id, **columns) for _ in range(count)]


def change(database: Database, name: str, **changes: float | None) -> None:
    with database.write() as session:
        change_project(session, name, dict(changes))


def try_claim(
    database: Database, *, max_running_jobs: int = 0, room: Room | None = None
) -> Claim | None:
    with database.write() as session:
        return claiming.claim_job(
            session, owner="host:1", ttl_s=TTL_S, max_running_jobs=max_running_jobs, room=room
        )


def claim_projects(database: Database, count: int, *, max_running_jobs: int = 0) -> str:
    """The projects of so many claims, each by the first letter of its name; `-` for none."""
    found = ""
    for _ in range(count):
        claimed = try_claim(database, max_running_jobs=max_running_jobs)
        found += "-" if claimed is None else job_of(database, claimed.row_id).project_id[0]
    return found


class TestShares:
    def test_equal_projects_take_turns_however_long_their_queues_are(
        self, database: Database
    ) -> None:
        add_many(database, "alpha", 6)
        add_many(database, "beta", 2)
        assert claim_projects(database, 9) == "ababaaaa-"

    def test_starts_are_shared_by_weight(self, database: Database) -> None:
        change(database, "alpha", weight=3.0)
        add_many(database, "alpha", 12)
        add_many(database, "beta", 12)
        assert Counter(claim_projects(database, 12)) == {"a": 9, "b": 3}

    def test_an_idle_project_saves_nothing_up(self, database: Database) -> None:
        add_many(database, "alpha", 12)
        add_many(database, "beta", 1)
        assert Counter(claim_projects(database, 7))["b"] == 1
        add_many(database, "beta", 6)  # after it has been idle for five of alpha's
        assert Counter(claim_projects(database, 6)) == {"a": 3, "b": 3}

    def test_a_new_project_does_not_wait_for_its_turn_behind_the_old(
        self, database: Database
    ) -> None:
        change(database, "beta", weight=0.1)
        add_many(database, "alpha", 9)
        claim_projects(database, 5)
        add_many(database, "beta", 2)
        assert "b" in claim_projects(database, 2)

    def test_priority_orders_a_project_and_no_other(self, database: Database) -> None:
        add_many(database, "alpha", 2, priority=100)
        add_many(database, "beta", 2, priority=-100)
        assert claim_projects(database, 4) == "abab"

    def test_a_row_of_the_release_before_is_claimed(self, database: Database) -> None:
        """It belongs to the default project, whose row the migration has made."""
        job_id = add(database, "default")
        claimed = try_claim(database)
        assert claimed is not None
        assert claimed.row_id == job_id


class TestLimits:
    def test_a_project_at_its_limit_is_passed_over(self, database: Database) -> None:
        change(database, "alpha", max_running_jobs=1)
        add_many(database, "alpha", 3)
        add_many(database, "beta", 3)
        assert claim_projects(database, 5) == "abbb-"

    def test_the_setting_is_for_those_without_a_limit_of_their_own(
        self, database: Database
    ) -> None:
        change(database, "alpha", max_running_jobs=0)
        add_many(database, "alpha", 3)
        add_many(database, "beta", 3)
        assert sorted(claim_projects(database, 5, max_running_jobs=1)) == sorted("aaab-")

    def test_an_end_makes_room(self, database: Database) -> None:
        change(database, "alpha", max_running_jobs=1)
        add_many(database, "alpha", 3)
        first = try_claim(database)
        assert first is not None
        assert try_claim(database) is None
        cancel(database, first.row_id)  # it still runs
        assert try_claim(database) is None
        lose(database, first)
        assert try_claim(database) is not None

    @pytest.mark.parametrize("limit", [1, 3])
    def test_many_claims_at_once_do_not_exceed_it(self, database: Database, limit: int) -> None:
        change(database, "alpha", max_running_jobs=limit)
        change(database, "beta", max_running_jobs=limit)
        for project in ("alpha", "beta"):
            add_many(database, project, 8)
        barrier = threading.Barrier(8)

        def claim_some(_number: int) -> int:
            barrier.wait()
            return sum(try_claim(database) is not None for _ in range(2))

        with ThreadPoolExecutor(8) as pool:
            claimed = sum(pool.map(claim_some, range(8)))
        assert claimed == 2 * limit
        with database.read() as session:
            loads = {load.name: load.running for load in list_loads(session) if load.running}
        assert loads == {"alpha": limit, "beta": limit}

    def test_a_claim_in_flight_counts(self, postgresql: Database) -> None:
        """The second of two claims waits for the first one's commit, and counts its job."""
        change(postgresql, "alpha", max_running_jobs=1)
        add_many(postgresql, "alpha", 2)
        with ThreadPoolExecutor(1) as pool:
            with postgresql.write() as session:
                assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is not None
                other = pool.submit(try_claim, postgresql)
                with pytest.raises(TimeoutError):
                    other.result(timeout=0.3)
            assert other.result() is None

    def test_waiting_jobs_are_capped(self, database: Database) -> None:
        for _ in range(2):
            add(database, "alpha", max_queued_jobs=2)
        with pytest.raises(TooManyQueuedJobsError, match="alpha"):
            add(database, "alpha", max_queued_jobs=2)
        add(database, "beta", max_queued_jobs=2)
        assert try_claim(database) is not None
        add(database, "alpha", max_queued_jobs=2)

    def test_creations_at_once_do_not_exceed_the_cap(self, database: Database) -> None:
        datasets = [add_dataset(database, project="alpha") for _ in range(6)]
        barrier = threading.Barrier(6)

        def create(dataset_id: DatasetId) -> bool:
            barrier.wait()
            try:
                add(database, "alpha", dataset_id=dataset_id, max_queued_jobs=3)
            except TooManyQueuedJobsError:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(create, datasets)) == 3

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("Alpha", {"weight": 1.0}),
            ("a b", {"weight": 1.0}),
            ("alpha", {"weight": 0.0}),
            ("alpha", {"weight": float("nan")}),
            ("alpha", {"max_running_jobs": -1}),
        ],
    )
    def test_impossible_numbers_are_refused(
        self, sqlite: Database, name: str, changes: dict[str, float]
    ) -> None:
        with pytest.raises(InvalidError):
            change(sqlite, name, **changes)

    def test_a_project_without_a_row_has_the_defaults(self, database: Database) -> None:
        with database.read() as session:
            load = get_load(session, "nobody")
        assert (load.weight, load.max_running_jobs, load.running, load.queued) == (1.0, None, 0, 0)

    def test_another_try_stays_in_its_project(self, database: Database) -> None:
        job_id = add(database, "alpha", memory_bytes=7)
        with database.write() as session:
            session.execute(update(JobRow).values(state="failed", max_seconds=9.0))
        again = job_of(database, retry(database, job_id))
        assert (again.project_id, again.memory_bytes, again.max_seconds) == ("alpha", 7, 9.0)


class TestMemory:
    def room(self, free_bytes: int | None, *, worker: str = "w1", after_s: float = 600.0) -> Room:
        return Room(worker=worker, free_bytes=free_bytes, reserve_after_s=after_s)

    def age(self, database: Database, job_id: str, by_s: float) -> None:
        with database.write() as session:
            aged = update(JobRow).where(JobRow.id == job_id)
            session.execute(aged.values(created_at=db_now() - by_s))

    def test_what_does_not_fit_is_passed_over(self, database: Database) -> None:
        big = add(database, "alpha", memory_bytes=9 * GIB, priority=5)
        small = add(database, "alpha", memory_bytes=2 * GIB)
        claimed = try_claim(database, room=self.room(4 * GIB))
        assert claimed is not None
        assert claimed.row_id == small
        assert try_claim(database, room=self.room(4 * GIB)) is None
        assert job_of(database, big).state == "queued"

    def test_it_lets_another_project_start_instead(self, database: Database) -> None:
        add(database, "alpha", memory_bytes=9 * GIB)
        other = add(database, "beta", memory_bytes=2 * GIB)
        claimed = try_claim(database, room=self.room(4 * GIB))
        assert claimed is not None
        assert claimed.row_id == other

    def test_alone_any_job_runs(self, database: Database) -> None:
        big = add(database, "alpha", memory_bytes=900 * GIB)
        claimed = try_claim(database, room=self.room(None))
        assert claimed is not None
        assert claimed.row_id == big

    def test_one_that_has_waited_gets_a_worker_to_itself(self, database: Database) -> None:
        big = add(database, "alpha", memory_bytes=9 * GIB)
        self.age(database, big, by_s=700)
        smalls = add_many(database, "alpha", 4, memory_bytes=GIB)
        assert try_claim(database, room=self.room(4 * GIB)) is None  # reserves
        assert try_claim(database, room=self.room(8 * GIB)) is None  # goes on reserving
        # Others go on meanwhile: one worker for one job.
        other = try_claim(database, room=self.room(4 * GIB, worker="w2"))
        assert other is not None
        assert other.row_id in smalls
        claimed = try_claim(database, room=self.room(9 * GIB))
        assert claimed is not None
        assert claimed.row_id == big
        assert job_of(database, big).reserved_by is None
        assert try_claim(database, room=self.room(2 * GIB)) is not None

    def test_a_reservation_is_kept_by_a_worker_that_has_become_idle(
        self, database: Database
    ) -> None:
        big = add(database, "alpha", memory_bytes=9 * GIB)
        self.age(database, big, by_s=700)
        add_many(database, "alpha", 2, memory_bytes=GIB)
        assert try_claim(database, room=self.room(4 * GIB)) is None
        add(database, "alpha", memory_bytes=GIB, priority=100)  # is first now
        claimed = try_claim(database, room=self.room(None))
        assert claimed is not None
        assert claimed.row_id == big

    def test_a_reservation_of_a_dead_worker_runs_out(self, database: Database) -> None:
        big = add(database, "alpha", memory_bytes=9 * GIB)
        self.age(database, big, by_s=700)
        assert try_claim(database, room=self.room(4 * GIB, worker="dead")) is None
        with database.write() as session:
            session.execute(update(JobRow).values(reserved_until=db_now() - 1))
        add(database, "alpha", memory_bytes=GIB)
        assert try_claim(database, room=self.room(4 * GIB)) is None
        assert job_of(database, big).reserved_by == "w1"

    def test_a_reservation_for_what_may_not_start_holds_nobody_up(self, database: Database) -> None:
        change(database, "alpha", max_running_jobs=1)
        big = add(database, "alpha", memory_bytes=9 * GIB)
        self.age(database, big, by_s=700)
        assert try_claim(database, room=self.room(4 * GIB)) is None
        small = add(database, "alpha", memory_bytes=0, priority=1)
        started = try_claim(database, room=self.room(4 * GIB, worker="w2"))
        assert started is not None
        assert started.row_id == small
        other = add(database, "beta", memory_bytes=GIB)
        claimed = try_claim(database, room=self.room(4 * GIB))
        assert claimed is not None
        assert claimed.row_id == other


@dataclass(frozen=True)
class Queue:
    """A project of the property below."""

    weight: float
    limit: int | None
    priorities: list[int]


QUEUES = st.lists(
    st.builds(
        Queue,
        weight=st.sampled_from([0.3, 1.0, 2.0, 2.5]),
        limit=st.sampled_from([None, 0, 1, 2]),
        priorities=st.lists(st.integers(-1, 1), max_size=5),
    ),
    min_size=1,
    max_size=3,
)


class TestForecast:
    """The order that is told is the order in which everything is claimed."""

    def check(self, database: Database, queues: list[Queue], slots: int, default: int) -> None:
        with database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        dataset = {}
        for number, queue in enumerate(queues):
            name = f"p{number}"
            change(database, name, weight=queue.weight, max_running_jobs=queue.limit)
            dataset[name] = add_dataset(database, project=name)
            for priority in queue.priorities:
                add(database, name, dataset_id=dataset[name], priority=priority)
        running = []
        for _ in range(slots):
            claimed = try_claim(database, max_running_jobs=default)
            if claimed is not None:
                running.append(claimed)
        told = self.tell(database, default)
        found: list[str] = []
        free = 0 if running else 1
        while len(found) < len(told):
            if not free:
                publish(database, running.pop(0))
                free += 1
            while free and (claimed := try_claim(database, max_running_jobs=default)):
                found.append(claimed.row_id)
                running.append(claimed)
                free -= 1
            if free and running and len(found) < len(told):
                publish(database, running.pop(0))
                free += 1
        assert found == told

    def tell(self, database: Database, default: int) -> list[str]:
        with database.read() as session:
            jobs = [
                job
                for name in (row.id for row in session.query(ProjectRow))
                for job in repository.list_jobs(
                    session, after=None, limit=100, state="queued", project=name
                )
            ]
            places = find_places(session, jobs, max_running_jobs=default)
        assert sorted(place.position for place in places.values()) == list(range(len(jobs)))
        return sorted(places, key=lambda job_id: places[job_id].position)

    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(queues=QUEUES, slots=st.integers(0, 4), default=st.integers(0, 2))
    def test_on_sqlite(
        self, sqlite: Database, queues: list[Queue], slots: int, default: int
    ) -> None:
        self.check(sqlite, queues, slots, default)

    @settings(
        max_examples=6,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(queues=QUEUES, slots=st.integers(0, 4), default=st.integers(0, 2))
    def test_on_postgresql(
        self, postgresql: Database, queues: list[Queue], slots: int, default: int
    ) -> None:
        self.check(postgresql, queues, slots, default)
