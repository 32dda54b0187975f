"""What whoever starts the service learns of a bucket that cannot be used."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session

from core.platform.storage.errors import (
    StoreMisconfiguredError,
)
from core.platform.storage.factory import check_store
from core.platform.storage.s3_open import open_s3_store
from core.settings import build_environment
from tests.fixtures.s3 import Bucket
from tests.integration.platform.storage.s3_rig import (
    ROOT,
    SECRET,
    SMALL,
    environment_of,
)


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
        environment["IDAT_ROLES"] = "control"  # the other one loads torch first
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
