"""The API over a bucket: as over a folder, and what clients learn when the bucket fails."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.platform.storage.s3_open import open_s3_store
from core.types import ModelId
from tests.fixtures.s3 import Bucket
from tests.fixtures.tcp_proxy import Fault, Proxy, http_error, open_proxy
from tests.integration.api import test_models
from tests.integration.api.rig import Rig, build_zip

ADAPTER = hashlib.sha256(bytes(range(256)) * 4).hexdigest()


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    with open_proxy(bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def rig(start_rig: Callable[..., Rig], bucket: Bucket, proxy: Proxy, data_dir: Path) -> Rig:
    settings = bucket.settings(
        data_dir, s3_endpoint_url=proxy.url, s3_attempts=1, roles=["control"]
    )
    changes = {name: getattr(settings, name) for name in settings.model_fields_set}
    return start_rig(**{**changes, "data_dir": data_dir})


@pytest.fixture
def model_id(rig: Rig) -> ModelId:
    return test_models.publish_model(rig)


def forget_local_copies(rig: Rig) -> None:
    for path in rig.settings.cache_dir.glob("??/*"):
        path.unlink()


class TestDownload(test_models.TestDownload):
    """All that holds for a folder, ranges and tags included, holds for a bucket."""


def test_an_upload_lies_in_the_bucket_and_nowhere_else(rig: Rig, bucket: Bucket) -> None:
    archive = build_zip()
    rig.upload(archive)
    sha256 = hashlib.sha256(archive).hexdigest()
    assert bucket.keys() == [bucket.key_of(sha256)]
    assert rig.list_files() == []
    assert rig.client.get("/readyz").json() == {"status": "ready"}


def test_a_download_survives_the_end_of_its_local_copy(
    rig: Rig, model_id: ModelId, bucket: Bucket
) -> None:
    url = f"/v1/models/{model_id}/adapter"
    first = rig.client.get(url)
    forget_local_copies(rig)
    assert rig.client.get(url).content == first.content


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (("503 Slow Down", "SlowDown"), 503, "store_unavailable"),
        (("403 Forbidden", "AccessDenied"), 503, "store_access_denied"),
        (("507 Insufficient Storage", "XMinioStorageFull"), 507, "storage_full"),
    ],
)
def test_an_upload_that_the_store_refuses_leaves_nothing(
    rig: Rig, proxy: Proxy, answer: tuple[str, str], status: int, code: str
) -> None:
    proxy.always = Fault("answer", answer=http_error(*answer))
    refused = rig.client.post("/v1/datasets", files={"file": ("flowers.zip", build_zip())})
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert ("retry-after" in refused.headers) == (code != "store_access_denied")
    assert refused.headers["content-type"] == "application/problem+json"
    ready = rig.client.get("/readyz")
    assert ready.status_code == 503
    assert [error["code"] for error in ready.json()["errors"]] == ["store_not_ready"]
    assert "a-secret-of-the-test" not in ready.text
    rig.assert_untouched()
    proxy.always = None
    rig.upload()
    assert rig.client.get("/readyz").json() == {"status": "ready"}


def test_a_download_from_a_store_that_is_away_can_be_tried_again(
    rig: Rig, model_id: ModelId, proxy: Proxy
) -> None:
    url = f"/v1/models/{model_id}/adapter"
    forget_local_copies(rig)
    proxy.always = Fault("reset")
    away = rig.client.get(url)
    assert (away.status_code, away.json()["code"]) == (503, "store_unavailable")
    assert "retry-after" in away.headers
    proxy.always = None
    assert rig.client.get(url).status_code == 200


def test_damaged_and_missing_bytes_are_never_sent(
    rig: Rig, model_id: ModelId, bucket: Bucket, tmp_path: Path
) -> None:
    url = f"/v1/models/{model_id}/adapter"
    forget_local_copies(rig)
    bucket.overwrite(ADAPTER, bytes(1024))
    damaged = rig.client.get(url)
    assert (damaged.status_code, damaged.json()["code"]) == (500, "blob_corrupt")
    open_s3_store(bucket.settings(tmp_path)).delete(ADAPTER)
    missing = rig.client.get(url)
    assert (missing.status_code, missing.json()["code"]) == (500, "blob_missing")
