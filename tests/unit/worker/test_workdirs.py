"""Working folders: held ones are left alone, those of the dead are removed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.worker.processes import wait_for_death
from worker.workdirs import (
    hold_workdir,
    hold_worker_folder,
    remove_abandoned,
    remove_dead_workers,
)

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from worker.workdirs import hold_workdir
with hold_workdir(Path(sys.argv[1]), "ftjob_1", 1) as workdir:
    (workdir / "big").write_text("x")
    print(workdir, flush=True)
    time.sleep(3600)
"""


def test_a_folder_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    with hold_workdir(tmp_path, "ftjob_1", 1) as workdir:
        (workdir / "file").write_text("x")
        assert workdir.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_exception_removes_the_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with hold_workdir(tmp_path, "ftjob_1", 1) as workdir:
            (workdir / "file").write_text("x")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_attempts_do_not_share_a_folder(tmp_path: Path) -> None:
    with hold_workdir(tmp_path, "ftjob_1", 1) as one, hold_workdir(tmp_path, "ftjob_1", 2) as two:
        assert one != two


def test_leftovers_of_the_same_attempt_are_not_found(tmp_path: Path) -> None:
    with hold_workdir(tmp_path, "ftjob_1", 1) as workdir:
        name = workdir.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "leftover").write_text("x")
    with hold_workdir(tmp_path, "ftjob_1", 1) as workdir:
        assert not (workdir / "leftover").exists()


def test_the_sweep_removes_the_folders_of_the_dead_only(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    with hold_workdir(tmp_path, "ftjob_2", 1) as held:
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            abandoned = Path(holder.stdout.readline().decode().strip())
            assert remove_abandoned(tmp_path) == []
            holder.kill()
            wait_for_death(holder.pid)
        assert remove_abandoned(tmp_path) == [abandoned]
        assert sorted(tmp_path.iterdir()) == sorted([held, tmp_path / "uploads"])


def test_the_sweep_removes_a_folder_whose_maker_died_before_it_was_locked(tmp_path: Path) -> None:
    abandoned = tmp_path / "attempt-ftjob_1-1"
    abandoned.mkdir()
    assert remove_abandoned(tmp_path) == [abandoned]
    assert not abandoned.exists()


def test_the_sweep_never_takes_a_folder_that_is_being_made(tmp_path: Path) -> None:
    over = threading.Event()

    def sweep() -> None:
        while not over.is_set():
            remove_abandoned(tmp_path)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        for attempt in range(300):
            with hold_workdir(tmp_path, "ftjob_1", attempt) as workdir:
                (workdir / "file").write_text("x")
                assert (workdir / "file").exists()
    finally:
        over.set()
        for sweeper in sweepers:
            sweeper.join()
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


WORKER = """
import multiprocessing, os, sys, time
from pathlib import Path
from worker.workdirs import hold_worker_folder
hold_worker_folder(Path(sys.argv[1]))
pool_process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
pool_process.start()
print(pool_process.pid, flush=True)
time.sleep(3600)
"""


def test_a_workers_folder_lasts_as_long_as_one_of_its_processes(tmp_path: Path) -> None:
    folder, own = tmp_path / "slots-host-1", tmp_path / "slots-host-2"
    own.mkdir()
    command = [sys.executable, "-c", WORKER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        pool_pid = int(main.stdout.readline())
        assert remove_dead_workers(tmp_path, own=own) == []
        main.kill()
        main.wait()
        assert remove_dead_workers(tmp_path, own=own) == []  # its slots are still in use
        os.kill(pool_pid, signal.SIGKILL)
        wait_for_death(pool_pid)
    assert remove_dead_workers(tmp_path, own=own) == [folder]
    assert list(tmp_path.iterdir()) == [own]


def test_a_new_worker_finds_nothing_of_one_with_the_same_name(tmp_path: Path) -> None:
    folder = tmp_path / "slots-host-1"
    folder.mkdir()
    (folder / "draining").touch()
    descriptor = hold_worker_folder(folder)
    assert not (folder / "draining").exists()
    os.close(descriptor)
