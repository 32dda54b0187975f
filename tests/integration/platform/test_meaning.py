"""What references mean, in one narrow query: what reading the model gives, on both databases."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import event, update

from api.resolution import FRESH_S, ModelResolver, ServedModel
from core.errors import NotFoundError
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow, ProjectRow
from core.platform.models import aliases
from core.platform.models.aliases import Target
from core.platform.models.meaning import Meaning, find_meaning
from core.platform.models.repository import get_model
from tests.integration.platform.test_aliases import add_model, point


def ask(database: Database, reference: str, project: str = "default") -> Meaning | None:
    """What a reference means now."""
    with database.read_columns() as connection:
        return find_meaning(connection, reference, project=project)


def delete(database: Database, model_id: str) -> None:
    """Mark a model as its user does, whatever points at it."""
    with database.write() as session:
        session.execute(update(ModelRow).where(ModelRow.id == model_id).values(deleted_at=1.0))


def test_means_what_reading_the_model_gives(database: Database) -> None:
    first, second = add_model(database), add_model(database)
    change_id = point(database, first).change_id
    for reference, change in (
        (first, None),
        (second, None),
        ("flowers@v1", None),
        ("flowers@v2", None),
        ("flowers@production", change_id),
    ):
        with database.read() as session:
            model = get_model(session, reference)
        assert ask(database, reference) == Meaning(model.id, change, 1.0)
    for reference in ("flowers", "nobody", "flowers@v3", "flowers@staging", "trees@production"):
        assert ask(database, reference) is None
    for reference in (first, "flowers@v1", "flowers@production"):
        assert ask(database, reference, "another") is None


def test_what_was_deleted_means_nothing(database: Database) -> None:
    model = add_model(database)
    point(database, model)
    delete(database, model)
    for reference in (model, "flowers@v1", "flowers@production"):
        assert ask(database, reference) is None


def test_the_projects_weight_comes_with_it(database: Database) -> None:
    model = add_model(database)
    with database.write() as session:
        session.merge(ProjectRow(id="default", weight=2.5))
    meaning = ask(database, model)
    assert meaning is not None
    assert meaning.weight == 2.5


class Clock:
    """Stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resolver(database: Database, clock: Clock) -> Iterator[ModelResolver]:
    resolver = ModelResolver(database, clock=clock)
    yield resolver
    resolver.close()


def _resolve(resolver: ModelResolver, clock: Clock, reference: str) -> ServedModel:
    clock.now_s += FRESH_S
    return asyncio.run(resolver.resolve("default", reference))


def test_a_resolver_notices_every_change_after_a_second(
    database: Database, resolver: ModelResolver, clock: Clock
) -> None:
    first, second = add_model(database), add_model(database)
    point(database, first)
    references = (first, "flowers@v1", "flowers@production", "flowers")
    wanted = [first, first, first, second]
    for _ in range(2):
        assert [_resolve(resolver, clock, r).id for r in references] == wanted
    point(database, second)
    assert _resolve(resolver, clock, "flowers@production").id == second
    third = add_model(database)
    assert _resolve(resolver, clock, "flowers").id == third
    point(database, Target(second, shadow_model_id=third, shadow_fraction=0.5))
    shadow = _resolve(resolver, clock, "flowers@production").shadow
    assert shadow is not None
    assert shadow.model.id == third
    delete(database, first)
    for reference in (first, "flowers@v1"):
        with pytest.raises(NotFoundError):
            _resolve(resolver, clock, reference)
    with database.write() as session:
        aliases.delete_alias(session, "flowers", "production")
    with pytest.raises(NotFoundError):
        _resolve(resolver, clock, "flowers@production")


@pytest.mark.parametrize("reference", ["flowers@v1", "flowers@production"])
def test_what_still_holds_is_asked_for_in_one_query_without_the_row(
    database: Database, resolver: ModelResolver, clock: Clock, reference: str
) -> None:
    point(database, add_model(database))
    known = _resolve(resolver, clock, reference)
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    assert _resolve(resolver, clock, reference) is known
    assert len([one for one in statements if one.startswith("SELECT")]) == 1
    assert not any("classes" in one for one in statements)
