"""Deleting datasets and models, alone and in races, on both databases."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from core.errors import InvalidError, NotFoundError
from core.platform.collection.rows import purge_datasets, purge_models
from core.platform.datasets import repository as datasets
from core.platform.datasets.repository import DatasetInUseError
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, JobEventRow, JobRow, ModelRow
from core.platform.jobs import repository as jobs
from core.platform.leases import LeaseLostError
from core.platform.models import repository as models
from core.types import DatasetId, DatasetState, JobState
from tests.integration.platform.garbage import count, delete_long_ago
from tests.integration.platform.rows import (
    SPEC,
    add_dataset,
    add_job,
    add_job_in,
    claim,
    job_of,
    models_of,
    publish,
)


def delete_dataset(database: Database, dataset_id: str) -> None:
    with database.write() as session:
        datasets.delete_dataset(session, dataset_id)


def delete_model(database: Database, model_id: str) -> None:
    with database.write() as session:
        models.delete_model(session, model_id)


def add_model(database: Database) -> ModelRow:
    add_job(database)
    publish(database, claim(database))
    with database.read() as session:
        newest = select(ModelRow).order_by(ModelRow.created_at.desc()).limit(1)
        return session.scalars(newest).one()


class TestDataset:
    def test_is_gone_for_everybody(self, database: Database) -> None:
        kept, gone = add_dataset(database), add_dataset(database)
        delete_dataset(database, gone)
        with database.read() as session:
            listed = datasets.list_datasets(session, after=None, limit=10)
            assert [row.id for row in listed] == [kept]
            # A page that ended with it goes on all the same.
            beyond = datasets.list_datasets(session, after=gone, limit=10)
            assert [row.id for row in beyond] == [kept]
            with pytest.raises(NotFoundError):
                datasets.get_dataset(session, gone)
        with pytest.raises(NotFoundError):
            add_job(database, gone)
        with pytest.raises(NotFoundError):
            delete_dataset(database, gone)

    @pytest.mark.parametrize(
        "state",
        [
            JobState.VALIDATING_FILES,
            JobState.QUEUED,
            JobState.RUNNING,
            JobState.CANCELLING,
            JobState.PAUSED,
        ],
    )
    def test_is_kept_while_a_job_needs_it(self, database: Database, state: JobState) -> None:
        job_id = add_job_in(database, state).row_id
        with pytest.raises(DatasetInUseError, match=job_id):
            delete_dataset(database, job_of(database, job_id).dataset_id)

    def test_the_refusal_names_a_few_jobs(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        job_ids = [add_job(database, dataset_id) for _ in range(7)]
        with pytest.raises(DatasetInUseError, match=f"{job_ids[4]} and 2 more") as caught:
            delete_dataset(database, dataset_id)
        assert job_ids[5] not in caught.value.message

    @pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
    def test_jobs_that_have_ended_and_models_keep_working(
        self, database: Database, state: JobState
    ) -> None:
        job_id = add_job_in(database, state).row_id
        dataset_id = job_of(database, job_id).dataset_id
        delete_dataset(database, dataset_id)
        delete_long_ago(database, DatasetRow, dataset_id)
        with database.write() as session:
            assert purge_datasets(session) == 0
        with database.read() as session:
            job = jobs.get_job(session, job_id)
            assert (job.state, jobs.get_dataset_of(session, job).id) == (state, dataset_id)
            for model in models_of(database):
                assert models.get_model(session, model.id).dataset_id == dataset_id

    def test_the_row_goes_when_nothing_points_at_it(self, database: Database) -> None:
        gone, fresh = add_dataset(database), add_dataset(database)
        delete_dataset(database, gone)
        delete_dataset(database, fresh)
        delete_long_ago(database, DatasetRow, gone)
        with database.write() as session:
            assert purge_datasets(session) == 1
        with database.read() as session:
            assert session.scalars(select(DatasetRow.id)).all() == [fresh]

    def test_one_that_waits_is_never_validated(self, database: Database) -> None:
        delete_dataset(database, add_dataset(database, DatasetState.PENDING))
        with database.write() as session:
            assert datasets.claim_dataset(session, owner="host:1", ttl_s=60) is None

    def test_one_that_is_being_validated_is_taken_from_its_attempt(
        self, database: Database
    ) -> None:
        dataset_id = add_dataset(database, DatasetState.PENDING)
        with database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=60)
        assert claimed is not None
        delete_dataset(database, dataset_id)
        with pytest.raises(LeaseLostError), database.write() as session:
            datasets.report_progress(session, claimed, ttl_s=60)
        with database.write() as session:
            assert datasets.expire_attempts(session, max_attempts=3) == []


class TestDatasetRaces:
    def test_a_job_or_the_deletion_comes_first(self, database: Database) -> None:
        """Whatever the order, no job is left on a dataset that is gone."""
        outcomes = set()
        for _ in range(12):
            dataset_id = add_dataset(database)
            created, deleted = race(
                lambda dataset_id=dataset_id: add_job(database, dataset_id),
                lambda dataset_id=dataset_id: delete_dataset(database, dataset_id),
            )
            with database.read() as session:
                row = session.get_one(DatasetRow, dataset_id)
                users = session.scalars(select(JobRow).where(JobRow.dataset_id == dataset_id)).all()
            assert (row.deleted_at is None) == bool(users)
            errors = (type(created.exception()), type(deleted.exception()))
            assert errors in {(type(None), DatasetInUseError), (NotFoundError, type(None))}
            outcomes.add(errors)
        assert outcomes

    def test_a_deletion_between_the_look_and_the_lock_is_seen(self, database: Database) -> None:
        """The route looks at the dataset first; that look may be out of date."""
        dataset_id = add_dataset(database)
        with ThreadPoolExecutor(1) as pool, database.read() as session:
            # In a transaction that has not locked anything yet, as the first look on PostgreSQL.
            looked = datasets.get_dataset(session, dataset_id)
            pool.submit(delete_dataset, database, dataset_id).result()
            assert looked.deleted_at is None
            if session.get_bind().dialect.name == "postgresql":
                with pytest.raises(NotFoundError):
                    create(session, dataset_id)

    def test_of_many_deletions_one_succeeds(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        ended = race(*[lambda: delete_dataset(database, dataset_id)] * 4)
        failures = [type(each.exception()) for each in ended if each.exception()]
        assert failures == [NotFoundError] * 3


class TestModel:
    def test_is_gone_for_everybody_and_its_job_says_so(self, database: Database) -> None:
        model = add_model(database)
        delete_model(database, model.id)
        with database.read() as session:
            for reference in (model.id, model.name):
                with pytest.raises(NotFoundError):
                    models.get_model(session, reference)
            assert models.list_models(session, after=None, limit=10) == []
            events = session.scalars(select(JobEventRow).order_by(JobEventRow.id)).all()
        assert events[-1].type == "model.deleted"
        assert events[-1].job_id == model.job_id
        assert job_of(database, model.job_id).state == "succeeded"
        with pytest.raises(NotFoundError):
            delete_model(database, model.id)

    def test_its_name_means_the_newest_that_is_left(self, database: Database) -> None:
        older, newer = add_model(database), add_model(database)
        delete_model(database, newer.id)
        with database.read() as session:
            assert models.get_model(session, older.name).id == older.id
            listed = models.list_models(session, after=newer.id, limit=10)
            assert [row.id for row in listed] == [older.id]

    def test_a_name_is_refused_with_the_id_to_use(self, database: Database) -> None:
        _, newer = add_model(database), add_model(database)
        with pytest.raises(InvalidError, match=newer.id):
            delete_model(database, newer.name)
        assert len(models_of(database)) == 2

    def test_of_many_deletions_one_succeeds(self, database: Database) -> None:
        model = add_model(database)
        ended = race(*[lambda: delete_model(database, model.id)] * 4)
        assert [type(each.exception()) for each in ended if each.exception()] == [NotFoundError] * 3

    def test_the_row_goes_a_little_later(self, database: Database) -> None:
        gone, fresh = add_model(database), add_model(database)
        delete_model(database, gone.id)
        delete_model(database, fresh.id)
        delete_long_ago(database, ModelRow, gone.id)
        with database.write() as session:
            assert purge_models(session) == 1
        assert [model.id for model in models_of(database)] == [fresh.id]
        assert count(database, JobRow) == 2


def create(session: Any, dataset_id: DatasetId) -> None:
    jobs.create_job(session, dataset_id=dataset_id, name="f", spec=SPEC, metadata={})


def race(*actions: Callable[[], Any]) -> list[Future[Any]]:
    """Run all at once; return how each one ended."""
    together = threading.Barrier(len(actions))

    def run(action: Callable[[], Any]) -> Any:
        together.wait()
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return [pool.submit(run, action) for action in actions]
