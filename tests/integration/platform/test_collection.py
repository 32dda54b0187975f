"""Garbage goes, what a row names or is about to name stays, on both databases."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from core.errors import UnavailableError
from core.platform.collection.blobs import Budget, Collection, collect_blob, collect_blobs
from core.platform.collection.naming import BlobCollectedError, ensure_stored
from core.platform.datasets import repository as datasets
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs import attempts
from core.platform.storage.base import Blob
from core.platform.storage.local import LocalStore
from core.types import JobState
from tests.integration.platform.garbage import (
    GRACE_S,
    PausingStore,
    add_named,
    delete_long_ago,
    find_broken_archives,
    name_archive,
    put_old,
    wait_a_moment,
)
from tests.integration.platform.rows import add_job, add_job_in, build_model, claim


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def collect(
    database: Database,
    store: LocalStore,
    *,
    grace_s: float = GRACE_S,
    budget: Budget | None = None,
) -> Collection:
    collection = Collection()
    collect_blobs(database, store, collection, grace_s=grace_s, budget=budget)
    return collection


class TestWhatGoes:
    def test_an_old_blob_that_no_row_names(self, database: Database, store: LocalStore) -> None:
        orphan = put_old(store, b"orphan")
        collection = collect(database, store)
        assert not store.exists(orphan)
        assert (collection.seen, collection.seen_bytes) == (1, len(b"orphan"))
        assert (collection.deleted, collection.deleted_bytes) == (1, len(b"orphan"))
        assert collection.is_complete
        assert collect(database, store).deleted == 0

    def test_the_archive_of_an_invalid_or_deleted_dataset(
        self, database: Database, store: LocalStore
    ) -> None:
        rejected, deleted = put_old(store, b"rejected"), put_old(store, b"deleted")
        rejected_id = add_named(database, store, rejected)
        deleted_id = add_named(database, store, deleted)
        with database.write() as session:
            session.get_one(DatasetRow, rejected_id).state = "invalid"
            datasets.delete_dataset(session, deleted_id)
        assert collect(database, store).deleted == 2
        assert not store.exists(rejected)
        assert not store.exists(deleted)

    @pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED, JobState.SUCCEEDED])
    def test_the_checkpoint_of_a_job_that_has_ended(
        self, database: Database, store: LocalStore, state: JobState
    ) -> None:
        checkpoint = put_old(store, b"checkpoint")
        add_job_in(database, state)
        with database.write() as session:
            session.execute(update(JobRow).values(checkpoint_sha256=checkpoint))
        collect(database, store)
        assert not store.exists(checkpoint)

    def test_all_files_of_a_deleted_model_once_no_request_reads_them(
        self, database: Database, store: LocalStore
    ) -> None:
        model, digests = publish_everything(database, store)
        with database.write() as session:
            session.get_one(ModelRow, model.id).deleted_at = session.scalar(db_now().select())
        assert collect(database, store).deleted == 0  # a request may have read the row
        delete_long_ago(database, ModelRow, model.id)
        assert collect(database, store).deleted == len(digests)


class TestWhatStays:
    def test_a_young_blob_that_no_row_names_yet(
        self, database: Database, store: LocalStore
    ) -> None:
        young = store.put_bytes(b"an upload before its commit").sha256
        almost = put_old(store, b"almost", GRACE_S - 60)
        assert collect(database, store).deleted == 0
        assert store.exists(young)
        assert store.exists(almost)

    def test_bytes_that_are_put_again_are_young_again(
        self, database: Database, store: LocalStore
    ) -> None:
        put_old(store, b"of a dataset that is gone")
        sha256 = store.put_bytes(b"of a dataset that is gone").sha256
        assert collect(database, store).deleted == 0
        add_named(database, store, sha256)
        assert find_broken_archives(database, store) == []

    def test_everything_that_a_dataset_names(self, database: Database, store: LocalStore) -> None:
        archive, manifest, small, large = (
            put_old(store, name) for name in (b"archive", b"manifest", b"64", b"224")
        )
        dataset_id = add_named(database, store, archive)
        with database.write() as session:
            row = session.get_one(DatasetRow, dataset_id)
            row.manifest_sha256, row.caches = manifest, {"64": small, "224": large}
        assert collect(database, store).deleted == 0
        for sha256 in (archive, manifest, small, large):
            assert not collect_blob(database, store, sha256)

    def test_everything_that_a_model_names(self, database: Database, store: LocalStore) -> None:
        _, digests = publish_everything(database, store)
        assert collect(database, store).deleted == 0
        assert not any(collect_blob(database, store, sha256) for sha256 in digests)

    @pytest.mark.parametrize(
        "state", [JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, JobState.CANCELLING]
    )
    def test_the_checkpoint_of_a_job_that_may_go_on(
        self, database: Database, store: LocalStore, state: JobState
    ) -> None:
        checkpoint = put_old(store, b"checkpoint")
        add_job_in(database, JobState.RUNNING)
        with database.write() as session:
            session.execute(update(JobRow).values(checkpoint_sha256=checkpoint, state=state.value))
        assert collect(database, store).deleted == 0
        assert store.exists(checkpoint)

    def test_an_archive_that_another_dataset_shares(
        self, database: Database, store: LocalStore
    ) -> None:
        archive = put_old(store, b"shared")
        gone, _kept = add_named(database, store, archive), add_named(database, store, archive)
        with database.write() as session:
            datasets.delete_dataset(session, gone)
        assert collect(database, store).deleted == 0


class TestBudget:
    def test_a_walk_leaves_the_rest_to_the_next(
        self, database: Database, store: LocalStore
    ) -> None:
        for number in range(5):
            put_old(store, b"%d" % number)
        first = collect(database, store, budget=Budget(blobs=2))
        assert (first.deleted, first.is_complete) == (2, False)
        second = collect(database, store, budget=Budget(time_s=0))
        assert (second.deleted, second.is_complete) == (1, False)
        last = collect(database, store)
        assert (last.deleted, last.is_complete, list(store.iter_blobs())) == (2, True, [])

    def test_one_that_cannot_be_deleted_does_not_keep_the_others(
        self, database: Database, root: Path
    ) -> None:
        class Stubborn(LocalStore):
            def delete(self, sha256: str) -> None:
                if sha256 == stuck:
                    raise PermissionError(sha256)
                super().delete(sha256)

        store = Stubborn(root)
        stuck, *others = (put_old(store, b"%d" % number) for number in range(4))
        collection = collect(database, store)
        assert (collection.deleted, collection.failed, collection.is_complete) == (3, 1, True)
        assert [store.exists(sha256) for sha256 in (stuck, *others)] == [True, False, False, False]

    def test_what_was_done_before_a_fault_is_known(self, database: Database, root: Path) -> None:
        class Failing(LocalStore):
            calls = 0

            def delete(self, sha256: str) -> None:
                self.calls += 1
                if self.calls == 3:
                    raise UnavailableError("the server is gone")
                super().delete(sha256)

        store, collection = Failing(root), Collection()
        for number in range(4):
            put_old(store, b"%d" % number)
        with pytest.raises(UnavailableError):
            collect_blobs(database, store, collection, grace_s=GRACE_S)
        assert (collection.deleted, collection.is_complete) == (2, False)
        assert collect(database, store).deleted == 2


class TestRaces:
    def test_whoever_names_a_blob_that_is_being_deleted_learns_of_it(
        self, database: Database, root: Path
    ) -> None:
        """The worst moment: the deleter has looked, and the same bytes are put and named."""
        store = PausingStore(root)
        sha256 = put_old(store, b"archive")
        with ThreadPoolExecutor(1) as pool:

            def upload() -> None:
                assert store.put_bytes(b"archive") == Blob(sha256, 7)
                uploads.append(pool.submit(add_named, database, store, sha256))
                # It waits for the deleter. Without the lock it would be through long before.
                wait_a_moment(uploads[0].done)

            uploads: list = []
            store.before_deletion = upload
            assert collect_blob(database, store, sha256)
            with pytest.raises(BlobCollectedError):
                uploads[0].result()
        assert find_broken_archives(database, store) == []
        store.put_bytes(b"archive")
        add_named(database, store, sha256)
        assert find_broken_archives(database, store) == []

    def test_a_blob_whose_row_is_being_written_is_not_deleted(
        self, database: Database, store: LocalStore
    ) -> None:
        sha256 = put_old(store, b"archive")
        with ThreadPoolExecutor(1) as pool:
            with database.write() as session:
                name_archive(session, store, sha256)
                collecting = pool.submit(collect_blob, database, store, sha256)
                wait_a_moment(collecting.done)
            assert not collecting.result()
        assert find_broken_archives(database, store) == []

    def test_a_row_that_is_rolled_back_leaves_garbage(
        self, database: Database, store: LocalStore
    ) -> None:
        sha256 = put_old(store, b"archive")
        with Session(database.engine) as session:
            name_archive(session, store, sha256)  # and never commits
        assert collect_blob(database, store, sha256)

    def test_the_archive_of_a_rejected_dataset_that_comes_again_is_not_lost(
        self, database: Database, root: Path
    ) -> None:
        """The old way freed it at once: look for sharers, delete; an upload between was lost."""
        store = PausingStore(root)
        sha256 = put_old(store, b"archive")
        rejected = add_named(database, store, sha256)
        with ThreadPoolExecutor(1) as pool:

            def upload_again() -> None:
                store.put_bytes(b"archive")
                wait_a_moment(pool.submit(add_named, database, store, sha256).done)

            store.before_deletion = upload_again
            with database.write() as session:
                session.get_one(DatasetRow, rejected).state = "invalid"
            collect(database, store)
        assert find_broken_archives(database, store) == []

    def test_no_order_of_puts_names_and_deletions_loses_anything(
        self, database: Database, store: LocalStore
    ) -> None:
        """Two who upload the same few archives and delete them, two who collect, without grace."""
        is_over = threading.Event()
        lost: list[str] = []

        def use(seed: int) -> int:
            refused = 0
            for turn in range(25):
                data = b"%d" % ((turn + seed) % 3)
                sha256 = store.put_bytes(data).sha256
                try:
                    dataset_id = add_named(database, store, sha256)
                except BlobCollectedError:
                    refused += 1
                    continue
                if not store.exists(sha256):
                    lost.append(sha256)
                with database.write() as session:
                    datasets.delete_dataset(session, dataset_id)
            return refused

        def delete() -> int:
            deleted = 0
            while not is_over.is_set():
                deleted += collect(database, store, grace_s=0).deleted
            return deleted

        with ThreadPoolExecutor(4) as pool:
            deleters = [pool.submit(delete) for _ in range(2)]
            users = [pool.submit(use, seed) for seed in range(2)]
            for user in users:
                user.exception()
            is_over.set()
            assert all(user.result() < 25 for user in users)
            assert sum(deleter.result() for deleter in deleters) > 0
        assert lost == []
        collect(database, store, grace_s=0)
        assert list(store.iter_blobs()) == []

    def test_two_walks_at_once_count_each_blob_once(
        self, database: Database, store: LocalStore
    ) -> None:
        for number in range(20):
            put_old(store, b"%d" % number)
        together = threading.Barrier(2)

        def walk() -> int:
            together.wait()
            return collect(database, store).deleted

        with ThreadPoolExecutor(2) as pool:
            walks = [pool.submit(walk) for _ in range(2)]
            assert sum(each.result() for each in walks) == 20


def test_a_row_never_names_what_is_not_stored(database: Database, store: LocalStore) -> None:
    missing = "f" * 64
    with pytest.raises(BlobCollectedError) as caught, database.write() as session:
        ensure_stored(session, store, store.put_bytes(b"there").sha256, missing)
    assert caught.value.filename == missing


def publish_everything(database: Database, store: LocalStore) -> tuple[ModelRow, list[str]]:
    """A model with an evaluation and figures, and the digests of its files."""
    names = (b"adapter", b"config", b"card", b"evaluation", b"json", b"png", b"reason")
    digests = [put_old(store, name) for name in names]
    adapter, config, card, evaluation, json_sha256, png_sha256, reason = digests
    add_job(database)
    claimed = claim(database)
    with database.write() as session:
        model = build_model(session, claimed.row_id)
        model.adapter_sha256, model.config_sha256, model.card_sha256 = adapter, config, card
        model.evaluation_sha256 = evaluation
        model.figures = {
            "tsne": {
                "status": "ready",
                "reason": None,
                "json_sha256": json_sha256,
                "png_sha256": png_sha256,
            },
            "agreement": {
                "status": "not_available",
                "reason": "no teacher",
                "json_sha256": reason,
                "png_sha256": None,
            },
        }
        attempts.publish(session, claimed, model)
    return model, digests
