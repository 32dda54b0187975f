"""Transactions as the whole project relies on them, on both databases."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.orm import Session

from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow
from core.platform.jobs import events, repository
from core.platform.jobs.specs import JobSpec
from tests.integration.platform.rows import SPEC, add_dataset, add_job, dataset_of, job_of


def rename(session: Session, dataset_id: str, name: str) -> None:
    session.execute(update(DatasetRow).where(DatasetRow.id == dataset_id).values(name=name))


class TestWrite:
    def test_the_end_of_the_block_commits(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        with database.write() as session:
            rename(session, dataset_id, "new")
        assert dataset_of(database, dataset_id).name == "new"

    def test_an_exception_rolls_everything_back(self, database: Database) -> None:
        dataset_id = add_dataset(database)

        def write_and_fail() -> None:
            with database.write() as session:
                rename(session, dataset_id, "new")
                session.flush()
                raise RuntimeError("after the write")

        with pytest.raises(RuntimeError, match="after the write"):
            write_and_fail()
        assert dataset_of(database, dataset_id).name == "flowers"
        with database.write() as session:  # and the connection is usable again
            rename(session, dataset_id, "later")
        assert dataset_of(database, dataset_id).name == "later"

    def test_nobody_sees_a_write_before_its_commit(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        with database.write() as session:
            rename(session, dataset_id, "new")
            assert dataset_of(database, dataset_id).name == "flowers"

    def test_read_then_write_under_concurrency_neither_fails_nor_forgets(
        self, database: Database
    ) -> None:
        """With a deferred BEGIN, SQLite refuses the second of two that have read."""
        dataset_id = add_dataset(database)
        barrier = threading.Barrier(8)

        def count(_n: int) -> None:
            barrier.wait()
            for _ in range(5):
                with database.write() as session:
                    query = select(DatasetRow.seed).where(DatasetRow.id == dataset_id)
                    seen = session.scalars(query.with_for_update()).one()
                    session.execute(
                        update(DatasetRow).where(DatasetRow.id == dataset_id).values(seed=seen + 1)
                    )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        assert dataset_of(database, dataset_id).seed == 40

    def test_rows_stay_readable_after_the_commit(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        with database.write() as session:
            job = repository.create_job(
                session, dataset_id=dataset_id, name="f", spec=SPEC, metadata={"a": 1}
            )
        assert (job.name, job.state, job.labels) == ("f", "queued", {"a": 1})
        assert job.created_at > 0


class TestRead:
    def test_a_reader_blocks_no_writer(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        with database.read() as session:
            session.execute(select(DatasetRow)).all()
            with database.write() as writer:
                rename(writer, dataset_id, "new")
        assert dataset_of(database, dataset_id).name == "new"

    def test_a_reader_on_sqlite_sees_one_moment(self, sqlite: Database) -> None:
        dataset_id = add_dataset(sqlite)
        query = select(DatasetRow.name).where(DatasetRow.id == dataset_id)
        with sqlite.read() as session:
            before = session.scalar(query)
            with sqlite.write() as writer:
                rename(writer, dataset_id, "new")
            assert session.scalar(query) == before == "flowers"


class TestSqlite:
    def test_a_committed_job_survives_a_power_cut(self, sqlite: Database) -> None:
        with sqlite.read() as session:
            pragmas = {
                name: session.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        full = 2
        assert pragmas == {
            "journal_mode": "wal",
            "synchronous": full,
            "foreign_keys": 1,
            "busy_timeout": 15_000,
        }

    def test_the_folder_is_made(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path / 'a' / 'b' / 'idat.db'}")
        with database.read() as session:
            assert session.execute(text("SELECT 1")).scalar() == 1
        database.dispose()

    def test_a_file_that_another_opener_holds_is_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / "new.db"
        # In the middle of what another opener does before it has switched to the log.
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE t (n INTEGER)")
        release = threading.Timer(0.3, other.execute, ("COMMIT",))
        release.start()
        database = Database(f"sqlite:///{path}")
        # As SQLite says by itself where waiting might have no end.
        event.listen(database.engine, "connect", _wait_for_nobody, insert=True)
        with database.read() as session:
            assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        release.join()
        other.close()
        database.dispose()

    def test_openers_of_a_new_file_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'new.db'}"
        barrier = threading.Barrier(8)

        def write(_n: int) -> None:
            database = Database(url)
            barrier.wait()
            with database.write() as session:
                session.execute(text("CREATE TABLE IF NOT EXISTS t (n INTEGER)"))
                session.execute(text("INSERT INTO t VALUES (1)"))
            database.dispose()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        database = Database(url)
        with database.read() as session:
            assert session.execute(text("SELECT count(*) FROM t")).scalar() == 8
        database.dispose()


def _wait_for_nobody(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA busy_timeout=0")


VALUES: dict[str, Any] = {
    "floats": [0.1 + 0.2, 1e-300, -0.0, 1.7976931348623157e308, 5e-324],
    "integers": [2**53 + 1, -(2**63)],
    "text": "fleurs d'été 花 \U0001f33c \" \\ \n",
    "nested": {"": [None, True, {"deep": []}]},
}


class TestRoundTrip:
    def test_json_comes_back_as_it_went(self, database: Database) -> None:
        job_id = add_job(database)
        with database.write() as session:
            job = repository.get_job(session, job_id)
            job.progress, job.labels = VALUES, VALUES
            events.record_epoch(session, job_id, 0, VALUES)
            events.add_event(session, job_id, str(VALUES["text"]), data=VALUES)
        stored = job_of(database, job_id)
        with database.read() as session:
            (epoch,) = events.list_epochs(session, job_id)
            (event,) = events.list_events(session, job_id, after=0, limit=1, descending=True)
        found = [stored.progress, stored.labels, epoch.metrics, event.data]
        assert [repr(value) for value in found] == [repr(VALUES)] * 4
        assert event.message == VALUES["text"]

    def test_a_specification_comes_back_as_it_went(self, database: Database) -> None:
        stored = job_of(database, add_job(database)).spec
        assert JobSpec.from_json(stored) == SPEC

    def test_times_keep_all_their_digits(self, database: Database) -> None:
        job_id = add_job(database)
        time_s = 1_790_000_000.123_456_7
        with database.write() as session:
            repository.get_job(session, job_id).created_at = time_s
        assert job_of(database, job_id).created_at == time_s

    def test_what_is_not_set_is_none(self, database: Database) -> None:
        job = job_of(database, add_job(database))
        assert (job.progress, job.error, job.finished_at, job.model_id) == (None, None, None, None)
