"""F16: a store that is full, away or gone when a trained model is to be published."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.clock import monotonic_s
from core.errors import AppError, StorageFullError
from core.platform.storage.errors import StoreMisconfiguredError, StoreUnavailableError
from core.settings import Settings
from tests.integration.platform.rows import add_job, claim, job_of, models_of, tell_events
from tests.unit.worker.test_storage_faults import FailingStore, offer_checkpoint, told
from worker.ending import Ending, Outcome
from worker.runtime import Runtime
from worker.supervisor import Supervisor
from worker.training import TrainingAttempt


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    runtime = Runtime(settings)
    runtime.store = FailingStore(tmp_path / "blobs")
    yield runtime
    runtime.database.dispose()


def end_with_a_model(supervisor: Supervisor, _request: dict[str, Any]) -> Outcome:
    """What a trainer leaves that has done its work."""
    out = supervisor._workdir / "out"
    out.mkdir()
    (out / "adapter.safetensors").write_bytes(b"adapter")
    config = {"backbone": {"name": "starter"}, "classes": ["a", "b"]}
    (out / "config.json").write_text(json.dumps(config))
    (out / "README.md").write_text("card")
    (out / "evaluation.json").write_text("{}")
    return Outcome(Ending.DONE, {"type": "done", "metrics": {"test_accuracy": 0.5}})


@pytest.mark.parametrize(
    "fault",
    [
        StorageFullError("the disk is full"),
        StoreUnavailableError("503 Slow Down"),
        StoreMisconfiguredError("no right to write"),
    ],
)
def test_the_job_goes_on_from_its_checkpoint_once_the_store_works(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: AppError
) -> None:
    store = runtime.store
    assert isinstance(store, FailingStore)
    monkeypatch.setattr(Supervisor, "run", end_with_a_model)
    monkeypatch.setattr(TrainingAttempt, "_build_request", lambda _attempt, _inputs: {})
    job_id = add_job(runtime.database)
    attempt = TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())
    offer_checkpoint(attempt, tmp_path, 4)
    store.put_fault = fault
    attempt.run()
    job = job_of(runtime.database, job_id)
    assert (job.state, job.failures, job.checkpoint_step) == ("queued", 1, 4)
    assert store.exists(str(job.checkpoint_sha256))
    assert models_of(runtime.database) == []
    assert fault.code in told(runtime, job_id)

    store.put_fault = None
    TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s()).run()
    assert job_of(runtime.database, job_id).state == "succeeded"
    assert [model.job_id for model in models_of(runtime.database)] == [job_id]
    assert tell_events(runtime.database, job_id).count("attempt.lost") == 1
