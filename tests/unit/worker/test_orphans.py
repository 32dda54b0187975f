"""A child whose supervisor is killed dies too, by either of two ways."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.worker.processes import is_dead, wait_for_death, wait_for_file
from worker.child import ORPHANED_EXIT_CODE, REQUEST_FILE

ROOT = Path(__file__).parents[3]
CHILD = "tests.unit.worker.children.scripted"
SUPERVISING = "tests.unit.worker.children.supervising"

#: Starts a child that shares this process's own stdin and stdout, and waits for it.
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-m", "{CHILD}", sys.argv[1]])
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / REQUEST_FILE).write_text(json.dumps({"script": "hang"}))
    return tmp_path


@pytest.fixture
def held_pipe() -> Iterator[int]:
    """The reading end of a pipe that never ends, because this process holds the other end."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def read_pid(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdout is not None
    pid: int = json.loads(process.stdout.readline())["pid"]
    return pid


def test_the_end_of_stdin_ends_the_child(workdir: Path) -> None:
    command = [sys.executable, "-m", CHILD, str(workdir)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert read_pid(child) == child.pid
        assert not is_dead(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == ORPHANED_EXIT_CODE


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_the_death_of_the_parent_ends_the_child(workdir: Path, held_pipe: int) -> None:
    """Even though its stdin stays open, as it would while its interpreter is stuck in C code."""
    command = [sys.executable, "-c", PARENT, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT, stdin=held_pipe, stdout=subprocess.PIPE) as parent:
        pid = read_pid(parent)
        assert not is_dead(pid)
        parent.kill()
        wait_for_death(pid)


def test_a_killed_supervisor_leaves_no_child(workdir: Path, sqlite_url: str) -> None:
    command = [sys.executable, "-m", SUPERVISING, sqlite_url, str(workdir)]
    with subprocess.Popen(command, cwd=ROOT) as supervisor:
        pid = int(wait_for_file(workdir / "pid"))
        assert not is_dead(pid)
        supervisor.kill()
        wait_for_death(pid)
