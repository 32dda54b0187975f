"""Versions and aliases of models, on both databases."""

import threading

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from core.errors import InvalidError, NotFoundError
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models import aliases, repository
from core.platform.models.aliases import (
    AliasChangedError,
    AliasTargetError,
    Expected,
    NoPreviousTargetError,
    Target,
)
from core.platform.models.liveness import NEVER_S
from core.platform.models.repository import ModelInUseError
from core.platform.models.versions import assign_version
from core.types import new_model_id


def add_model(database: Database, name: str = "flowers", *, project: str = "default") -> str:
    """An imported model."""
    model = ModelRow(
        id=new_model_id(),
        project_id=project,
        name=name,
        backbone="starter",
        adapter_sha256="1" * 64,
        adapter_bytes=1,
        config_sha256="2" * 64,
        card_sha256="3" * 64,
        classes=["a", "b"],
        metrics={},
        deleted_at=NEVER_S,
    )
    with database.write() as session:
        session.add(model)
        assign_version(session, model)
    return model.id


def point(database: Database, target: str | Target, **options: object) -> aliases.ModelAliasRow:
    """Point `flowers@production` at a model."""
    wanted = Target(target) if isinstance(target, str) else target
    with database.write() as session:
        return aliases.set_alias(session, "flowers", "production", wanted, **options)[0]


def roll_back(database: Database) -> str:
    """Go back; return where to."""
    with database.write() as session:
        return aliases.roll_back(session, "flowers", "production").model_id


def resolve(database: Database, reference: str, project: str = "default") -> str:
    with database.read() as session:
        return repository.get_model(session, reference, project=project).id


class TestVersions:
    def test_count_the_models_of_a_name_and_never_twice(self, database: Database) -> None:
        ids = [add_model(database) for _ in range(3)]
        other = add_model(database, "fruit")
        with database.write() as session:
            repository.delete_model(session, ids[2])
            session.execute(ModelRow.__table__.delete().where(ModelRow.id == ids[2]))
        ids[2] = add_model(database)
        assert resolve(database, "flowers@v2") == ids[1]
        assert resolve(database, "flowers@v4") == ids[2]
        assert resolve(database, "fruit@v1") == other
        for absent in ("flowers@v3", "flowers@v5", "fruit@v2", "nothing@v1"):
            with pytest.raises(NotFoundError, match=absent):
                resolve(database, absent)

    def test_models_without_one_are_numbered_before_the_next(self, database: Database) -> None:
        ids = [add_model(database) for _ in range(3)]
        with database.write() as session:
            # As a process of the release before publishes.
            for place, model_id in enumerate(ids[1:], start=1):
                values = {"version": None, "created_at": 1000.0 + place}
                session.execute(update(ModelRow).where(ModelRow.id == model_id).values(values))
            session.execute(update(ModelRow).where(ModelRow.id == ids[0]).values(created_at=1000.0))
        # The numbers 2 and 3 were never given to anyone else, but it cannot be told.
        newest = add_model(database)
        found = [resolve(database, f"flowers@v{number}") for number in (1, 4, 5, 6)]
        assert found == [*ids, newest]

    def test_are_given_once_to_those_who_come_together(self, database: Database) -> None:
        threads = [threading.Thread(target=add_model, args=(database,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({resolve(database, f"flowers@v{n}") for n in range(1, 7)}) == 6


class TestSetting:
    def test_a_reference_follows_the_alias(self, database: Database) -> None:
        first, second = add_model(database), add_model(database)
        point(database, first)
        assert resolve(database, "flowers@production") == first
        assert resolve(database, "flowers") == second
        point(database, second)
        assert resolve(database, "flowers@production") == second
        with pytest.raises(NotFoundError, match="no alias staging"):
            resolve(database, "flowers@staging")

    def test_every_change_is_kept_and_none_is_made_twice(self, database: Database) -> None:
        first, second = add_model(database), add_model(database)
        before = point(database, first, actor="ann")
        again = point(database, first, actor="bob")
        assert (again.change_id, again.created_at) == (before.change_id, before.created_at)
        point(database, second, actor="bob")
        with database.read() as session:
            changes = aliases.list_changes(session, "flowers", "production", limit=10)
        assert [(c.action, c.model_id, c.actor) for c in changes] == [
            ("set", second, "bob"),
            ("set", first, "ann"),
        ]

    def test_a_target_must_be_a_model_of_that_name(self, database: Database) -> None:
        mine, other = add_model(database), add_model(database, "fruit")
        gone, foreign = add_model(database), add_model(database, project="p2")
        with database.write() as session:
            repository.delete_model(session, gone)
        for wrong in (other, gone, foreign, "mdl_none", "flowers"):
            for target in (Target(wrong), Target(mine, wrong, 0.5)):
                with pytest.raises(AliasTargetError):
                    point(database, target)
        with pytest.raises(AliasTargetError, match="shadow itself"):
            point(database, Target(mine, mine, 0.5))
        with database.read() as session:
            assert aliases.list_aliases(session, "flowers") == []

    @pytest.mark.parametrize("alias", ["v1", "v20"])
    def test_a_version_is_no_alias(self, database: Database, alias: str) -> None:
        target = Target(add_model(database))
        with pytest.raises(InvalidError, match="version"), database.write() as session:
            aliases.set_alias(session, "flowers", alias, target)

    def test_whoever_expects_another_state_changes_nothing(self, database: Database) -> None:
        first, second = add_model(database), add_model(database)
        with pytest.raises(AliasChangedError, match="not there"):
            point(database, first, expected=Expected())
        with pytest.raises(AliasChangedError, match="not there"):
            point(database, first, expected=Expected(frozenset({1})))
        seen = point(database, first, expected=Expected(is_absent=True)).change_id
        with pytest.raises(AliasChangedError, match=first):
            point(database, second, expected=Expected(is_absent=True))
        point(database, second, expected=Expected(frozenset({seen})))
        with pytest.raises(AliasChangedError, match=second), database.write() as session:
            aliases.delete_alias(
                session, "flowers", "production", expected=Expected(frozenset({seen}))
            )
        assert resolve(database, "flowers@production") == second

    def test_projects_do_not_see_each_others(self, database: Database) -> None:
        mine, theirs = add_model(database), add_model(database, project="p2")
        point(database, mine)
        point(database, theirs, project="p2")
        assert resolve(database, "flowers@production") == mine
        assert resolve(database, "flowers@production", "p2") == theirs
        assert resolve(database, "flowers@v1", "p2") == theirs
        with pytest.raises(NotFoundError):
            resolve(database, mine, "p2")

    def test_one_of_two_who_create_it_together_has_to_try_again(self, postgresql: Database) -> None:
        first, second = add_model(postgresql), add_model(postgresql)
        outcomes: list[str] = []

        def create() -> None:
            try:
                outcomes.append(point(postgresql, second).model_id)
            except IntegrityError:
                outcomes.append("again")

        with postgresql.write() as session:
            aliases.set_alias(session, "flowers", "production", Target(first))
            thread = threading.Thread(target=create)
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()  # it waits for this transaction
        thread.join()
        assert outcomes == ["again"]
        assert point(postgresql, second).model_id == second


class TestRollback:
    def test_goes_back_as_undoing_does(self, database: Database) -> None:
        a, b, c = (add_model(database) for _ in range(3))
        for model_id in (a, b, c):
            point(database, model_id)
        assert roll_back(database) == b
        assert roll_back(database) == a
        with pytest.raises(NoPreviousTargetError, match="from the beginning"):
            roll_back(database)
        point(database, c)
        assert roll_back(database) == a

    def test_skips_changes_of_the_shadow_alone_and_ends_it(self, database: Database) -> None:
        a, b = add_model(database), add_model(database)
        point(database, a)
        point(database, Target(b))
        point(database, Target(b, a, 0.5))
        assert roll_back(database) == a
        with database.read() as session:
            row = aliases.get_alias(session, "flowers", "production")
        assert (row.shadow_model_id, row.shadow_fraction) == (None, 0.0)

    def test_is_refused_where_the_model_before_is_gone(self, database: Database) -> None:
        a, b = add_model(database), add_model(database)
        point(database, a)
        point(database, b)
        with database.write() as session:
            repository.delete_model(session, a)
        with pytest.raises(NoPreviousTargetError, match="deleted"):
            roll_back(database)
        assert resolve(database, "flowers@production") == b

    def test_of_an_alias_that_is_not_there(self, database: Database) -> None:
        with pytest.raises(NotFoundError):
            roll_back(database)


class TestDeletion:
    def test_a_model_that_an_alias_uses_stays(self, database: Database) -> None:
        main, shadow = add_model(database), add_model(database)
        point(database, Target(main, shadow, 0.1))
        for model_id in (main, shadow):
            refused = pytest.raises(ModelInUseError, match="flowers@production")
            with refused, database.write() as session:
                repository.delete_model(session, model_id)
            assert resolve(database, model_id) == model_id
        with database.write() as session:
            aliases.delete_alias(session, "flowers", "production", actor="ann")
            repository.delete_model(session, main)
        with database.read() as session:
            newest = aliases.list_changes(session, "flowers", "production", limit=1)[0]
        assert (newest.action, newest.model_id, newest.actor) == ("delete", None, "ann")

    def test_a_target_that_an_older_process_deleted_is_said_to_be_gone(
        self, database: Database
    ) -> None:
        model_id = add_model(database)
        point(database, model_id)
        with database.write() as session:
            session.execute(update(ModelRow).values(deleted_at=1.0))
        with pytest.raises(NotFoundError, match="has been deleted"):
            resolve(database, "flowers@production")

    def test_a_model_cannot_go_while_an_alias_is_being_pointed_at_it(
        self, postgresql: Database
    ) -> None:
        model_id = add_model(postgresql)
        outcomes: list[str] = []

        def delete() -> None:
            try:
                with postgresql.write() as session:
                    repository.delete_model(session, model_id)
            except ModelInUseError:
                outcomes.append("refused")

        with postgresql.write() as session:
            aliases.set_alias(session, "flowers", "production", Target(model_id))
            thread = threading.Thread(target=delete)
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()  # it waits for this transaction
        thread.join()
        assert outcomes == ["refused"]
