"""The revision that brings versions, aliases and imported models, with rows on both sides of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from core.platform.db.engine import Database
from core.platform.db.migrate import downgrade_to, upgrade_to_head
from core.platform.models import aliases, repository
from core.platform.models.aliases import Target
from core.platform.models.imports import ImportedModel, add_imported
from tests.fixtures.postgresql import throwaway_postgresql

_BEFORE = "0006"


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
    upgrade_to_head(url)
    downgrade_to(url, _BEFORE)
    database = Database(url)
    yield database
    database.dispose()


def _insert_old(database: Database, model_id: str, name: str, created_at: float) -> None:
    """Publish a model as a process of the release before does: with the columns that it knows."""
    with database.write() as session:
        session.execute(
            text(
                "INSERT INTO datasets (id, name, state, seed, tolerance, archive_sha256,"
                " archive_bytes, archive_name, caches, classes, splits, created_at, attempt,"
                " failures) VALUES (:id, 'd', 'ready', 0, 0, '0', 1, '', '{}', '[]', '{}', 1, 0, 0)"
            ),
            {"id": f"ds_{model_id}"},
        )
        session.execute(
            text(
                "INSERT INTO jobs (id, name, state, dataset_id, spec, metadata, created_at,"
                " attempt, failures)"
                " VALUES (:id, 'j', 'succeeded', :dataset, '{}', '{}', 1, 1, 0)"
            ),
            {"id": f"job_{model_id}", "dataset": f"ds_{model_id}"},
        )
        session.execute(
            text(
                "INSERT INTO models (id, name, job_id, dataset_id, backbone, adapter_sha256,"
                " adapter_bytes, config_sha256, card_sha256, classes, metrics, created_at)"
                " VALUES (:id, :name, :job, :dataset, 'starter', '1', 1, '2', '3', '[]', '{}', :at)"
            ),
            {
                "id": model_id,
                "name": name,
                "job": f"job_{model_id}",
                "dataset": f"ds_{model_id}",
                "at": created_at,
            },
        )


def _import(database: Database) -> str:
    model = ImportedModel("flowers", "starter", ("a", "b"), {}, "1" * 64, 1, "2" * 64, "3" * 64)
    with database.write() as session:
        return add_imported(session, model).id


def test_models_that_are_there_get_their_versions(url: str, database: Database) -> None:
    for model_id, name, created_at in (
        ("mdl_c", "flowers", 3.0),
        ("mdl_a", "flowers", 1.0),
        ("mdl_x", "fruit", 9.0),
        ("mdl_b", "flowers", 1.0),
    ):
        _insert_old(database, model_id, name, created_at)
    upgrade_to_head(url)
    with database.read() as session:
        found = [repository.get_model(session, f"flowers@v{n}").id for n in (1, 2, 3)]
        assert found == ["mdl_a", "mdl_b", "mdl_c"]
        assert repository.get_model(session, "fruit@v1").id == "mdl_x"

    # Now beside it, a process of the release before publishes one more.
    _insert_old(database, "mdl_d", "flowers", 4.0)
    imported = _import(database)
    with database.read() as session:
        assert repository.get_model(session, "flowers@v4").id == "mdl_d"
        assert repository.get_model(session, "flowers@v5").id == imported


def test_the_release_before_neither_sees_nor_frees_an_imported_model(
    url: str, database: Database
) -> None:
    upgrade_to_head(url)
    imported = _import(database)
    with database.read() as session:
        # Its conditions, as it wrote them: for lists, for files in use, for rows to remove.
        shown = session.execute(text("SELECT id FROM models WHERE deleted_at IS NULL")).all()
        kept = session.execute(
            text("SELECT id FROM models WHERE deleted_at IS NULL OR deleted_at > 2000000000 - 300")
        ).scalars()
        purged = session.execute(
            text("SELECT id FROM models WHERE deleted_at < 2000000000 - 300")
        ).all()
        assert (shown, list(kept), purged) == ([], [imported], [])


def test_going_back_leaves_the_models_that_the_release_before_can_show(
    url: str, database: Database
) -> None:
    _insert_old(database, "mdl_a", "flowers", 1.0)
    upgrade_to_head(url)
    _import(database)
    with database.write() as session:
        aliases.set_alias(session, "flowers", "production", Target("mdl_a"))
    downgrade_to(url, _BEFORE)
    with database.read() as session:
        rows = session.execute(text("SELECT * FROM models")).mappings().all()
    assert [row["id"] for row in rows] == ["mdl_a"]
    assert "version" not in rows[0]
    upgrade_to_head(url)
    with database.read() as session:
        assert repository.get_model(session, "flowers@v1").id == "mdl_a"
        assert aliases.list_aliases(session, "flowers") == []
