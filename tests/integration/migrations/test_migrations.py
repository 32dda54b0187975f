"""The revisions on SQLite and, where one can be reached, on PostgreSQL."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from core.platform.datasets.repository import create_dataset, delete_dataset
from core.platform.db.base import Base
from core.platform.db.engine import Database
from core.platform.db.migrate import (
    downgrade_to,
    find_revision,
    head_revision,
    migration_connection,
    upgrade_to_head,
)
from core.platform.db.tables import JobEventRow, ModelRow
from core.platform.jobs.repository import create_job
from core.platform.models.repository import delete_model, get_model
from core.types import DatasetId
from tests.fixtures.postgresql import throwaway_postgresql
from tests.integration.platform.rows import SPEC

_ROOT = Path(__file__).parents[3]
_OLD_MODEL = {
    "name": "old",
    "backbone": "starter",
    "adapter_sha256": "1" * 64,
    "adapter_bytes": 1,
    "config_sha256": "2" * 64,
    "card_sha256": "3" * 64,
    "classes": ["a", "b"],
    "metrics": {},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'idat.db'}"
        return
    with throwaway_postgresql() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.dispose()


def _tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}


def test_up_creates_the_declared_tables_and_down_removes_them(url: str, database: Database) -> None:
    upgrade_to_head(url)
    assert _tables(database) == set(Base.metadata.tables)
    with database.read() as session:
        assert find_revision(session) == head_revision()

    downgrade_to(url, "base")
    assert _tables(database) == set()
    with database.read() as session:
        assert find_revision(session) is None

    upgrade_to_head(url)
    assert _tables(database) == set(Base.metadata.tables)


def test_revisions_and_declared_tables_do_not_differ(url: str, database: Database) -> None:
    upgrade_to_head(url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_comparison_sees_a_missing_column(url: str, database: Database) -> None:
    upgrade_to_head(url)
    with database.write() as session:
        session.execute(text("ALTER TABLE models DROP COLUMN adapter_bytes"))
    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert [(kind, table) for kind, _, table, _ in differences] == [("add_column", "models")]


def test_upgrading_again_keeps_the_rows(url: str, database: Database) -> None:
    upgrade_to_head(url)
    with database.write() as session:
        dataset = create_dataset(
            session, name="kept", seed=0, archive_sha256="0" * 64, archive_bytes=1, archive_name=""
        )
    upgrade_to_head(url)
    with database.read() as session:
        names = session.execute(text("SELECT id, name FROM datasets")).all()
    assert [tuple(row) for row in names] == [(dataset.id, "kept")]


def test_models_of_the_first_release_stay_valid_up_and_down(url: str, database: Database) -> None:
    upgrade_to_head(url)
    with database.write() as session:
        dataset = create_dataset(
            session, name="old", seed=0, archive_sha256="0" * 64, archive_bytes=1, archive_name=""
        )
        job = create_job(
            session, dataset_id=DatasetId(dataset.id), name="old", spec=SPEC, metadata={}
        )
        session.add(ModelRow(id="mdl_old", job_id=job.id, dataset_id=dataset.id, **_OLD_MODEL))

    for _ in range(2):
        downgrade_to(url, "0001")
        with database.read() as session:
            columns = session.execute(text("SELECT * FROM models")).mappings().one()
        assert columns["id"] == "mdl_old"
        assert not {"evaluation_sha256", "figures"} & columns.keys()
        upgrade_to_head(url)
        with database.read() as session:
            model = get_model(session, "mdl_old")
        assert (model.classes, model.evaluation_sha256, model.figures) == (["a", "b"], None, None)


def test_paused_jobs_go_on_under_a_release_that_knows_no_pauses(
    url: str, database: Database
) -> None:
    upgrade_to_head(url)
    ids = {}
    with database.write() as session:
        for ready in (True, False):
            dataset = create_dataset(
                session, name="d", seed=0, archive_sha256="0" * 64, archive_bytes=1, archive_name=""
            )
            dataset.state = "ready" if ready else "pending"
            for state in ("pausing", "paused") if ready else ("paused",):
                job = create_job(
                    session,
                    dataset_id=DatasetId(dataset.id),
                    name="j",
                    spec=SPEC,
                    metadata={},
                    priority=7,
                )
                job.state = state
                ids[state, ready] = job.id
    downgrade_to(url, "0002")
    with database.read() as session:
        rows = {row["id"]: row for row in session.execute(text("SELECT * FROM jobs")).mappings()}
    assert not {"priority", "retried_from"} & rows[ids["paused", True]].keys()
    found = {key: rows[job_id]["state"] for key, job_id in ids.items()}
    assert found == {
        ("pausing", True): "running",
        ("paused", True): "queued",
        ("paused", False): "validating_files",
    }
    upgrade_to_head(url)
    with database.read() as session:
        priorities = session.execute(text("SELECT DISTINCT priority FROM jobs")).scalars().all()
    assert priorities == [0]


def test_what_was_deleted_does_not_come_back_under_a_release_without_deletion(
    url: str, database: Database
) -> None:
    upgrade_to_head(url)
    with database.write() as session:
        for suffix in ("kept", "gone"):
            dataset = create_dataset(
                session, name="d", seed=0, archive_sha256="0" * 64, archive_bytes=1, archive_name=""
            )
            dataset.state = "ready"
            job = create_job(
                session, dataset_id=DatasetId(dataset.id), name=suffix, spec=SPEC, metadata={}
            )
            job.state = "succeeded"
            model_id = f"mdl_{suffix}"
            session.add(ModelRow(id=model_id, job_id=job.id, dataset_id=dataset.id, **_OLD_MODEL))
        session.flush()
        delete_dataset(session, dataset.id)
        delete_model(session, "mdl_gone")
    downgrade_to(url, "0003")
    with database.read() as session:
        models = session.execute(text("SELECT id FROM models")).scalars().all()
        found = session.execute(text("SELECT id, state FROM datasets"))
        states = {row.id: row.state for row in found}
    assert models == ["mdl_kept"]
    assert states.pop(dataset.id) == "failed"
    assert list(states.values()) == ["ready"]
    upgrade_to_head(url)
    with database.read() as session:
        assert get_model(session, "mdl_kept").deleted_at is None


def test_the_migrated_tables_enforce_their_references(url: str, database: Database) -> None:
    upgrade_to_head(url)
    orphan = JobEventRow(job_id="ftjob_none", attempt=0, level="info", type="message", message="")
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(orphan)


def _fail_half_way(url: str) -> None:
    with migration_connection(url) as connection:
        connection.execute(text("CREATE TABLE half_done (id INTEGER)"))
        raise RuntimeError("power cut")


def test_a_failing_revision_changes_nothing(url: str, database: Database) -> None:
    upgrade_to_head(url)
    with pytest.raises(RuntimeError, match="power cut"):
        _fail_half_way(url)
    assert "half_done" not in _tables(database)


def test_processes_that_start_together_migrate_once(
    url: str, database: Database, tmp_path: Path
) -> None:
    environment = {"IDAT_DATABASE_URL": url, "IDAT_DATA_DIR": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-m", "migrations", "upgrade"]
    processes = [
        subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert outcomes == [("", 0)] * 4
    assert _tables(database) == set(Base.metadata.tables)
