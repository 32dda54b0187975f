"""The cache of local copies, with downloads that a test makes up."""

import fcntl
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from core.platform.storage.cache import FileCache
from core.platform.storage.errors import StoreUnavailableError

DATA = b"some bytes" * 100
SHA256 = hashlib.sha256(DATA).hexdigest()


class Source:
    """Where blobs come from; counts how often one is fetched."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.downloads = 0

    def __call__(self, path: Path) -> None:
        self.downloads += 1
        path.write_bytes(self.data)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "cache", 10_000, turn_s=0.1)


@pytest.fixture
def fetch() -> Source:
    return Source()


def fail(_path: Path) -> None:
    raise AssertionError("it was here already")


def test_a_blob_is_downloaded_once(cache: FileCache, fetch: Source, tmp_path: Path) -> None:
    assert cache.get(SHA256, fetch).read_bytes() == DATA
    assert cache.get(SHA256, fail).read_bytes() == DATA
    assert FileCache(tmp_path / "cache", 10_000).get(SHA256, fail).read_bytes() == DATA
    assert fetch.downloads == 1


def test_who_holds_a_turn_for_ever_keeps_nobody_from_the_blob(
    cache: FileCache, fetch: Source, tmp_path: Path
) -> None:
    """As a process does that is stopped in the midst of a download."""
    with (tmp_path / "cache" / "turns" / SHA256[:2]).open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        assert cache.get(SHA256, fetch).read_bytes() == DATA


@pytest.mark.parametrize("error", [StoreUnavailableError("broke"), KeyboardInterrupt(), OSError()])
def test_a_download_that_breaks_leaves_nothing(
    cache: FileCache, tmp_path: Path, error: BaseException
) -> None:
    def break_off(path: Path) -> None:
        path.write_bytes(DATA[:10])
        raise error

    with pytest.raises(type(error)):
        cache.get(SHA256, break_off)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.parent.name for path in left] == ["turns"]


def test_nobody_may_write_to_a_copy(cache: FileCache, fetch: Source, tmp_path: Path) -> None:
    own = cache.link(SHA256, tmp_path / "own", fetch)
    assert own.stat().st_mode & 0o777 == 0o444
    assert own.samefile(cache.get(SHA256, fail))


def test_on_another_file_system_a_link_is_a_copy(
    cache: FileCache, fetch: Source, small_disk: Path
) -> None:
    own = cache.link(SHA256, small_disk, fetch)
    assert not own.samefile(cache.get(SHA256, fail))
    assert own.read_bytes() == DATA
    assert [path.name for path in small_disk.iterdir()] == [SHA256]


def test_what_is_used_is_not_evicted_for_anything(cache: FileCache, tmp_path: Path) -> None:
    names = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    for name in names:
        cache.link(name, tmp_path / "own", Source(bytes(9000)))
    cache.make_room(10_000)
    for name in names:
        cache.get(name, fail)
    for path in (tmp_path / "own").iterdir():
        path.unlink()
    cache.make_room(1000)
    assert len(list((tmp_path / "cache").glob("??/*"))) == 1


@pytest.mark.parametrize("size_bytes", [10_000, 10_001])
def test_a_file_is_taken_over_if_there_is_room_for_it(
    cache: FileCache, tmp_path: Path, fetch: Source, size_bytes: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size_bytes))
    cache.adopt(path, SHA256)
    assert not path.exists()
    cache.get(SHA256, fetch)
    assert fetch.downloads == (size_bytes > 10_000)


def test_a_file_of_another_file_system_is_not_copied(
    cache: FileCache, small_disk: Path, fetch: Source
) -> None:
    path = small_disk / "file"
    path.write_bytes(DATA)
    cache.adopt(path, SHA256)
    assert not path.exists()
    cache.get(SHA256, fetch)
    assert fetch.downloads == 1


def test_names_that_go_at_once_are_an_error_in_the_end(tmp_path: Path) -> None:
    class Thief(FileCache):
        """Whose entries are evicted before they can be opened, each time."""

        def get(self, sha256: str, download: Callable[[Path], None]) -> Path:
            path = super().get(sha256, download)
            path.unlink()
            return path

    cache, fetch = Thief(tmp_path / "cache", 10_000), Source()
    with pytest.raises(StoreUnavailableError, match="IDAT_STORAGE_CACHE_BYTES"):
        cache.open(SHA256, fetch)
    with pytest.raises(StoreUnavailableError, match="IDAT_STORAGE_CACHE_BYTES"):
        cache.link(SHA256, tmp_path / "own", fetch)
