"""Counts of shadow evaluation, added up in both databases."""

from collections import Counter

import pytest

from core.errors import NotFoundError
from core.platform.db.engine import Database
from core.platform.models import aliases
from core.platform.models.aliases import Target
from core.platform.models.shadow import MOST_DISAGREEMENTS, Agreement, add_agreement, read_agreement
from tests.integration.platform.test_aliases import add_model, point


def read(database: Database) -> Agreement:
    with database.read() as session:
        return read_agreement(session, aliases.get_alias(session, "flowers", "production"))


@pytest.fixture
def change_id(database: Database) -> int:
    main, shadow = add_model(database), add_model(database)
    return point(database, Target(main, shadow, 0.5)).change_id


def add(database: Database, change_id: int, counted: Agreement) -> None:
    with database.write() as session:
        add_agreement(session, change_id, counted)


def test_processes_add_to_each_others(database: Database, change_id: int) -> None:
    assert read(database) == Agreement()
    first = Agreement(4, 3, 0.5, 1, 0, Counter({("rose", "daisy"): 1}))
    second = Agreement(2, 0, 0.25, 0, 3, Counter({("rose", "daisy"): 1, ("a", "b"): 1}))
    for counted in (first, second):
        add(database, change_id, counted)
    assert read(database) == Agreement(6, 3, 0.75, 1, 3, {("rose", "daisy"): 2, ("a", "b"): 1})


def test_another_pair_begins_at_nothing(database: Database, change_id: int) -> None:
    add(database, change_id, Agreement(1, 1))
    other = add_model(database)
    row = point(database, Target(other, add_model(database), 1.0))
    assert read(database) == Agreement()
    add(database, row.change_id, Agreement(2, 1, 0.1, 0, 0, {("x" * 400, "y"): 1}))
    assert read(database).disagreements == {("x" * 300, "y"): 1}


def test_the_most_frequent_disagreements_are_shown(database: Database, change_id: int) -> None:
    pairs = {(f"c{i:03}", "other"): i + 1 for i in range(MOST_DISAGREEMENTS + 20)}
    add(database, change_id, Agreement(1, 0, 0.0, 0, 0, pairs))
    shown = read(database).disagreements
    assert len(shown) == MOST_DISAGREEMENTS
    assert next(iter(shown.items())) == (("c119", "other"), 120)


def test_without_a_shadow_there_is_none(database: Database) -> None:
    point(database, add_model(database))
    with pytest.raises(NotFoundError, match="no model shadows"):
        read(database)
