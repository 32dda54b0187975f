"""The local store: named by content, whole or not at all, honest about a full disk."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.errors import StorageFullError
from core.platform.storage.errors import StoreMisconfiguredError
from core.platform.storage.factory import build_store, check_store
from core.platform.storage.local import LocalStore
from core.settings import Settings, describe_wrong_settings

ROOT = Path(__file__).parents[5]
DATA = b"some bytes" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()

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


class TestFolder:
    def test_nobody_may_write_to_a_blob(self, store: LocalStore, source: Path) -> None:
        source.chmod(0o600)
        for sha256 in (store.put_bytes(b"x").sha256, store.take_file(source, SHA256).sha256):
            assert stat.S_IMODE(store.fetch(sha256).stat().st_mode) == 0o444

    def test_all_ways_in_lead_to_one_file(
        self, store: LocalStore, root: Path, source: Path
    ) -> None:
        store.put_bytes(DATA)
        store.put_file(source)
        store.take_file(source, SHA256)
        assert all_files(root) == [store.fetch(SHA256)]
        store.delete(SHA256)
        assert all_files(root) == []

    def test_only_old_partial_files_are_removed(self, store: LocalStore, root: Path) -> None:
        store.put_bytes(DATA)
        old, new = root / "incoming" / "old", root / "incoming" / "new"
        for path in (old, new):
            path.write_bytes(b"part")
        os.utime(old, (1000, 1000))
        assert store.remove_abandoned(older_than_s=3600) == 1
        assert sorted(all_files(root)) == sorted([new, store.fetch(SHA256)])

    def test_a_check_leaves_nothing(self, store: LocalStore, root: Path) -> None:
        store.check()
        assert all_files(root) == []


class TestWholeOrNotAtAll:
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
        build_store(Settings(storage_url=folder.as_uri())).put_bytes(DATA)
        assert [path.name for path in all_files(folder)] == [SHA256]

    @pytest.mark.parametrize(
        "url", ["/just/a/path", "http://host/x", "s3://", "s3://UPPER/x", "s3://key:secret@bucket"]
    )
    def test_other_urls_are_refused_without_repeating_them(self, url: str) -> None:
        with pytest.raises(ValidationError) as refusal:
            Settings(storage_url=url)
        told = describe_wrong_settings(refusal.value)
        assert "IDAT_STORAGE_URL: must be file:///absolute/path or s3://bucket/prefix" in told
        assert "secret@" not in told

    @pytest.mark.parametrize(
        "half",
        [
            {"s3_access_key_id": "key"},
            {"s3_access_key_id": "key", "s3_secret_access_key": ""},
            {"s3_secret_access_key": "secret"},
        ],
    )
    def test_half_a_key_is_refused(self, half: dict[str, str]) -> None:
        with pytest.raises(ValidationError, match="belong together"):
            Settings.model_validate(half)

    def test_empty_keys_are_none(self) -> None:
        Settings.model_validate({"s3_access_key_id": "", "s3_secret_access_key": ""})

    def test_a_folder_that_cannot_be_written_is_told_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreMisconfiguredError, match=r"Not a directory.*IDAT_STORAGE_URL"):
            check_store(Settings(storage_url=(tmp_path / "file" / "blobs").as_uri()))
