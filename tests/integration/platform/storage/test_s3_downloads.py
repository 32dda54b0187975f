"""Downloads from a real S3 server: broken connections, damage, and the bound of what is kept."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import StorageFullError
from core.platform.storage.errors import (
    BlobCorruptError,
    StoreUnavailableError,
)
from core.platform.storage.s3 import S3Store
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings
from tests.fixtures.s3 import Bucket
from tests.fixtures.tcp_proxy import Fault, Proxy
from tests.integration.platform.storage.s3_rig import (
    LARGE,
    SMALL,
    cached,
    digest_of,
    partial_files,
)


class TestDownloads:
    def test_a_download_goes_on_where_the_connection_broke(
        self, store: S3Store, proxy: Proxy, direct: S3Store, source: Path
    ) -> None:
        sha256 = direct.put_file(source).sha256
        for _ in range(3):
            proxy.faults.append(Fault("reset", "down", 3_000_000))
        assert store.fetch(sha256).read_bytes() == LARGE
        assert proxy.connections == 4

    def test_one_that_breaks_for_ever_is_given_up_and_leaves_nothing(
        self, store: S3Store, settings: Settings, proxy: Proxy, direct: S3Store, source: Path
    ) -> None:
        sha256 = direct.put_file(source).sha256
        proxy.always = Fault("reset", "down", 600)
        with pytest.raises(StoreUnavailableError):
            store.fetch(sha256)
        assert (cached(settings), partial_files(settings)) == ([], [])
        proxy.always = None
        assert store.fetch(sha256).read_bytes() == LARGE

    @pytest.mark.parametrize(
        "damage",
        [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _data: b""],
    )
    def test_damage_is_noticed_and_not_handed_out(
        self,
        store: S3Store,
        settings: Settings,
        bucket: Bucket,
        direct: S3Store,
        damage: Callable[[bytes], bytes],
    ) -> None:
        sha256 = direct.put_bytes(SMALL).sha256
        bucket.overwrite(sha256, damage(SMALL))
        for use in (store.fetch, store.open):
            with pytest.raises(BlobCorruptError, match="restore"):
                use(sha256)
        assert (cached(settings), partial_files(settings)) == ([], [])
        bucket.overwrite(sha256, SMALL)
        assert store.fetch(sha256).read_bytes() == SMALL

    def test_damage_on_the_way_costs_a_second_download_only(
        self, store: S3Store, proxy: Proxy, direct: S3Store
    ) -> None:
        sha256 = direct.put_bytes(SMALL).sha256
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(SMALL)}\r\nConnection: close\r\n\r\n"
        wrong = bytes(byte ^ 255 for byte in SMALL)
        proxy.faults.append(Fault("answer", answer=head.encode() + wrong))
        assert store.fetch(sha256).read_bytes() == SMALL
        assert proxy.connections == 2

    def test_those_who_want_the_same_blob_fetch_it_once(
        self, store: S3Store, proxy: Proxy, settings: Settings, direct: S3Store, source: Path
    ) -> None:
        sha256 = direct.put_file(source).sha256
        neighbour = open_s3_store(settings)
        barrier = threading.Barrier(8)

        def fetch(number: int) -> bytes:
            barrier.wait()
            return (store, neighbour)[number % 2].fetch(sha256).read_bytes()

        with ThreadPoolExecutor(8) as pool:
            assert all(data == LARGE for data in pool.map(fetch, range(8)))
        assert proxy.connections == 1

    def test_what_was_taken_here_need_not_be_fetched_here(
        self, store: S3Store, proxy: Proxy, source: Path
    ) -> None:
        sha256 = store.take_file(source, digest_of(LARGE)).sha256
        connections = proxy.connections
        assert store.fetch(sha256).read_bytes() == LARGE
        assert proxy.connections == connections


class TestBound:
    def test_the_least_recently_used_goes_first(self, settings: Settings, direct: S3Store) -> None:
        blobs = [direct.put_bytes(bytes([number]) * 1000).sha256 for number in range(4)]
        bounded = settings.model_copy(update={"storage_cache_bytes": 3000})
        store = open_s3_store(bounded)
        for sha256 in (*blobs[:3], blobs[0]):
            store.fetch(sha256)
        store.fetch(blobs[3])
        assert cached(settings) == sorted([blobs[0], blobs[2], blobs[3]])
        assert store.fetch(blobs[1]).read_bytes() == b"\1" * 1000

    def test_readers_keep_what_is_evicted(
        self, settings: Settings, direct: S3Store, tmp_path: Path
    ) -> None:
        blobs = [direct.put_bytes(bytes([number]) * 1000).sha256 for number in range(4)]
        store = open_s3_store(settings.model_copy(update={"storage_cache_bytes": 1000}))
        with store.open(blobs[0]) as file:
            own = store.fetch(blobs[1], into=tmp_path / "attempt")
            store.fetch(blobs[2])
            store.fetch(blobs[3])
            # The one that a job uses takes all the room, and is still not the one to go.
            assert cached(settings) == sorted([blobs[1], blobs[3]])
            assert own.read_bytes() == b"\1" * 1000
            assert file.read() == b"\0" * 1000
        own.unlink()
        store.fetch(blobs[0])
        assert cached(settings) == [blobs[0]]

    def test_readers_and_evictions_race_without_a_failure(
        self, settings: Settings, direct: S3Store
    ) -> None:
        blobs = {direct.put_bytes(bytes([n]) * 1000).sha256: bytes([n]) * 1000 for n in range(4)}
        store = open_s3_store(settings.model_copy(update={"storage_cache_bytes": 1500}))

        def read(number: int) -> bool:
            sha256, data = list(blobs.items())[number % 4]
            with store.open(sha256) as file:
                return file.read() == data

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(48)))

    def test_a_full_disk_gives_back_what_it_can_and_is_named(
        self, bucket: Bucket, direct: S3Store, small_disk: Path
    ) -> None:
        """The disk has 256 KiB; its setting believes in more."""
        settings = bucket.settings(small_disk / "data")
        store = open_s3_store(settings)
        first, second = (direct.put_bytes(os.urandom(150_000)).sha256 for _ in range(2))
        store.fetch(first)
        store.fetch(second)
        assert cached(settings) == [second]
        too_large = direct.put_bytes(os.urandom(400_000)).sha256
        with pytest.raises(StorageFullError, match="full"):
            store.fetch(too_large)
        assert (cached(settings), partial_files(settings)) == ([], [])
        assert store.fetch(first).stat().st_size == 150_000
