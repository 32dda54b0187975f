import os
import subprocess
import sys

import pytest

from embedded.lock import DataDirBusyError, DataDirLock, Owner, find_owner


def acquire(data_dir, *, timeout_s=0.0, say=lambda _message: None):
    lock = DataDirLock(data_dir)
    lock.acquire(timeout_s=timeout_s, say=say)
    return lock


def ended_process_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class TestDataDirLock:
    def test_creates_the_folder(self, tmp_path):
        lock = acquire(tmp_path / "new" / "data")

        assert (tmp_path / "new" / "data").is_dir()
        lock.release()

    def test_second_stack_is_told_who_runs(self, tmp_path):
        first = acquire(tmp_path)
        first.record_owner(Owner(os.getpid(), "http://127.0.0.1:8123"))

        with pytest.raises(DataDirBusyError, match=rf"pid {os.getpid()}, http://127.0.0.1:8123"):
            acquire(tmp_path, timeout_s=60)
        first.release()

    def test_is_free_again_after_release(self, tmp_path):
        acquire(tmp_path).release()

        acquire(tmp_path).release()

    def test_waits_for_the_children_of_a_launcher_that_died(self, tmp_path):
        leftover = acquire(tmp_path)
        leftover.record_owner(Owner(ended_process_pid(), "http://127.0.0.1:1"))
        said = []

        def end_leftover(message):
            said.append(message)
            leftover.release()

        acquire(tmp_path, timeout_s=60, say=end_leftover).release()
        assert len(said) == 1

    def test_gives_up_on_leftovers_that_stay(self, tmp_path):
        leftover = acquire(tmp_path)
        leftover.record_owner(Owner(ended_process_pid(), "http://127.0.0.1:1"))

        with pytest.raises(DataDirBusyError, match="earlier stack"):
            acquire(tmp_path, timeout_s=0.0)
        leftover.release()


class TestFindOwner:
    def test_returns_what_was_recorded_last(self, tmp_path):
        lock = acquire(tmp_path)
        lock.record_owner(Owner(123456, "http://127.0.0.1:54321"))
        lock.record_owner(Owner(1, "http://h:2"))

        assert find_owner(tmp_path) == Owner(1, "http://h:2")
        lock.release()

    def test_returns_none_before_anyone_has_recorded(self, tmp_path):
        assert find_owner(tmp_path) is None
        lock = acquire(tmp_path)
        assert find_owner(tmp_path) is None
        lock.release()
