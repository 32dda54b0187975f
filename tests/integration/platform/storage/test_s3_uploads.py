"""Uploads to a real S3 server: broken connections, refusals, kills, leftovers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from core.errors import StorageFullError
from core.platform.storage.errors import (
    BlobMissingError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from core.platform.storage.s3 import S3Store
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings, build_environment
from tests.fixtures.s3 import PART_BYTES, Bucket
from tests.fixtures.tcp_proxy import Fault, Proxy, http_error
from tests.integration.platform.storage.s3_rig import (
    LARGE,
    PUT_FILE,
    ROOT,
    SECRET,
    SMALL,
    digest_of,
    environment_of,
    partial_files,
)


class TestUploads:
    @pytest.mark.parametrize(
        ("connections_before", "fault"),
        [
            pytest.param(0, Fault("reset"), id="looking"),
            pytest.param(1, Fault("reset"), id="beginning"),
            pytest.param(2, Fault("reset", "up", 1000), id="part"),
            pytest.param(4, Fault("reset", "down"), id="answer-to-part"),
            pytest.param(5, Fault("reset"), id="completing"),
            pytest.param(5, Fault("reset", "down"), id="answer-to-completing"),
        ],
    )
    def test_a_connection_that_breaks_is_made_again(
        self, store: S3Store, proxy: Proxy, source: Path, connections_before: int, fault: Fault
    ) -> None:
        """Requests in their order: look, begin, three parts, complete, look again."""
        proxy.faults.extend([*[None] * connections_before, fault])
        blob = store.put_file(source)
        assert proxy.struck.is_set()
        assert [each.size_bytes for each in store.iter_blobs()] == [len(LARGE)]
        assert store.remove_abandoned(older_than_s=0) == 0
        assert store.fetch(blob.sha256).read_bytes() == LARGE

    def test_a_server_that_is_busy_for_a_moment_is_asked_again(
        self, store: S3Store, proxy: Proxy, direct: S3Store
    ) -> None:
        busy = Fault("answer", answer=http_error("503 Slow Down", "SlowDown"))
        proxy.faults.extend([busy])
        assert direct.fetch(store.put_bytes(SMALL).sha256).read_bytes() == SMALL
        assert proxy.struck.is_set()

    @pytest.mark.parametrize("kind", ["reset", "stall"])
    def test_a_failed_upload_leaves_nothing(
        self,
        settings: Settings,
        proxy: Proxy,
        bucket: Bucket,
        source: Path,
        kind: Literal["reset", "stall"],
    ) -> None:
        """Parts are refused; looking, beginning and ending the upload are small and pass."""
        quick = settings.model_copy(update={"s3_timeout_s": 0.5})
        proxy.always = Fault(kind, "up", 100_000)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            open_s3_store(quick, part_bytes=PART_BYTES).put_file(source)
        proxy.always = None
        store = open_s3_store(settings, part_bytes=PART_BYTES)
        assert bucket.keys() == []
        assert bucket.count_unfinished() == 0
        assert store.fetch(store.put_file(source).sha256).read_bytes() == LARGE

    @pytest.mark.parametrize(
        ("answer", "error", "told"),
        [
            (("503 Slow Down", "SlowDown"), StoreUnavailableError, "try again"),
            (("500 Internal Server Error", "InternalError"), StoreUnavailableError, "try again"),
            (("507 Insufficient Storage", "XMinioStorageFull"), StorageFullError, "free space"),
            (("403 Forbidden", "QuotaExceeded"), StorageFullError, "quota"),
            (("403 Forbidden", "AccessDenied"), StoreMisconfiguredError, "PutObject"),
            (("403 Forbidden", "RequestTimeTooSkewed"), StoreMisconfiguredError, "clock"),
            (("400 Bad Request", "ExpiredToken"), StoreMisconfiguredError, "credentials"),
            (
                ("400 Bad Request", "IllegalLocationConstraintException"),
                StoreMisconfiguredError,
                "IDAT_S3_REGION",
            ),
            (("405 Method Not Allowed", "MethodNotAllowed"), StoreMisconfiguredError, "ENDPOINT"),
        ],
    )
    def test_what_the_server_says_becomes_an_error_of_ours(
        self, store: S3Store, proxy: Proxy, answer: tuple[str, str], error: type, told: str
    ) -> None:
        proxy.always = Fault("answer", answer=http_error(*answer))
        with pytest.raises(error, match=told) as raised:
            store.check()
        assert "s3://bucket-" in str(raised.value)
        assert SECRET not in str(raised.value)

    def test_nobody_there_is_unavailable(self, bucket: Bucket, tmp_path: Path) -> None:
        nobody = bucket.settings(tmp_path, s3_endpoint_url="http://127.0.0.1:1", s3_attempts=1)
        store = open_s3_store(nobody)
        for use in (store.check, lambda: store.put_bytes(b"x"), lambda: store.exists("a" * 64)):
            with pytest.raises(StoreUnavailableError, match="IDAT_S3_ENDPOINT_URL"):
                use()

    def test_silence_ends_in_an_error(self, settings: Settings, proxy: Proxy) -> None:
        quick = settings.model_copy(update={"s3_timeout_s": 0.3, "s3_attempts": 2})
        proxy.always = Fault("stall")
        with pytest.raises(StoreUnavailableError, match="ReadTimeout"):
            open_s3_store(quick).exists("a" * 64)
        assert proxy.connections == 2

    def test_an_object_of_another_size_is_replaced(
        self, store: S3Store, bucket: Bucket, direct: S3Store
    ) -> None:
        sha256 = digest_of(SMALL)
        bucket.overwrite(sha256, SMALL[:-1])
        store.put_bytes(SMALL)
        assert direct.fetch(sha256).read_bytes() == SMALL

    def test_what_is_there_is_not_sent_again(
        self, store: S3Store, proxy: Proxy, direct: S3Store, source: Path
    ) -> None:
        direct.put_file(source)
        proxy.always = Fault("reset", "up", 100_000)
        assert store.put_file(source).sha256 == digest_of(LARGE)
        assert not proxy.struck.is_set()


class TestKill:
    @pytest.mark.parametrize("after_bytes", [50_000, PART_BYTES - 1])
    def test_a_killed_upload_is_never_seen(
        self, bucket: Bucket, proxy: Proxy, settings: Settings, source: Path, after_bytes: int
    ) -> None:
        """The proxy holds the bytes up, so that the process is killed in the midst of its parts."""
        patient = settings.model_copy(update={"s3_timeout_s": 300.0})
        proxy.always = Fault("stall", "up", after_bytes)
        command = [sys.executable, "-c", PUT_FILE, str(source)]
        environment = build_environment(environment_of(patient))
        with subprocess.Popen(command, cwd=ROOT, env=environment) as writer:
            assert proxy.struck.wait(timeout=60)
            writer.send_signal(signal.SIGKILL)
        proxy.always = None
        store = open_s3_store(settings, part_bytes=PART_BYTES)
        assert bucket.keys() == []
        assert not store.exists(digest_of(LARGE))
        assert bucket.count_unfinished() == 1
        assert store.fetch(store.put_file(source).sha256).read_bytes() == LARGE
        assert store.remove_abandoned(older_than_s=3600) == 1  # moto dates them all to 2010
        assert bucket.count_unfinished() == 0
        assert bucket.keys() == [bucket.key_of(digest_of(LARGE))]

    def test_a_process_finds_its_way_by_the_environment(
        self, bucket: Bucket, settings: Settings, source: Path
    ) -> None:
        command = [sys.executable, "-c", PUT_FILE, str(source)]
        environment = build_environment(environment_of(settings))
        output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        assert output.stdout.decode().strip() == digest_of(LARGE)
        assert bucket.keys() == [bucket.key_of(digest_of(LARGE))]


class TestLeftovers:
    def test_a_killed_download_is_cleared_away(
        self, store: S3Store, settings: Settings, bucket: Bucket
    ) -> None:
        leftover = settings.cache_dir / "incoming" / "killed"
        leftover.write_bytes(b"half of it")
        assert store.remove_abandoned(older_than_s=3600) == 0
        os.utime(leftover, (1000, 1000))
        assert store.remove_abandoned(older_than_s=3600) == 1
        assert partial_files(settings) == []

    def test_only_blobs_are_listed(self, store: S3Store, bucket: Bucket) -> None:
        sha256 = store.put_bytes(SMALL).sha256
        for key in ("some/prefix/README", f"some/prefix/zz/{sha256}", f"other/{sha256}"):
            bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"not ours")
        assert [blob.sha256 for blob in store.iter_blobs()] == [sha256]

    def test_a_thousand_objects_are_not_the_end(self, store: S3Store, bucket: Bucket) -> None:
        names = {digest_of(b"%d" % number) for number in range(1005)}
        bucket.fill(names)
        assert {blob.sha256 for blob in store.iter_blobs()} == names

    def test_a_missing_blob_is_told_from_a_missing_bucket(self, store: S3Store) -> None:
        assert not store.exists("a" * 64)
        with pytest.raises(BlobMissingError):
            store.fetch("a" * 64)
