"""What every store promises, whatever it keeps its blobs in."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.platform.storage.base import Blob, BlobStore
from core.platform.storage.errors import BlobMissingError
from core.platform.storage.factory import build_store
from core.platform.storage.local import LocalStore
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings
from tests.fixtures.s3 import PART_BYTES, Bucket

DATA = b"some bytes" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
WAYS = ["put_file", "take_file", "put_bytes"]


class Kind:
    """A store, a second one on the same place, and a way to make its blobs look old."""

    def __init__(
        self, open_store: Callable[[str], BlobStore], set_modified_at: Callable[[str, float], None]
    ) -> None:
        self.store = open_store("here")
        self.elsewhere = open_store("elsewhere")
        self.set_modified_at = set_modified_at


@pytest.fixture(params=["local", "s3"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """One of the stores; a file of more than 5 MiB has several parts in S3."""
    if request.param == "local":
        folder = tmp_path / "blobs"
        return Kind(
            lambda _host: LocalStore(folder),
            lambda sha256, at_s: os.utime(folder / sha256[:2] / sha256, (at_s, at_s)),
        )
    bucket: Bucket = request.getfixturevalue("bucket")
    return Kind(
        lambda host: open_s3_store(bucket.settings(tmp_path / host), part_bytes=PART_BYTES),
        bucket.set_modified_at,
    )


@pytest.fixture
def store(kind: Kind) -> BlobStore:
    return kind.store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def put(store: BlobStore, source: Path, way: str) -> Blob:
    if way == "put_bytes":
        return store.put_bytes(source.read_bytes())
    if way == "put_file":
        return store.put_file(source)
    return store.take_file(source, hashlib.sha256(source.read_bytes()).hexdigest())


def read(store: BlobStore, sha256: str) -> bytes:
    with store.open(sha256) as file:
        return file.read()


class TestNames:
    @pytest.mark.parametrize("way", WAYS)
    def test_a_blob_is_named_by_its_content(self, kind: Kind, source: Path, way: str) -> None:
        assert put(kind.store, source, way) == Blob(SHA256, len(DATA))
        assert source.exists() == (way != "take_file")
        for store in (kind.store, kind.elsewhere):
            assert store.exists(SHA256)
            assert read(store, SHA256) == DATA
            assert store.fetch(SHA256).read_bytes() == DATA

    def test_all_ways_in_lead_to_one_blob(self, store: BlobStore, source: Path) -> None:
        assert len({put(store, source, way) for way in ("put_bytes", "put_file", "take_file")}) == 1
        assert [blob.sha256 for blob in store.iter_blobs()] == [SHA256]

    def test_an_empty_blob_is_one_too(self, kind: Kind) -> None:
        assert kind.store.put_bytes(b"") == Blob(EMPTY_SHA256, 0)
        assert kind.elsewhere.fetch(EMPTY_SHA256).read_bytes() == b""

    @pytest.mark.parametrize("size_bytes", [PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12345])
    def test_large_blobs_arrive_whole(self, kind: Kind, source: Path, size_bytes: int) -> None:
        data = os.urandom(size_bytes)
        source.write_bytes(data)
        blob = kind.store.put_file(source)
        assert blob == Blob(hashlib.sha256(data).hexdigest(), size_bytes)
        assert read(kind.elsewhere, blob.sha256) == data

    def test_a_missing_blob_is_not_found(self, store: BlobStore, tmp_path: Path) -> None:
        assert not store.exists(SHA256)
        with pytest.raises(BlobMissingError, match=SHA256):
            store.open(SHA256)
        with pytest.raises(BlobMissingError, match=SHA256):
            store.fetch(SHA256)
        with pytest.raises(FileNotFoundError):
            store.fetch(SHA256, into=tmp_path)

    def test_an_unreadable_source_leaves_nothing(self, store: BlobStore, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            store.put_file(tmp_path / "none")
        assert list(store.iter_blobs()) == []

    def test_writers_of_the_same_bytes_do_not_disturb_each_other(self, kind: Kind) -> None:
        barrier = threading.Barrier(8)

        def put_it(number: int) -> str:
            barrier.wait()
            return (kind.store, kind.elsewhere)[number % 2].put_bytes(DATA).sha256

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(put_it, range(8))) == {SHA256}
        assert [blob.sha256 for blob in kind.store.iter_blobs()] == [SHA256]
        assert read(kind.store, SHA256) == DATA


class TestDeletion:
    def test_deleting_twice_is_harmless(self, kind: Kind) -> None:
        kind.store.put_bytes(DATA)
        kind.store.fetch(SHA256)
        kind.store.delete(SHA256)
        kind.elsewhere.delete(SHA256)
        for store in (kind.store, kind.elsewhere):
            assert not store.exists(SHA256)
            with pytest.raises(BlobMissingError):
                store.fetch(SHA256)

    def test_a_reader_keeps_what_is_deleted_or_stored_again(self, store: BlobStore) -> None:
        store.put_bytes(DATA)
        with store.open(SHA256) as file:
            store.put_bytes(DATA)
            store.delete(SHA256)
            assert file.read() == DATA

    def test_what_was_deleted_can_be_stored_again(self, store: BlobStore) -> None:
        store.put_bytes(DATA)
        store.delete(SHA256)
        store.put_bytes(DATA)
        assert read(store, SHA256) == DATA


class TestCollection:
    def test_every_blob_is_listed_with_size_and_age(self, kind: Kind) -> None:
        data = [b"", b"one", b"two" * 1000]
        blobs = [kind.store.put_bytes(each) for each in data]
        kind.set_modified_at(blobs[1].sha256, 1_000_000)
        kind.store.check()  # leaves nothing that looks like a blob
        listed = {blob.sha256: blob for blob in kind.elsewhere.iter_blobs()}
        assert {name: blob.size_bytes for name, blob in listed.items()} == {
            hashlib.sha256(each).hexdigest(): len(each) for each in data
        }
        assert listed[blobs[1].sha256].modified_at_s == 1_000_000
        assert abs(listed[blobs[0].sha256].modified_at_s - time.time()) < 600

    @pytest.mark.parametrize("way", WAYS)
    def test_what_is_stored_again_is_new_again(self, kind: Kind, source: Path, way: str) -> None:
        kind.store.put_bytes(DATA)
        kind.set_modified_at(SHA256, 1_000_000)
        put(kind.store, source, way)
        (blob,) = kind.store.iter_blobs()
        assert abs(blob.modified_at_s - time.time()) < 600

    def test_finished_blobs_are_not_abandoned_ones(self, store: BlobStore) -> None:
        store.put_bytes(DATA)
        assert store.remove_abandoned(older_than_s=0) == 0
        assert read(store, SHA256) == DATA


class TestReaders:
    def test_a_path_in_a_folder_of_ones_own_stays(self, store: BlobStore, tmp_path: Path) -> None:
        store.put_bytes(DATA)
        folder = tmp_path / "attempt"
        paths = [store.fetch(SHA256, into=folder), store.fetch(SHA256, into=folder)]
        assert [path.read_bytes() for path in paths] == [DATA, DATA]


def test_the_settings_choose_the_store(tmp_path: Path, bucket: Bucket) -> None:
    build_store(Settings(data_dir=tmp_path / "a")).put_bytes(b"in the folder")
    build_store(bucket.settings(tmp_path / "b")).put_bytes(b"in the bucket")
    expected = {
        name: hashlib.sha256(name).hexdigest() for name in (b"in the folder", b"in the bucket")
    }
    assert [path.name for path in (tmp_path / "a" / "blobs").glob("??/*")] == [
        expected[b"in the folder"]
    ]
    assert bucket.keys() == [bucket.key_of(expected[b"in the bucket"])]
