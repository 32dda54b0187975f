"""Batch predictions in the database: the table of states, leases, fences, turns and ends."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from core.errors import NotFoundError
from core.platform.collection.references import is_referenced, read_references
from core.platform.collection.rows import purge_predictions
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.leases import Claim, LeaseLostError
from core.platform.predictions import attempts, repository
from core.platform.predictions.repository import (
    DatasetNotReadyError,
    EmptySplitError,
    Images,
    PredictionEndedError,
    PredictionNotEndedError,
    ResultsMissingError,
    TooManyPredictionsError,
)
from core.platform.predictions.states import HELD, TERMINAL, TRANSITIONS
from core.platform.predictions.transitions import enter
from core.platform.state_machine import ForbiddenTransitionError
from core.types import BatchPredictionState as State
from tests.integration.platform.webhook_rows import add_endpoint, deliveries_of
from tests.integration.predictions.rows import (
    CRASH,
    TTL_S,
    add,
    add_ready_dataset,
    cancel,
    claim,
    columns_of,
    let_lease_run_out,
    lose,
    publish,
    row_of,
    try_claim,
)

WRITES: dict[str, Callable[[Session, Claim], Any]] = {
    "report_progress": lambda s, c: attempts.report_progress(s, c, ttl_s=TTL_S),
    "publish": lambda s, c: attempts.publish(
        s, c, results_sha256="f" * 64, results_bytes=1, counts={}
    ),
    "fail": lambda s, c: attempts.fail(s, c, CRASH),
    "release": attempts.release,
    "give_up_attempt": lambda s, c: attempts.give_up_attempt(s, c, CRASH, max_attempts=3),
    "finish_cancel": attempts.finish_cancel,
}


class TestStates:
    def test_what_holds_a_lease_and_what_has_ended(self) -> None:
        assert set(TRANSITIONS) == set(State)
        assert {State.RUNNING, State.CANCELLING} == HELD
        assert {State.SUCCEEDED, State.FAILED, State.CANCELLED} == TERMINAL

    @pytest.mark.parametrize("origin", list(State))
    def test_no_other_edge_can_be_taken(self, sqlite: Database, origin: State) -> None:
        prediction_id = add(sqlite)
        for target in set(State) - TRANSITIONS[origin]:
            with sqlite.write() as session:
                row = session.get_one(BatchPredictionRow, prediction_id)
                row.state = origin.value
                session.flush()
                with pytest.raises(ForbiddenTransitionError):
                    enter(session, row, target)


class TestLease:
    def test_racing_workers_claim_each_once(self, database: Database) -> None:
        ids = [add(database) for _ in range(6)]
        barrier = threading.Barrier(3)

        def claim_some(_n: int) -> list[Claim]:
            barrier.wait(30)
            return [found for _ in range(4) if (found := try_claim(database)) is not None]

        with ThreadPoolExecutor(3) as pool:
            claims = [claimed for share in pool.map(claim_some, range(3)) for claimed in share]
        # On PostgreSQL a worker passes over what another one is claiming at this moment.
        while (late := try_claim(database)) is not None:
            claims.append(late)
        assert sorted(c.row_id for c in claims) == sorted(ids)
        assert {c.attempt for c in claims} == {1}

    def test_projects_take_turns(self, database: Database) -> None:
        flood = [add(database, project="alpha") for _ in range(3)]
        quiet = [add(database, project="beta") for _ in range(2)]
        order = [claim(database).row_id for _ in range(5)]
        assert order == [flood[0], quiet[0], flood[1], quiet[1], flood[2]]

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_an_overtaken_attempt_writes_nothing(
        self, database: Database, write: Callable[[Session, Claim], Any]
    ) -> None:
        prediction_id = add(database)
        first = claim(database)
        lose(database, first)
        assert claim(database, "host:2").attempt == 2
        before = columns_of(row_of(database, prediction_id))
        with pytest.raises(LeaseLostError), database.write() as session:
            write(session, first)
        assert columns_of(row_of(database, prediction_id)) == before

    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_an_end_never_changes(
        self, sqlite: Database, write: Callable[[Session, Claim], Any], end: str
    ) -> None:
        prediction_id = add(sqlite)
        claimed = claim(sqlite)
        if end == "succeeded":
            publish(sqlite, claimed)
        elif end == "cancelled":
            cancel(sqlite, prediction_id)
            with sqlite.write() as session:
                attempts.finish_cancel(session, claimed)
        else:
            with sqlite.write() as session:
                attempts.fail(session, claimed, CRASH)
        before = columns_of(row_of(sqlite, prediction_id))
        assert before["state"] == end
        with pytest.raises(LeaseLostError), sqlite.write() as session:
            write(session, claimed)
        let_lease_run_out(sqlite, prediction_id)
        with sqlite.write() as session:
            assert attempts.expire_attempts(session, max_attempts=1) == []
        assert try_claim(sqlite) is None
        after = columns_of(row_of(sqlite, prediction_id))
        assert {**after, "lease_expires_at": None} == before

    def test_a_release_is_not_charged_and_its_time_counts(self, database: Database) -> None:
        prediction_id = add(database)
        for attempt in range(1, 6):
            claimed = claim(database)
            assert claimed.attempt == attempt
            with database.write() as session:
                attempts.release(session, claimed)
        row = row_of(database, prediction_id)
        assert (row.state, row.failures, row.lease_owner) == ("pending", 0, None)
        assert row.ran_s > 0

    def test_the_third_loss_or_crash_is_the_end(self, database: Database) -> None:
        prediction_id = add(database)
        lose(database, claim(database))
        claimed = claim(database)
        with database.write() as session:
            state = attempts.give_up_attempt(session, claimed, CRASH, max_attempts=3)
        assert state == "pending"
        lose(database, claim(database))
        row = row_of(database, prediction_id)
        assert (row.state, row.failures, row.attempt) == ("failed", 3, 3)
        assert row.error is not None
        assert (row.error["code"], row.error["attempts"]) == ("worker_lost", 3)
        assert row.finished_at is not None


class TestCancel:
    def test_what_waits_ends_at_once(self, database: Database) -> None:
        prediction_id = add(database)
        assert cancel(database, prediction_id) == "cancelled"
        assert cancel(database, prediction_id) == "cancelled"
        assert try_claim(database) is None

    def test_what_runs_ends_with_its_attempt(self, database: Database) -> None:
        prediction_id = add(database)
        claimed = claim(database)
        assert cancel(database, prediction_id) == "cancelling"
        for write in ("publish", "fail", "release"):
            with pytest.raises(LeaseLostError), database.write() as session:
                WRITES[write](session, claimed)
        with database.write() as session:
            attempts.finish_cancel(session, claimed)
        row = row_of(database, prediction_id)
        assert (row.state, row.results_sha256, row.lease_owner) == ("cancelled", None, None)

    def test_a_worker_that_dies_while_it_cancels_leaves_it_cancelled(
        self, database: Database
    ) -> None:
        prediction_id = add(database)
        claimed = claim(database)
        cancel(database, prediction_id)
        lose(database, claimed, max_attempts=3)
        assert row_of(database, prediction_id).state == "cancelled"

    def test_what_has_succeeded_is_not_cancelled(self, database: Database) -> None:
        prediction_id = add(database)
        publish(database, claim(database))
        with pytest.raises(PredictionEndedError):
            cancel(database, prediction_id)

    def test_a_cancel_beside_the_end_loses_or_wins(self, database: Database) -> None:
        for _ in range(5):
            prediction_id = add(database)
            claimed = claim(database)
            barrier = threading.Barrier(2)

            def end(claimed: Claim = claimed, barrier: threading.Barrier = barrier) -> str:
                barrier.wait(30)
                try:
                    publish(database, claimed)
                except LeaseLostError:
                    return "lost"
                return "published"

            with ThreadPoolExecutor(1) as pool:
                ending = pool.submit(end)
                barrier.wait(30)
                try:
                    cancel(database, prediction_id)
                except PredictionEndedError:
                    assert ending.result() == "published"
                    assert row_of(database, prediction_id).state == "succeeded"
                else:
                    assert ending.result() == "lost"
                    assert row_of(database, prediction_id).state == "cancelling"
                    lose(database, claimed)


class TestCreation:
    def test_a_project_may_have_so_many_waiting(self, database: Database) -> None:
        add(database, max_waiting=1)
        with pytest.raises(TooManyPredictionsError, match="IDAT_MAX_QUEUED_JOBS"):
            add(database, max_waiting=1)
        add(database, project="beta", max_waiting=1)
        claim(database)
        add(database, max_waiting=1)

    def test_of_two_that_come_at_once_one_is_too_many(self, database: Database) -> None:
        barrier = threading.Barrier(3)

        def submit(_n: int) -> bool:
            barrier.wait(30)
            try:
                add(database, max_waiting=1)
            except TooManyPredictionsError:
                return False
            return True

        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(submit, range(3))) == [False, False, True]

    def test_a_dataset_gives_its_files_and_the_size_of_the_split(self, database: Database) -> None:
        splits = {"train": 4, "val": 2}
        dataset_id = add_ready_dataset(
            database, manifest_sha256="1" * 64, caches={"64": "2" * 64}, splits=splits
        )
        with database.read() as session:
            images = repository.get_images(session, dataset_id, "all", project="default")
            assert images.count == 6
            assert images.digests == ("d" * 64, "1" * 64, "2" * 64)
            assert repository.get_images(session, dataset_id, "val", project="default").count == 2
            with pytest.raises(EmptySplitError):
                repository.get_images(session, dataset_id, "test", project="default")
            with pytest.raises(NotFoundError):
                repository.get_images(session, dataset_id, "val", project="beta")

    @pytest.mark.parametrize("state", ["pending", "validating", "invalid", "failed"])
    def test_a_dataset_that_is_not_ready_is_refused(self, sqlite: Database, state: str) -> None:
        dataset_id = add_ready_dataset(sqlite, state=state)
        with sqlite.read() as session, pytest.raises(DatasetNotReadyError):
            repository.get_images(session, dataset_id, "all", project="default")


class TestDeletion:
    def test_only_what_has_ended_is_deleted(self, database: Database) -> None:
        prediction_id = add(database)
        refuse = pytest.raises(PredictionNotEndedError)
        with refuse, database.write() as session:
            repository.delete_prediction(session, prediction_id)
        claimed = claim(database)
        with refuse, database.write() as session:
            repository.delete_prediction(session, prediction_id)
        cancel(database, prediction_id)
        with refuse, database.write() as session:
            repository.delete_prediction(session, prediction_id)
        lose(database, claimed)
        with pytest.raises(NotFoundError), database.write() as session:
            repository.delete_prediction(session, prediction_id, project="beta")
        with database.write() as session:
            repository.delete_prediction(session, prediction_id)
        with pytest.raises(NotFoundError), database.read() as session:
            repository.get_prediction(session, prediction_id)
        with database.read() as session:
            assert repository.list_predictions(session, after=prediction_id, limit=9) == []

    def test_a_row_goes_some_minutes_later(self, database: Database) -> None:
        kept, gone = add(database), add(database)
        for prediction_id, age_s in ((kept, 1.0), (gone, 3600.0)):
            cancel(database, prediction_id)
            with database.write() as session:
                repository.delete_prediction(session, prediction_id)
                table = BatchPredictionRow
                session.execute(
                    update(table)
                    .where(table.id == prediction_id)
                    .values(deleted_at=db_now() - age_s)
                )
        with database.write() as session:
            assert purge_predictions(session) == 1
        assert row_of(database, kept).deleted_at is not None


class TestBlobs:
    IMAGES = Images("1" * 64, 1, "p.zip", 3, "ds_1", "all", "2" * 64, {"64": "3" * 64})
    INPUTS = ("1" * 64, "2" * 64, "3" * 64, "a" * 64, "b" * 64)

    def names(self, database: Database, digests: tuple[str, ...]) -> set[str]:
        """Those of the digests that rows name; both ways to ask must agree."""
        with database.read() as session:
            all_named = read_references(session)
            one_by_one = {sha for sha in digests if is_referenced(session, sha)}
        assert {sha for sha in digests if bytes.fromhex(sha) in all_named} == one_by_one
        return one_by_one

    def test_inputs_are_held_to_the_end_and_results_from_then_on(self, database: Database) -> None:
        everything = (*self.INPUTS, "e" * 64)
        assert self.names(database, everything) == set()
        prediction_id = add(database, images=self.IMAGES)
        assert self.names(database, everything) == set(self.INPUTS)
        claimed = claim(database)
        assert self.names(database, everything) == set(self.INPUTS)
        publish(database, claimed)
        assert self.names(database, everything) == {"e" * 64}
        with database.write() as session:
            repository.delete_prediction(session, prediction_id)
        assert self.names(database, everything) == {"e" * 64}  # somebody may be reading
        with database.write() as session:
            table = BatchPredictionRow
            session.execute(update(table).values(deleted_at=db_now() - 3600))
        assert self.names(database, everything) == set()

    def test_a_failure_holds_nothing(self, database: Database) -> None:
        add(database, images=self.IMAGES)
        claimed = claim(database)
        with database.write() as session:
            attempts.fail(session, claimed, CRASH)
        assert self.names(database, self.INPUTS) == set()


class TestWebhooks:
    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
    def test_each_end_is_told_once(self, database: Database, end: str) -> None:
        add_endpoint(database)
        prediction_id = add(database)
        if end == "cancelled":
            cancel(database, prediction_id)
        elif end == "succeeded":
            publish(database, claim(database))
        else:
            lose(database, claim(database), max_attempts=1)
        told = [(row.type, row.subject_id) for row in deliveries_of(database)]
        assert told == [(f"batch_prediction.{end}", prediction_id)]
        payload = deliveries_of(database)[0].payload
        assert f'"status":"{end}"' in payload
        assert ("/results" in payload) is (end == "succeeded")

    def test_a_return_to_the_queue_is_no_end(self, database: Database) -> None:
        add_endpoint(database)
        add(database)
        lose(database, claim(database))
        assert deliveries_of(database) == []


def test_results_that_are_not_there_are_explained(sqlite: Database) -> None:
    prediction_id = add(sqlite)
    with pytest.raises(ResultsMissingError, match="wait until GET"):
        repository.get_results(row_of(sqlite, prediction_id))
    cancel(sqlite, prediction_id)
    with pytest.raises(ResultsMissingError, match="cancelled"):
        repository.get_results(row_of(sqlite, prediction_id))
