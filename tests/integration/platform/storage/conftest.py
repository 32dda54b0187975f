"""A store whose connections break on demand, and one of another host with a healthy network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.platform.storage.s3 import S3Store
from core.platform.storage.s3_open import open_s3_store
from core.settings import Settings
from tests.fixtures.s3 import PART_BYTES, Bucket
from tests.fixtures.tcp_proxy import Proxy, open_proxy
from tests.integration.platform.storage.s3_rig import (
    LARGE,
)


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
