"""A worker's jobs share its memory: what is left, who has what, and what a dead holder had."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.platform.db.tables import JobRow
from core.settings import Settings
from tests.integration.platform.rows import add_job, job_of
from tests.unit.worker.processes import wait_for_death
from worker import memory
from worker.claims import claim_next_job
from worker.memory import SharedMemory, find_total_bytes
from worker.runtime import Runtime

ROOT = Path(__file__).parents[3]
GIB = 1 << 30
HOLDER = """
import sys, time
from pathlib import Path
from worker.memory import SharedMemory
memory = SharedMemory(Path(sys.argv[1]), 100)
with memory.hold_claims():
    memory.take(1, 60)
print("taken", flush=True)
time.sleep(3600)
"""


def free_of(shared: SharedMemory) -> int | None:
    with shared.hold_claims():
        return shared.find_free_bytes()


class TestLedger:
    def test_what_is_left_is_what_running_jobs_leave(self, tmp_path: Path) -> None:
        shared = SharedMemory(tmp_path / "worker", 100)
        assert free_of(shared) is None  # nothing runs: anything may
        held = []
        for slot, need in enumerate((30, 50)):
            with shared.hold_claims():
                held.append(shared.take(slot, need))
        assert free_of(shared) == 20
        os.close(held[0])
        assert free_of(shared) == 50
        with shared.hold_claims():
            held[0] = shared.take(0, 70)
        assert free_of(shared) == 0
        for descriptor in held:
            os.close(descriptor)
        assert free_of(shared) is None

    def test_a_killed_holder_leaves_everything(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"taken\n"
            shared = SharedMemory(tmp_path, 100)
            assert free_of(shared) == 40
            holder.kill()
            holder.wait()
            wait_for_death(holder.pid)
            assert free_of(shared) is None


class TestClaims:
    @pytest.fixture
    def runtime(self, tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
        settings = Settings.model_validate(
            {
                "data_dir": tmp_path / "data",
                "database_url": sqlite_url,
                "worker_slots": 3,
                "worker_memory_bytes": 10 * GIB,
            }
        )
        runtime = Runtime(settings)
        yield runtime
        runtime.database.dispose()

    def add(self, runtime: Runtime, need_bytes: int) -> str:
        job_id = add_job(runtime.database)
        with runtime.database.write() as session:
            session.get_one(JobRow, job_id).memory_bytes = need_bytes
        return job_id

    def test_jobs_run_together_as_long_as_they_fit(self, runtime: Runtime) -> None:
        first, big, small = (self.add(runtime, need * GIB) for need in (6, 5, 4))
        with claim_next_job(runtime, 0) as one, claim_next_job(runtime, 1) as two:
            assert one is not None
            assert two is not None
            assert (one.row_id, two.row_id) == (first, small)
            with claim_next_job(runtime, 2) as none:
                assert none is None
            assert job_of(runtime.database, big).state == "queued"
        with claim_next_job(runtime, 2) as three:
            assert three is not None
            assert three.row_id == big

    def test_what_needs_more_than_there_is_runs_alone(self, runtime: Runtime) -> None:
        huge = self.add(runtime, 900 * GIB)
        self.add(runtime, GIB)
        with claim_next_job(runtime, 0) as one:
            assert one is not None
            assert one.row_id == huge
            with claim_next_job(runtime, 1) as none:
                assert none is None


class TestDetection:
    def fake_smi(self, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        command = folder / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        memory._find_gpu_bytes.cache_clear()

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("echo 81559; echo 40960", 40960 << 20),
            ("echo '[N/A]'", None),
            ("echo no devices were found; exit 6", None),
        ],
    )
    def test_the_smallest_gpu_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: int | None
    ) -> None:
        self.fake_smi(tmp_path, monkeypatch, script)
        try:
            assert find_total_bytes(Settings()) == expected
            assert find_total_bytes(Settings.model_validate({"device": "cpu"})) is None
            given = Settings.model_validate({"worker_memory_bytes": 7})
            assert find_total_bytes(given) == 7
        finally:
            memory._find_gpu_bytes.cache_clear()
