"""Whether references still mean what reading the models gave, on both databases."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import event, update

from api.resolution import FRESH_S, ModelResolver, ServedModel
from core.errors import NotFoundError
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow, ProjectRow
from core.platform.models import aliases, meaning
from core.platform.models.aliases import Target
from core.platform.models.meaning import Known, find_holding
from core.platform.models.repository import find_alias, get_model
from tests.integration.platform.test_aliases import add_model, point

PATIENCE_S = 30.0
FLOWERS = ("flowers", "flowers@v1", "flowers@v2", "flowers@production")


def know(database: Database, reference: str, project: str = "default") -> Known:
    """What a reference means now, as reading the model has it."""
    with database.read() as session:
        model = get_model(session, reference, project=project)
        alias = find_alias(session, reference, project=project)
        if alias is None:
            return Known(project, reference, model.id)
        return Known(project, reference, model.id, alias.change_id, alias.shadow_model_id)


def hold(database: Database, known: Sequence[Known]) -> set[str]:
    """The references that still mean what they meant."""
    with database.read_columns() as connection:
        return {one.reference for one in find_holding(connection, known)[0]}


def delete(database: Database, model_id: str) -> None:
    """Mark a model as its user does, whatever points at it."""
    with database.write() as session:
        session.execute(update(ModelRow).where(ModelRow.id == model_id).values(deleted_at=1.0))


def test_what_reading_the_models_gave_holds(database: Database) -> None:
    first, second = add_model(database), add_model(database)
    point(database, first)
    references = (*FLOWERS, first, second)
    assert hold(database, [know(database, one) for one in references]) == set(references)


def test_nothing_else_holds(database: Database) -> None:
    first, second = add_model(database), add_model(database)
    change_id = point(database, first).change_id
    wrong = [
        Known("another", first, first),
        Known("default", "flowers", first),
        Known("default", "flowers@v1", second),
        Known("default", "flowers@v3", second),
        Known("default", "trees", second),
        Known("default", "trees@v1", first),
        Known("default", "nobody", "nobody"),
        Known("default", "flowers@production", first, change_id + 1),
        Known("default", "flowers@production", second, change_id),
        Known("default", "flowers@staging", first, change_id),
        Known("default", "flowers@production", first),
        Known("default", "flowers@production", first, change_id, shadow_id="nobody"),
    ]
    assert hold(database, wrong) == set()


def test_a_newer_model_takes_the_name_and_nothing_else(database: Database) -> None:
    first = add_model(database)
    point(database, first)
    known = [know(database, one) for one in (first, "flowers", "flowers@v1", "flowers@production")]
    second = add_model(database)
    assert hold(database, known) == {first, "flowers@v1", "flowers@production"}
    delete(database, second)
    assert "flowers" in hold(database, known), "the first is the newest again"


def test_what_was_deleted_holds_no_more(database: Database) -> None:
    model = add_model(database)
    point(database, model)
    known = [know(database, one) for one in (model, "flowers", "flowers@v1", "flowers@production")]
    delete(database, model)
    assert hold(database, known) == set()


def test_an_alias_holds_as_long_as_its_shadow_is_there(database: Database) -> None:
    model, shadow = add_model(database), add_model(database)
    point(database, Target(model, shadow_model_id=shadow, shadow_fraction=0.5))
    known = [know(database, "flowers@production"), know(database, model)]
    assert hold(database, known) == {"flowers@production", model}
    delete(database, shadow)
    assert hold(database, known) == {model}


def test_more_than_a_statement_takes_are_asked_in_some(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "_AT_ONCE", 2)
    models = [add_model(database) for _ in range(5)]
    known = [Known("default", one, one) for one in models]
    with count_selects(database) as statements:
        assert hold(database, known) == set(models)
    assert len(statements) == 3


def test_the_projects_weight_comes_with_it(database: Database) -> None:
    model = add_model(database)
    known = [Known("default", model, model)]
    with database.read_columns() as connection:
        assert find_holding(connection, known)[1] == {"default": 1.0}
    with database.write() as session:
        session.merge(ProjectRow(id="default", weight=2.5))
    with database.read_columns() as connection:
        assert find_holding(connection, known)[1] == {"default": 2.5}


@contextmanager
def count_selects(database: Database) -> Iterator[list[str]]:
    """The statements that read, while the block runs."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


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


def finish(resolver: ModelResolver) -> None:
    """Wait until nothing is asked any more."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (resolver._renewal is not None and not resolver._renewal.done()) or resolver._asking:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


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


def test_all_that_is_in_use_is_asked_for_at_once_without_the_rows(
    database: Database, resolver: ModelResolver, clock: Clock
) -> None:
    models = [add_model(database) for _ in range(20)]
    point(database, models[0])
    references = ["flowers", "flowers@v1", "flowers@production", *models]
    known = {one: asyncio.run(resolver.resolve("default", one)) for one in references}
    clock.now_s += 0.8 * FRESH_S
    with count_selects(database) as statements:
        assert asyncio.run(resolver.resolve("default", models[3])) is known[models[3]]
        finish(resolver)
        clock.now_s += 0.8 * FRESH_S
        found = {one: asyncio.run(resolver.resolve("default", one)) for one in references}
        finish(resolver)
    assert found == known
    assert len(statements) == 2 * 3, "models, aliases and names, in two renewals"
    assert not any("classes" in one for one in statements)


def test_a_renewal_finds_what_has_changed(
    database: Database, resolver: ModelResolver, clock: Clock
) -> None:
    first, second, third = (add_model(database) for _ in range(3))
    point(database, first)
    for reference in (first, second, "flowers@production", "flowers"):
        asyncio.run(resolver.resolve("default", reference))
    point(database, second)
    delete(database, third)
    delete(database, first)
    clock.now_s += 0.8 * FRESH_S
    asyncio.run(resolver.resolve("default", second))
    finish(resolver)
    with count_selects(database) as statements:
        assert asyncio.run(resolver.resolve("default", "flowers@production")).id == second
        assert asyncio.run(resolver.resolve("default", "flowers")).id == second
        with pytest.raises(NotFoundError):
            asyncio.run(resolver.resolve("default", first))
    assert not statements, "the renewal has read them"
