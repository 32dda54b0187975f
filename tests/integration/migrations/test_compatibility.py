"""A database can be migrated while processes of the release before serve and work on it."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from core.platform.db import migrate
from core.platform.db.engine import Database
from core.platform.db.migrate import find_revision, head_revision, is_workable, upgrade_to_head
from core.platform.jobs.claiming import claim_job
from core.platform.jobs.repository import create_job
from core.types import DatasetId
from tests.fixtures.postgresql import throwaway_postgresql
from tests.integration.migrations.previous_release import ENDS, OldProcess
from tests.integration.platform.rows import SPEC

_ROOT = Path(__file__).parents[3]
_BEFORE = "0004"
_PATIENCE_S = 120.0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of its own at the schema of the release before."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'idat.db'}"
        _bring_to(url, _BEFORE)
        yield url
        return
    with throwaway_postgresql() as url:
        _bring_to(url, _BEFORE)
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


@pytest.fixture
def old_process(url: str) -> Iterator[OldProcess]:
    process = OldProcess(url)
    process.start()
    yield process
    process.stop()


def _bring_to(url: str, revision: str) -> None:
    migrate._run(url, lambda config: migrate.command.upgrade(config, revision))


def _upgrade_beside(url: str, tmp_path: Path) -> None:
    """Migrate as an operator does."""
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "upgrade"],
        cwd=_ROOT,
        env={"IDAT_DATABASE_URL": url, "IDAT_DATA_DIR": str(tmp_path), "PATH": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _is_at_head(database: Database) -> bool:
    with database.read() as session:
        return find_revision(session) == head_revision()


def test_a_process_of_the_release_before_works_on_through_the_migration_and_beside_it(
    url: str, database: Database, old_process: OldProcess, tmp_path: Path
) -> None:
    # More than five lives: the driver has prepared the statements by then.
    old_process.wait_for_lives(8)
    _upgrade_beside(url, tmp_path)
    assert _is_at_head(database)
    old_process.wait_for_lives(8)
    old_process.stop()
    with database.read() as session:
        jobs = session.execute(text("SELECT id, state, attempt FROM jobs")).all()
        models = session.execute(text("SELECT id FROM models")).scalars().all()
    expected = {
        (f"{job}_{life}", *end) for life in range(old_process.lives) for job, end in ENDS.items()
    }
    assert {tuple(job) for job in jobs} == expected
    assert len(models) == old_process.lives


def test_what_the_release_before_creates_is_worked_on_by_this_one(
    url: str, database: Database, tmp_path: Path
) -> None:
    """And the other way round: a row of this release goes to whoever claims first."""
    _upgrade_beside(url, tmp_path)
    old_process = OldProcess(url)
    old_process.start()
    old_process.wait_for_lives(1)
    old_process.stop()
    with database.write() as session:
        row = session.execute(text("SELECT id FROM datasets LIMIT 1")).scalar_one()
        # A new job on a dataset that the release before made, and deleted at the end of the life.
        session.execute(text("UPDATE datasets SET deleted_at = NULL"))
        job = create_job(session, dataset_id=DatasetId(row), name="new", spec=SPEC, metadata={})
    with database.write() as session:
        claim = claim_job(session, owner="new:1", ttl_s=60)
    assert claim is not None
    assert (claim.row_id, claim.attempt) == (job.id, 1)


class TestReadiness:
    def test_an_older_schema_is_refused_and_the_own_and_newer_ones_are_not(self) -> None:
        assert [is_workable(revision) for revision in (None, "0001", _BEFORE)] == [False] * 3
        assert is_workable(head_revision())
        assert is_workable(f"{int(head_revision()) + 1:04d}")

    def test_a_process_of_an_older_release_leaves_a_newer_schema_alone(
        self, url: str, database: Database
    ) -> None:
        upgrade_to_head(url)
        newer = f"{int(head_revision()) + 1:04d}"
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": newer})
        upgrade_to_head(url)
        with database.read() as session:
            assert find_revision(session) == newer


class Holder:
    """A transaction of another process that has read a table and goes on for long."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url)
        self._connection.execute("SELECT count(*) FROM jobs")

    def let_go(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
class TestBusyTables:
    def test_nobody_waits_behind_a_migration_that_waits(
        self, url: str, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        holder = Holder(url)
        caplog.set_level(logging.INFO, "core.platform.db.migrate")
        migration = threading.Thread(target=upgrade_to_head, args=(url,))
        migration.start()
        try:
            with psycopg.connect(url, autocommit=True) as other:
                # As long as the statements of the service may take.
                other.execute("SET statement_timeout = '15s'")
                writes = 0
                deadline_s = time.monotonic() + _PATIENCE_S
                while caplog.text.count("trying again") < 2:
                    assert time.monotonic() < deadline_s
                    other.execute("UPDATE jobs SET name = name")
                    writes += 1
            assert writes > 0
            assert not _is_at_head(database)
        finally:
            holder.let_go()
            migration.join(_PATIENCE_S)
        assert not migration.is_alive()
        assert _is_at_head(database)

    def test_a_table_that_is_never_free_ends_in_an_error_and_no_change(
        self, url: str, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(migrate, "_LOCK_PATIENCE_S", 0.0)
        monkeypatch.setattr(migrate, "_LOCK_TIMEOUT_MS", 50)
        holder = Holder(url)
        try:
            with pytest.raises(OperationalError, match="lock timeout"):
                upgrade_to_head(url)
        finally:
            holder.let_go()
        with database.read() as session:
            assert find_revision(session) == _BEFORE
