"""The same collection over a bucket, whose ages and locks are of others."""

import time
from pathlib import Path

import pytest

from core.platform.collection.blobs import Collection, collect_blobs
from core.platform.collection.naming import BlobCollectedError
from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.storage.base import BlobStore
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings
from tests.fixtures.s3 import Bucket
from tests.integration.platform.garbage import GRACE_S, add_named, find_broken_archives
from worker.runtime import Runtime
from worker.sweeper import sweep


@pytest.fixture
def settings(bucket: Bucket, tmp_path: Path, sqlite_url: str) -> Settings:
    return bucket.settings(tmp_path / "data", database_url=sqlite_url)


@pytest.fixture
def store(settings: Settings) -> BlobStore:
    return open_s3_store(settings)


def put_old(bucket: Bucket, store: BlobStore, data: bytes) -> str:
    sha256 = store.put_bytes(data).sha256
    bucket.set_modified_at(sha256, time.time() - 10 * GRACE_S)
    return sha256


def test_what_no_row_names_goes_and_all_else_stays(
    bucket: Bucket, store: BlobStore, sqlite: Database
) -> None:
    orphan, named, deleted, again = (
        put_old(bucket, store, name) for name in (b"orphan", b"named", b"deleted", b"again")
    )
    young = store.put_bytes(b"young").sha256
    add_named(sqlite, store, named)
    deleted_id = add_named(sqlite, store, deleted)
    with sqlite.write() as session:
        datasets.delete_dataset(session, deleted_id)
    assert store.put_bytes(b"again").sha256 == again  # and is about to be named
    collection = Collection()
    collect_blobs(sqlite, store, collection, grace_s=GRACE_S)
    assert (collection.seen, collection.deleted, collection.is_complete) == (5, 2, True)
    found = [store.exists(sha256) for sha256 in (orphan, deleted, named, again, young)]
    assert found == [False, False, True, True, True]
    assert find_broken_archives(sqlite, store) == []


def test_a_copy_on_this_host_is_no_blob(bucket: Bucket, store: BlobStore, sqlite: Database) -> None:
    sha256 = store.put_bytes(b"archive").sha256
    store.fetch(sha256)
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.key_of(sha256))  # by another host
    with pytest.raises(BlobCollectedError):
        add_named(sqlite, store, sha256)


def test_a_worker_sweeps_a_bucket(bucket: Bucket, settings: Settings) -> None:
    settings.scratch_dir.mkdir(parents=True)
    runtime = Runtime(settings)
    put_old(bucket, runtime.store, b"orphan")
    result = sweep(runtime)
    assert (result.counts["blobs"], result.faults) == (1, {})
    runtime.database.dispose()


def test_a_bucket_that_is_away_is_a_fault_of_one_part(
    bucket: Bucket, settings: Settings, tmp_path: Path
) -> None:
    settings.scratch_dir.mkdir(parents=True)
    gone = bucket.settings(
        tmp_path / "data",
        database_url=settings.database_url,
        s3_endpoint_url="http://127.0.0.1:1",
        s3_attempts=1,
    )
    runtime = Runtime(gone)
    result = sweep(runtime)
    assert result.faults.keys() == {"blobs", "partial_blobs"}
    runtime.database.dispose()
