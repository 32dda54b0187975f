"""The S3 store on a real server over HTTP: broken connections, kills, refusals, damage, cache."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session

from core.errors import StorageFullError
from core.platform.storage.errors import (
    BlobCorruptError,
    BlobMissingError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from core.platform.storage.factory import check_store
from core.platform.storage.s3 import S3Store
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings, build_environment
from tests.fixtures.s3 import PART_BYTES, Bucket
from tests.fixtures.tcp_proxy import Fault, Proxy, http_error, open_proxy

ROOT = Path(__file__).parents[3]
#: Three parts.
LARGE = os.urandom(2 * PART_BYTES + 1000)
SMALL = os.urandom(200_000)
SECRET = "a-secret-of-the-test"

#: Stores one file; configured by the environment, as a process of the service is.
PUT_FILE = f"""
import sys
from pathlib import Path
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings, build_environment
print(open_s3_store(Settings(), part_bytes={PART_BYTES}).put_file(Path(sys.argv[1])).sha256)
"""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    with open_proxy(bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def settings(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> Settings:
    """Two tries a request, through the proxy."""
    return bucket.settings(
        tmp_path / "data", s3_endpoint_url=proxy.url, s3_attempts=2, s3_timeout_s=2
    )


@pytest.fixture
def store(settings: Settings) -> S3Store:
    return open_s3_store(settings, part_bytes=PART_BYTES)


@pytest.fixture
def direct(bucket: Bucket, tmp_path: Path) -> S3Store:
    """A store of another host, with a healthy network."""
    return open_s3_store(bucket.settings(tmp_path / "direct"), part_bytes=PART_BYTES)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    return path


def cached(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.cache_dir.glob("??/*"))


def partial_files(settings: Settings) -> list[Path]:
    return list((settings.cache_dir / "incoming").iterdir())


class TestUploads:
    @pytest.mark.parametrize("after_bytes", [0, 1000, 3 * PART_BYTES // 2])
    def test_a_connection_that_breaks_is_made_again(
        self, store: S3Store, proxy: Proxy, direct: S3Store, source: Path, after_bytes: int
    ) -> None:
        proxy.faults.append(Fault("reset", "up", after_bytes))
        blob = store.put_file(source)
        assert direct.fetch(blob.sha256).read_bytes() == LARGE

    def test_a_server_that_is_busy_for_a_moment_is_asked_again(
        self, store: S3Store, proxy: Proxy, direct: S3Store
    ) -> None:
        busy = Fault("answer", answer=http_error("503 Slow Down", "SlowDown"))
        proxy.faults.extend([busy])
        assert direct.fetch(store.put_bytes(SMALL).sha256).read_bytes() == SMALL
        assert proxy.struck.is_set()

    def test_a_failed_upload_leaves_nothing(
        self, store: S3Store, proxy: Proxy, bucket: Bucket, source: Path
    ) -> None:
        """Parts are refused; looking, beginning and ending the upload are small and pass."""
        proxy.always = Fault("reset", "up", 100_000)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.put_file(source)
        proxy.always = None
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


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make these settings."""
    assert settings.s3_secret_access_key is not None
    fields = {name: getattr(settings, name) for name in settings.model_fields_set}
    fields["s3_secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return {f"IDAT_{name.upper()}": str(value) for name, value in fields.items()}


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


class TestStart:
    def test_a_missing_bucket_is_told_in_one_line(self, bucket: Bucket, tmp_path: Path) -> None:
        settings = bucket.settings(tmp_path, storage_url="s3://nonesuch/prefix")
        with pytest.raises(StoreMisconfiguredError, match="bucket of s3://nonesuch/prefix") as told:
            check_store(settings)
        assert "\n" not in str(told.value)
        store = open_s3_store(settings)
        for use in (store.open, store.fetch, store.exists):
            with pytest.raises(StoreMisconfiguredError, match="does not exist"):
                use("a" * 64)
        with pytest.raises(StoreMisconfiguredError, match="does not exist"):
            store.put_bytes(SMALL)

    def test_no_credentials_at_all(
        self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        environment = environment_of(bucket.settings(tmp_path))
        del environment["IDAT_S3_ACCESS_KEY_ID"], environment["IDAT_S3_SECRET_ACCESS_KEY"]
        for module in ("api", "worker"):
            output = subprocess.run(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=build_environment(environment),
                check=False,
                capture_output=True,
                text=True,
            )
            assert output.returncode == 2
            (line,) = output.stderr.splitlines()
            assert line.startswith(f"idat {module}: no credentials for s3://bucket-")
            assert "IDAT_S3_ACCESS_KEY_ID" in line

    def test_a_silent_server_does_not_keep_the_service_from_starting(
        self, bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = bucket.settings(tmp_path, s3_endpoint_url="http://127.0.0.1:1", s3_attempts=1)
        check_store(settings)
        assert "cannot be reached" in caplog.text

    def test_a_store_that_works_says_nothing(
        self, bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        check_store(bucket.settings(tmp_path))
        assert [each for each in caplog.records if each.name.startswith("core.")] == []


@pytest.fixture
def strict_bucket(bucket: Bucket) -> Iterator[tuple[Bucket, dict[str, Any]]]:
    """A bucket whose server checks keys, signatures and rights; with a key that has no rights."""
    session = Session(aws_access_key_id="test", aws_secret_access_key="test")
    iam = session.client("iam", endpoint_url=bucket.endpoint_url, region_name="us-east-1")
    iam.create_user(UserName=bucket.name)
    key = iam.create_access_key(UserName=bucket.name)["AccessKey"]
    iam.close()
    set_strict_after(bucket, 0)
    yield bucket, key
    set_strict_after(bucket, 10**9)


def set_strict_after(bucket: Bucket, requests: int) -> None:
    request = urllib.request.Request(
        f"{bucket.endpoint_url}/moto-api/reset-auth",
        data=str(requests).encode(),
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    urllib.request.urlopen(request).close()


class TestCredentials:
    @pytest.mark.parametrize("wrong", ["key", "secret", "rights"])
    def test_a_refusal_is_told_in_one_line_without_the_secret(
        self, strict_bucket: tuple[Bucket, dict[str, Any]], tmp_path: Path, wrong: str
    ) -> None:
        bucket, key = strict_bucket
        settings = bucket.settings(
            tmp_path,
            s3_access_key_id="AKIAUNKNOWN" if wrong == "key" else key["AccessKeyId"],
            s3_secret_access_key=SECRET if wrong == "secret" else key["SecretAccessKey"],
        )
        store = open_s3_store(settings)
        uses = (
            lambda: check_store(settings),
            lambda: store.exists("a" * 64),
            lambda: store.put_bytes(b"x"),
            lambda: list(store.iter_blobs()),
        )
        for use in uses:
            with pytest.raises(StoreMisconfiguredError, match="credentials") as refused:
                use()
            assert refused.value.code == "store_access_denied"
            assert not refused.value.retryable
            told = str(refused.value)
            assert "\n" not in told
            assert SECRET not in told
            assert key["SecretAccessKey"] not in told


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
