"""The API over PostgreSQL, where it differs from SQLite: locks, races, strictness of text."""

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.orm import Session

from api.idempotency import ProjectKey, create_once
from core.platform.datasets import repository
from core.platform.db.migrate import upgrade_to_head
from core.platform.db.tables import DatasetRow
from tests.fixtures.postgresql import throwaway_postgresql
from tests.integration.api.rig import Rig


@pytest.fixture
def rig(start_rig: Callable[..., Rig]) -> Iterator[Rig]:
    with throwaway_postgresql() as url:
        upgrade_to_head(url)
        rig = start_rig(database_url=url)
        yield rig
        rig.database.dispose()


def test_an_upload_a_job_and_its_end(rig: Rig) -> None:
    assert rig.client.get("/readyz").json() == {"status": "ready"}
    dataset_id = rig.upload(name="fleurs d'été 花")
    wanted = {"dataset_id": dataset_id, "method": {"pair": "starter"}, "metadata": {"a": "\u00e9"}}
    headers = {"Idempotency-Key": "k"}
    job = rig.client.post("/v1/fine_tuning/jobs", json=wanted, headers=headers).json()
    assert job["status"] == "validating_files"
    rig.finish_validation()
    again = rig.client.post("/v1/fine_tuning/jobs", json=wanted, headers=headers).json()
    assert (again["id"], again["status"]) == (job["id"], "queued")
    cancelled = rig.client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()
    assert (cancelled["status"], cancelled["metadata"]) == ("cancelled", {"a": "\u00e9"})
    messages = rig.client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert [event["type"] for event in messages] == ["job.created", "job.queued", "job.cancelled"]
    assert len(rig.client.get("/v1/datasets?limit=1").json()["data"]) == 1


@pytest.mark.parametrize("hostile", ["%00", "a%00b", "%ed%a0%80", "'; DROP TABLE jobs; --"])
def test_hostile_text_never_reaches_the_database(rig: Rig, hostile: str) -> None:
    for path in ("/v1/datasets/{}", "/v1/fine_tuning/jobs/{}", "/v1/models/{}"):
        assert rig.client.get(path.format(hostile)).status_code in (404, 422)
    assert rig.client.get(f"/v1/datasets?after={hostile}").status_code == 422


def test_of_two_creations_in_flight_with_one_key_the_slower_finds_the_faster(rig: Rig) -> None:
    """Both look before either inserts; only the primary key of the key's row tells them apart."""
    both_have_looked = threading.Barrier(2)
    outcomes: list[tuple[DatasetRow, bool]] = []

    def create(session: Session) -> tuple[str, DatasetRow]:
        both_have_looked.wait(timeout=60)
        row = repository.create_dataset(
            session, name="x", seed=0, archive_sha256="0" * 64, archive_bytes=1, archive_name=""
        )
        return row.id, row

    def run() -> None:
        outcomes.append(
            create_once(
                rig.database,
                ProjectKey("k", "default"),
                "f" * 64,
                create=create,
                load=repository.get_dataset,
            )
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(is_new for _, is_new in outcomes) == [False, True]
    assert outcomes[0][0].id == outcomes[1][0].id
    assert rig.count_rows() == {"datasets": 1, "idempotency_keys": 1}
