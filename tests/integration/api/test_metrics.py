"""What Prometheus gets to see: of the work queue, of serving, and who may look."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api import control_metrics
from core.platform.collection.log import record_sweep
from tests.integration.api.models import build_files, build_picture, classify, import_model
from tests.integration.api.rig import Rig
from tests.integration.predictions.rows import add as add_prediction

_Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape(rig: Rig) -> dict[_Sample, float]:
    """Every sample by its name and labels."""
    answer = rig.client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def name(sample: str, **labels: str) -> _Sample:
    """A sample's key."""
    return sample, frozenset(labels.items())


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the database at every scrape."""
    monkeypatch.setattr(control_metrics, "_CACHED_S", 0.0)


@pytest.mark.usefixtures("uncached")
class TestControl:
    def test_jobs_datasets_and_the_oldest_in_line(self, rig: Rig) -> None:
        dataset_id = rig.upload()
        before = scrape(rig)
        assert before[name("idat_datasets", state="pending")] == 1
        assert before[name("idat_oldest_queued_seconds")] == 0
        rig.finish_validation()
        wanted = {"dataset_id": dataset_id, "name": "flowers", "method": {"pair": "starter"}}
        assert rig.client.post("/v1/fine_tuning/jobs", json=wanted).status_code == 201
        after = scrape(rig)
        assert after[name("idat_datasets", state="ready")] == 1
        assert after[name("idat_datasets", state="pending")] == 0
        assert after[name("idat_jobs", state="queued")] == 1
        assert after[name("idat_oldest_queued_seconds")] > 0
        assert after[name("idat_leases", kind="job")] == 0
        assert after[name("idat_leases", kind="batch_prediction")] == 0
        assert after[name("idat_batch_predictions", state="pending")] == 0
        add_prediction(rig.database)
        assert scrape(rig)[name("idat_batch_predictions", state="pending")] == 1

    def test_what_sweeps_do_is_counted_once(self, rig: Rig) -> None:
        def sweep(counts: dict[str, int], faults: dict[str, str]) -> None:
            with rig.database.write() as session:
                record_sweep(session, owner="w", duration_s=1.0, counts=counts, faults=faults)

        sweep({"expired_leases": 7}, {})
        assert scrape(rig)[name("idat_sweeps_total")] == 0, "the past is no burst"
        sweep({"expired_leases": 2, "blobs_seen": 9, "bytes_seen": 900}, {"blobs": "no store"})
        sweep({"expired_leases": 1}, {})
        for _ in range(2):
            samples = scrape(rig)
            assert samples[name("idat_sweeps_total")] == 2
            assert samples[name("idat_sweep_faults_total")] == 1
            assert samples[name("idat_sweep_actions_total", kind="expired_leases")] == 3
            assert samples[name("idat_store_bytes")] == 900
            assert name("idat_sweep_actions_total", kind="bytes_seen") not in samples

    def test_without_its_database_it_says_so(self, rig: Rig) -> None:
        assert scrape(rig)[name("idat_database_up")] == 1
        with rig.database.write() as session:
            session.connection().exec_driver_sql("ALTER TABLE jobs RENAME TO gone")
        samples = scrape(rig)
        assert samples[name("idat_database_up")] == 0
        assert name("idat_jobs", state="queued") not in samples


def test_the_database_is_not_asked_at_every_scrape(rig: Rig) -> None:
    scrape(rig)
    rig.upload()
    assert scrape(rig)[name("idat_datasets", state="pending")] == 0


def test_serving_by_model_batch_and_outcome(start_rig: Callable[..., Rig], tmp_path: Path) -> None:
    rig = start_rig(roles=["control", "inference"], device="cpu", threads=1)
    model_id = import_model(rig.client, build_files(tmp_path), "animals")
    for _ in range(3):
        answer = classify(rig.client, "animals", build_picture())
        assert answer.status_code == 200
    assert classify(rig.client, "animals", b"no image").status_code == 422
    samples = scrape(rig)
    precision = answer.headers["x-model-precision"]
    assert samples[name("idat_networks_info", precision=precision)] == 1
    requests = "idat_inference_requests_total"
    assert samples[name(requests, model=model_id, outcome="answered")] == 3
    assert samples[name(requests, model=model_id, outcome="unsupported_format")] == 1
    assert samples[name("idat_inference_images_total", model=model_id)] == 3
    (backbone,) = {
        dict(labels)["backbone"] for key, labels in samples if key == "idat_batch_images_count"
    }
    assert samples[name("idat_batch_images_sum", backbone=backbone)] == 3
    assert samples[name("idat_forward_seconds_count", backbone=backbone)] == 3
    assert samples[name("idat_decode_seconds_count")] == 3
    assert samples[name("idat_queue_seconds_count")] == 3
    assert samples[name("idat_model_loads_total")] == 1
    assert samples[name("idat_resident_models")] == 1
    assert samples[name("idat_images_under_way", backbone=backbone)] == 0
    assert samples[name("idat_images_limit", backbone=backbone)] > 0


def test_only_the_operators_keys_open_them(start_rig: Callable[..., Rig]) -> None:
    rig = start_rig(api_keys=["operator", "tenant:k"])
    codes = {
        key: rig.client.get("/metrics", headers=headers).status_code
        for key, headers in {
            "none": {},
            "tenant": {"Authorization": "Bearer k"},
            "operator": {"Authorization": "Bearer operator"},
        }.items()
    }
    assert codes == {"none": 401, "tenant": 403, "operator": 200}
