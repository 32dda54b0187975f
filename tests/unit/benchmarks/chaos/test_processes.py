"""Services are started again after their end, and every process of a run is found."""

import signal
import sys
import threading
from random import Random

import pytest

from benchmarks.chaos.processes import (
    Service,
    find_owned,
    list_children,
    list_descendants,
    signal_all,
)
from core.settings import build_environment

_SLEEP = "import time; time.sleep(60)"
#: A process with a child that has a child.
_FAMILY = (
    "import subprocess, sys, time; "
    f"p = subprocess.Popen([sys.executable, '-c', "
    f'\'import subprocess, sys; subprocess.run([sys.executable, "-c", "{_SLEEP}"])\']); p.wait()'
)


@pytest.fixture
def build(tmp_path):
    services = []

    def build(code):
        environment = build_environment({"IDAT_DATA_DIR": str(tmp_path)})
        command = [sys.executable, "-c", code]
        services.append(Service("one", command, environment=environment, logs=tmp_path))
        services[-1].start()
        return services[-1]

    yield build
    signal_all([found.pid for found in find_owned(tmp_path)], signal.SIGKILL)
    for service in services:
        service.end()


def wait_until(condition):
    for _ in range(300):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("waited 30 s")


class TestService:
    def test_is_started_again_after_an_end_that_was_brought_about(self, build):
        service, deaths = build(_SLEEP), []
        first = service.send(signal.SIGKILL, ends_it=True)
        service.wait(30)
        wait_until(
            lambda: service.revive(Random(0), lambda *death: deaths.append(death)) or service.pid
        )
        assert service.pid != first
        assert (service.starts, deaths) == (2, [])

    def test_an_end_that_nobody_brought_about_is_told_once(self, build):
        service, deaths = build("import sys; sys.exit(3)"), []
        service.wait(30)
        wait_until(
            lambda: (
                service.revive(Random(0), lambda one, code: deaths.append((one, code)))
                or service.starts == 2
            )
        )
        assert deaths == [(service, 3)]

    def test_what_does_not_run_cannot_be_signalled(self, build):
        service = build("")
        service.wait(30)
        with pytest.raises(ProcessLookupError):
            service.send(signal.SIGTERM, ends_it=True)


class TestFinding:
    def test_every_generation_is_found(self, build, tmp_path):
        service = build(_FAMILY)
        wait_until(lambda: len(list_descendants(service.pid)) == 2)
        (child,) = list_children(service.pid)
        tree = {service.pid, *list_descendants(service.pid)}
        assert child in tree
        assert {found.pid for found in find_owned(tmp_path)} == tree

    def test_orphans_are_found_and_other_runs_are_not(self, build, tmp_path):
        service = build(_FAMILY)
        wait_until(lambda: len(list_descendants(service.pid)) == 2)
        tree = list_descendants(service.pid)
        service.send(signal.SIGKILL, ends_it=True)
        service.wait(30)
        assert {found.pid for found in find_owned(tmp_path)} == set(tree)
        assert find_owned(tmp_path / "other") == []

    def test_the_dead_are_not_found(self, build, tmp_path):
        service = build(_SLEEP)
        wait_until(lambda: [f.pid for f in find_owned(tmp_path, "time.sleep")] == [service.pid])
        signal_all([service.pid], signal.SIGKILL)
        wait_until(lambda: find_owned(tmp_path) == [])
