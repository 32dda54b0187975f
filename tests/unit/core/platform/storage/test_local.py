"""The local store: named by content, whole or not at all, honest about a full disk."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import InvalidError, StorageFullError
from core.platform.storage.factory import build_store
from core.platform.storage.local import LocalStore

ROOT = Path(__file__).parents[5]
DATA = b"some bytes" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

#: Stores a file of 1 MiB while no file may grow beyond 64 KiB.
STORE_UNDER_LIMIT = """
import resource, signal, sys
from pathlib import Path
from core.platform.storage.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
store, source = LocalStore(Path(sys.argv[1])), Path(sys.argv[2])
try:
    if sys.argv[3] == "put_file":
        store.put_file(source)
    else:
        store.put_bytes(source.read_bytes())
except OSError as error:
    sys.exit(error.errno)
"""

#: Stores a file for ever, so that it can be killed at any moment.
STORE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from core.platform.storage.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
for n in itertools.count():
    store.put_bytes(b"%d" % n * 100_000)
    print(n, flush=True)
"""


def all_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount_point)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield mount_point
    subprocess.run(["umount", str(mount_point)], check=True)


class TestNames:
    def test_a_blob_is_named_by_its_content(self, store: LocalStore, source: Path) -> None:
        blob = store.put_file(source)
        assert (blob.sha256, blob.size_bytes) == (SHA256, len(DATA))
        assert source.read_bytes() == DATA
        with store.open(SHA256) as file:
            assert file.read() == DATA
        assert store.fetch(SHA256).read_bytes() == DATA
        assert store.exists(SHA256)

    def test_all_ways_in_lead_to_one_blob(
        self, store: LocalStore, root: Path, source: Path
    ) -> None:
        blobs = [store.put_bytes(DATA), store.put_file(source), store.take_file(source, SHA256)]
        assert len(set(blobs)) == 1
        assert not source.exists()
        assert all_files(root) == [store.fetch(SHA256)]

    def test_an_empty_blob_is_one_too(self, store: LocalStore) -> None:
        assert store.put_bytes(b"").sha256 == EMPTY_SHA256
        assert store.fetch(EMPTY_SHA256).read_bytes() == b""

    def test_nobody_may_write_to_a_blob(self, store: LocalStore, source: Path) -> None:
        source.chmod(0o600)
        for sha256 in (store.put_bytes(b"x").sha256, store.take_file(source, SHA256).sha256):
            assert stat.S_IMODE(store.fetch(sha256).stat().st_mode) == 0o444

    def test_a_missing_blob_is_not_found(self, store: LocalStore) -> None:
        assert not store.exists(SHA256)
        with pytest.raises(FileNotFoundError):
            store.open(SHA256)
        with pytest.raises(FileNotFoundError):
            store.fetch(SHA256)

    def test_deleting_twice_is_harmless(self, store: LocalStore, root: Path) -> None:
        store.put_bytes(DATA)
        store.delete(SHA256)
        store.delete(SHA256)
        assert not store.exists(SHA256)
        assert all_files(root) == []

    def test_a_reader_keeps_what_is_deleted_or_stored_again(self, store: LocalStore) -> None:
        store.put_bytes(DATA)
        with store.open(SHA256) as file:
            store.put_bytes(DATA)
            store.delete(SHA256)
            assert file.read() == DATA


class TestWholeOrNotAtAll:
    def test_writers_of_the_same_bytes_do_not_disturb_each_other(
        self, store: LocalStore, root: Path
    ) -> None:
        barrier = threading.Barrier(8)

        def put(_n: int) -> str:
            barrier.wait()
            return store.put_bytes(DATA).sha256

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(put, range(8))) == {SHA256}
        assert all_files(root) == [store.fetch(SHA256)]
        assert store.fetch(SHA256).read_bytes() == DATA

    @pytest.mark.parametrize("way", ["put_file", "put_bytes"])
    def test_a_write_that_fails_half_way_leaves_nothing(
        self, root: Path, tmp_path: Path, way: str
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x" * 2**20)
        command = [sys.executable, "-c", STORE_UNDER_LIMIT, str(root), str(source), way]
        assert subprocess.run(command, check=False, cwd=ROOT).returncode == errno.EFBIG
        assert all_files(root) == []

    def test_a_killed_writer_leaves_no_half_blob_under_a_name(
        self, store: LocalStore, root: Path
    ) -> None:
        for _ in range(3):
            command = [sys.executable, "-c", STORE_FOR_EVER, str(root)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                for _ in range(5):
                    writer.stdout.readline()
                writer.kill()
        blobs = [path for path in all_files(root) if path.parent.name != "incoming"]
        assert len(blobs) >= 5
        for blob in blobs:
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name

    def test_an_unreadable_source_leaves_nothing(self, store: LocalStore, root: Path) -> None:
        with pytest.raises(FileNotFoundError):
            store.put_file(root / "none")
        assert all_files(root) == []


class TestCollection:
    def test_every_blob_is_listed_with_size_and_age(self, store: LocalStore) -> None:
        data = [b"", b"one", b"two" * 1000]
        blobs = [store.put_bytes(each) for each in data]
        os.utime(store.fetch(blobs[1].sha256), (1000, 2000))
        listed = {blob.sha256: blob for blob in store.iter_blobs()}
        assert {name: blob.size_bytes for name, blob in listed.items()} == {
            hashlib.sha256(each).hexdigest(): len(each) for each in data
        }
        assert listed[blobs[1].sha256].modified_at_s == 2000

    @pytest.mark.parametrize("way", ["put_file", "take_file", "put_bytes"])
    def test_what_is_stored_again_is_new_again(
        self, store: LocalStore, source: Path, way: str
    ) -> None:
        store.put_bytes(DATA)
        os.utime(store.fetch(SHA256), (1000, 1000))
        if way == "put_file":
            store.put_file(source)
        elif way == "take_file":
            store.take_file(source, SHA256)
        else:
            store.put_bytes(DATA)
        (blob,) = store.iter_blobs()
        assert blob.modified_at_s > 1_000_000

    def test_only_old_partial_files_are_removed(self, store: LocalStore, root: Path) -> None:
        store.put_bytes(DATA)
        old, new = root / "incoming" / "old", root / "incoming" / "new"
        for path in (old, new):
            path.write_bytes(b"part")
        os.utime(old, (1000, 1000))
        assert store.remove_abandoned(older_than_s=3600) == 1
        assert sorted(all_files(root)) == sorted([new, store.fetch(SHA256)])


class TestOtherFileSystem:
    def test_a_file_is_moved_across(self, root: Path, small_disk: Path) -> None:
        source = small_disk / "source"
        source.write_bytes(DATA)
        store = LocalStore(root)
        assert source.stat().st_dev != root.stat().st_dev
        assert store.take_file(source, SHA256).size_bytes == len(DATA)
        assert not source.exists()
        assert store.fetch(SHA256).read_bytes() == DATA
        assert stat.S_IMODE(store.fetch(SHA256).stat().st_mode) == 0o444

    @pytest.mark.parametrize("way", ["put_file", "take_file", "put_bytes"])
    def test_a_full_disk_is_named_and_left_clean(
        self, small_disk: Path, tmp_path: Path, way: str
    ) -> None:
        store = LocalStore(small_disk / "blobs")
        kept = store.put_bytes(b"kept" * 1000)
        data = os.urandom(2**20)
        source = tmp_path / "source"
        source.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()

        def store_it() -> None:
            if way == "put_file":
                store.put_file(source)
            elif way == "take_file":
                store.take_file(source, sha256)
            else:
                store.put_bytes(data)

        with pytest.raises(StorageFullError, match="full"):
            store_it()
        assert not store.exists(sha256)
        assert all_files(small_disk) == [store.fetch(kept.sha256)]
        assert source.read_bytes() == data
        assert store.put_bytes(b"small again" * 1000).size_bytes == 11_000


class TestFactory:
    def test_a_file_url_names_a_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "with space & ümlaut"
        build_store(folder.as_uri()).put_bytes(DATA)
        assert [path.name for path in all_files(folder)] == [SHA256]

    @pytest.mark.parametrize("url", ["s3://bucket", "/just/a/path", ""])
    def test_other_urls_are_refused(self, url: str) -> None:
        with pytest.raises(InvalidError, match="IDAT_STORAGE_URL"):
            build_store(url)
