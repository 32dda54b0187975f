"""Turns that one takes for all, keys and entries that run out, and the log of sweeps."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from core.platform.collection.log import list_sweeps, record_sweep
from core.platform.collection.rows import (
    IDEMPOTENCY_KEY_TTL_S,
    SWEEPS_TTL_S,
    forget_idempotency_keys,
    forget_sweeps,
)
from core.platform.collection.turns import repeat_turn, take_turn
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import IdempotencyRow, SweepRow, TurnRow
from core.platform.idempotency import find_resource, remember


def take(database: Database, name: str = "collect", interval_s: float = 60.0) -> bool:
    with database.write() as session:
        return take_turn(session, name, interval_s=interval_s)


class TestTurns:
    def test_one_in_an_interval(self, database: Database) -> None:
        assert [take(database) for _ in range(3)] == [True, False, False]
        assert take(database, "another")

    def test_due_again_after_the_interval(self, database: Database) -> None:
        take(database)
        with database.write() as session:
            session.execute(update(TurnRow).values(due_at=db_now() - 0.001))
        assert [take(database), take(database)] == [True, False]

    def test_an_unfinished_one_is_due_at_once(self, database: Database) -> None:
        take(database)
        with database.write() as session:
            repeat_turn(session, "collect")
        assert take(database)

    @pytest.mark.parametrize("is_first", [True, False])
    def test_of_many_that_come_at_once_one_gets_it(
        self, database: Database, *, is_first: bool
    ) -> None:
        for number in range(5):
            if not is_first:
                take(database, f"turn{number}", interval_s=-1)
            together = threading.Barrier(4)

            def come(number: int = number, together: threading.Barrier = together) -> bool:
                together.wait()
                return take(database, f"turn{number}")

            with ThreadPoolExecutor(4) as pool:
                taken = [pool.submit(come) for _ in range(4)]
            assert sum(each.result() for each in taken) == 1


def test_keys_run_out_after_a_day(database: Database) -> None:
    with database.write() as session:
        for key, age_s in (("old", 1), ("young", -60)):
            remember(session, key, "0" * 64, "ds_1")
            made = db_now() - IDEMPOTENCY_KEY_TTL_S - age_s
            session.execute(
                update(IdempotencyRow).where(IdempotencyRow.key == key).values(created_at=made)
            )
    assert IDEMPOTENCY_KEY_TTL_S == 24 * 3600
    with database.write() as session:
        assert forget_idempotency_keys(session) == 1
        assert forget_idempotency_keys(session) == 0
    with database.read() as session:
        assert find_resource(session, "old", "0" * 64) is None
        assert find_resource(session, "young", "0" * 64) == "ds_1"


def test_at_most_a_thousand_rows_go_at_once(database: Database) -> None:
    with database.write() as session:
        for number in range(1100):
            session.add(
                IdempotencyRow(
                    key=f"key{number}", request_sha256="0" * 64, resource_id="ds_1", created_at=1.0
                )
            )
    for expected in (1000, 100, 0):
        with database.write() as session:
            assert forget_idempotency_keys(session) == expected


class TestLog:
    def test_newest_first_and_in_pages(self, database: Database) -> None:
        for number in range(5):
            with database.write() as session:
                record_sweep(
                    session,
                    owner=f"host:{number}",
                    duration_s=2.5,
                    counts={"blobs": number},
                    faults={"rows": "gone"},
                )
        with database.read() as session:
            first, second = list_sweeps(session, after=0, limit=2)
            assert (first.owner, first.counts, first.faults) == (
                "host:4",
                {"blobs": 4},
                {"rows": "gone"},
            )
            # Two readings of the database's clock, in one statement.
            assert first.finished_at - first.started_at == pytest.approx(2.5, abs=0.1)
            rest = list_sweeps(session, after=second.id, limit=10)
            assert [row.owner for row in rest] == ["host:2", "host:1", "host:0"]
            oldest = list_sweeps(session, after=0, limit=1, descending=False)
            assert [row.owner for row in oldest] == ["host:0"]

    def test_entries_run_out_after_a_week(self, database: Database) -> None:
        with database.write() as session:
            for _ in range(2):
                record_sweep(session, owner="host:1", duration_s=0, counts={}, faults={})
            oldest = select(func.min(SweepRow.id)).scalar_subquery()
            made = db_now() - SWEEPS_TTL_S - 1
            session.execute(update(SweepRow).where(SweepRow.id == oldest).values(finished_at=made))
        assert SWEEPS_TTL_S == 7 * 24 * 3600
        with database.write() as session:
            assert forget_sweeps(session) == 1
            assert len(list_sweeps(session, after=0, limit=10)) == 1
