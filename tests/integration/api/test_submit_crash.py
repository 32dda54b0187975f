"""F5: an API that dies at any line of a submission has accepted the whole job, or none."""

import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from core.platform.db.engine import Database
from core.platform.db.tables import JobRow
from core.settings import Settings, build_environment
from tests.integration.platform.rows import add_dataset, tell_events

_ROOT = Path(__file__).parents[3]


def test_a_job_runs_or_was_never_acknowledged(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    dataset_id, acknowledged = add_dataset(database), tmp_path / "acknowledged"
    settings = {"IDAT_DATABASE_URL": database_url, "IDAT_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.api.crashing_submit", dataset_id, acknowledged],
        cwd=_ROOT,
        env=build_environment({**settings, "IDAT_ROLES": "control"}),
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (last_key, _), *others = (line.split() for line in acknowledged.read_text().splitlines())
    tries = int(last_key.removeprefix("crash-"))
    assert others == []
    assert tries > 30, "the lines of a submission were not traced"

    with database.read() as session:
        before = {row.id: row.state for row in session.scalars(select(JobRow))}
    # Some died before the commit, some after it.
    assert 1 < len(before) < tries
    assert set(before.values()) == {"queued"}

    # Whoever was not answered asks again, and gets the job that is there or a new one: never two.
    app = create_app(
        Settings.model_validate(
            {"database_url": database_url, "data_dir": tmp_path / "data", "roles": ["control"]}
        )
    )
    answered = set()
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for number in range(tries + 1):
            answer = client.post(
                "/v1/fine_tuning/jobs",
                json={"dataset_id": dataset_id, "method": {"type": "idat", "pair": "starter"}},
                headers={"idempotency-key": f"crash-{number}"},
            )
            assert answer.status_code == 201, answer.text
            answered.add(answer.json()["id"])
    with database.read() as session:
        after = {row.id for row in session.scalars(select(JobRow))}
    assert len(after) == tries + 1
    assert after == answered >= before.keys()
    assert {tuple(tell_events(database, job_id)) for job_id in after} == {("job.created",)}
