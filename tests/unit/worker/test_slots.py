"""Slots are as many as they are, and a holder that is killed gives its slot back."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.worker.processes import wait_for_death
from worker.slots import hold_slot

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from worker.slots import hold_slot
with hold_slot(Path(sys.argv[1]), "train", 2) as slot:
    print(slot, flush=True)
    time.sleep(3600)
"""


def test_each_holder_gets_its_own_until_none_is_left(tmp_path: Path) -> None:
    with hold_slot(tmp_path, "train", 2) as one, hold_slot(tmp_path, "train", 2) as two:
        assert sorted([one, two], key=str) == [0, 1]
        with hold_slot(tmp_path, "train", 2) as none:
            assert none is None
        with hold_slot(tmp_path, "validate", 1) as other_kind:
            assert other_kind == 0
    with hold_slot(tmp_path, "train", 1) as again:
        assert again == 0


def test_an_exception_gives_the_slot_back(tmp_path: Path) -> None:
    def fail() -> None:
        with hold_slot(tmp_path, "train", 1):
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        fail()
    with hold_slot(tmp_path, "train", 1) as again:
        assert again == 0


def test_a_killed_holder_gives_its_slot_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"0\n"
        with hold_slot(tmp_path, "train", 2) as other:
            assert other == 1
        with hold_slot(tmp_path, "train", 1) as none:
            assert none is None
        holder.kill()
        wait_for_death(holder.pid)
        with hold_slot(tmp_path, "train", 1) as again:
            assert again == 0
