"""Workers of several processes race for the jobs of one database, on purpose."""

import subprocess
import sys
from pathlib import Path

from core.platform.db.engine import Database
from tests.integration.platform.rows import add_dataset, add_job, job_of, models_of, tell_events

_ROOT = Path(__file__).parents[3]
CLAIMERS = 4
JOBS = 40


def test_each_attempt_is_one_workers(database: Database, database_url: str, tmp_path: Path) -> None:
    dataset_id, go_file = add_dataset(database), tmp_path / "go"
    jobs = [add_job(database, dataset_id) for _ in range(JOBS)]
    module = "tests.integration.platform.claiming"
    claimers = [
        subprocess.Popen(
            [sys.executable, "-m", module, database_url, f"host:{number}", str(go_file)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(CLAIMERS)
    ]
    try:
        for claimer in claimers:
            assert claimer.stdout is not None
            assert claimer.stdout.readline() == "ready\n"
        go_file.touch()
        claimed = [line for each in claimers for line in each.communicate()[0].splitlines()]
        assert [claimer.returncode for claimer in claimers] == [0] * CLAIMERS
    finally:
        for claimer in claimers:
            claimer.kill()
            claimer.wait()
            assert claimer.stdout is not None
            claimer.stdout.close()
    # No attempt was given out twice, and none was left out.
    assert len(claimed) == len(set(claimed))
    for job_id in jobs:
        row = job_of(database, job_id)
        assert row.state == "succeeded"
        assert [f"{job_id} {attempt + 1}" in claimed for attempt in range(row.attempt)] == (
            [True] * row.attempt
        )
        assert tell_events(database, job_id).count("attempt.started") == row.attempt
    assert sorted(str(model.job_id) for model in models_of(database)) == sorted(jobs)
