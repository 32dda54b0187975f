"""The launcher as a user meets it, around stand-ins for the API and the worker.

The launcher knows its children by module name only, so a folder with packages of those names is
all it takes to see what it does with children that crash, linger or never get ready.
"""

import contextlib
import fcntl
import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.settings import build_environment
from embedded.lock import find_owner

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60

#: Holds a lock on `alive-NAME` as long as the process lives: tells life from a zombie anywhere.
ALIVE = """
import fcntl, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(os.environ["IDAT_DATA_DIR"])
def hold(name):
    file = (folder / f"alive-{name}").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    (folder / f"{name}.pids").open("a").write(f"{os.getpid()}\\n")
    return file
"""

API = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["IDAT_PORT"])), Handler)
file = hold("api")
print("api listens", flush=True)
server.serve_forever()
"""

WORKER = """
file = hold("worker")
def stop(*_):
    (folder / "worker-was-asked").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
while True:
    time.sleep(0.05)
"""

STUBBORN_WORKER = """
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, "-m", "worker", "grandchild"])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = hold("worker" if len(sys.argv) == 1 else "grandchild")
while True:
    time.sleep(0.05)
"""

#: Lives at first, so that the stack gets ready.
CURSED_WORKER = """
first = folder / "first"
if not first.exists():
    first.touch()
    time.sleep(2)
sys.exit("the model is cursed")
"""


class Launcher:
    def __init__(self, folder, *, worker=WORKER, api=API, migrations=""):
        self.folder = folder
        self.data_dir = folder / "data"
        for name, body in (("api", api), ("worker", worker), ("migrations", migrations)):
            package = folder / "modules" / name
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            (package / "__main__.py").write_text(ALIVE + body)
        self.processes = []

    def start(self, **settings):
        environment = build_environment(
            {
                "PYTHONPATH": str(ROOT),
                "IDAT_DATA_DIR": str(self.data_dir),
                "IDAT_HOST": "127.0.0.1",
                "IDAT_PORT": "0",
                **settings,
            }
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "embedded", "up"],
            cwd=self.folder / "modules",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def start_until_ready(self, **settings):
        process = self.start(**settings)
        line = ""
        while "Ctrl-C stops it." not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
        return process

    def pids(self, name):
        return [int(line) for line in (self.data_dir / f"{name}.pids").read_text().split()]

    def is_alive(self, name):
        path = self.data_dir / f"alive-{name}"
        if not path.exists():
            return False
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def clean_up(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        for file in self.data_dir.glob("*.pids"):
            for pid in self.pids(file.stem):
                if self.is_alive(file.stem):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launcher(tmp_path, request):
    launcher = Launcher(tmp_path, **getattr(request, "param", {}))
    yield launcher
    launcher.clean_up()


def answers_ready(url):
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/readyz")
    status = connection.getresponse().status
    connection.close()
    return status == 200


class TestUp:
    def test_announces_an_api_that_answers(self, launcher):
        process = launcher.start_until_ready()

        owner = find_owner(launcher.data_dir)

        assert owner.pid == process.pid
        assert answers_ready(owner.url)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_stops_everything_politely(self, launcher, number):
        process = launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("worker"))

        process.send_signal(number)

        assert process.wait(PATIENCE_S) == 0
        assert not launcher.is_alive("api")
        assert not launcher.is_alive("worker")
        assert (launcher.data_dir / "worker-was-asked").exists()

    def test_repeats_log_lines_with_the_name_of_the_child(self, launcher):
        process = launcher.start_until_ready()
        process.terminate()

        _out, errors = process.communicate(timeout=PATIENCE_S)

        assert "api    | api listens" in errors
        assert "api listens" in (launcher.data_dir / "logs" / "api.log").read_text()

    @pytest.mark.parametrize("launcher", [{"worker": STUBBORN_WORKER}], indirect=True)
    def test_a_second_signal_kills_at_once(self, launcher):
        process = launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("worker"))
        launcher.wait_until(lambda: launcher.is_alive("grandchild"))

        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if "stopping" in line:
                break
        process.send_signal(signal.SIGINT)

        assert process.wait(PATIENCE_S) == 0
        assert not launcher.is_alive("worker")
        launcher.wait_until(lambda: not launcher.is_alive("grandchild"))

    def test_second_stack_on_one_folder_is_refused(self, launcher):
        first = launcher.start_until_ready()

        second = launcher.start()
        _out, errors = second.communicate(timeout=PATIENCE_S)

        assert second.returncode == 2
        assert f"pid {first.pid}" in errors
        assert first.poll() is None

    def test_names_a_wrong_setting(self, launcher):
        process = launcher.start(IDAT_PORT="many")

        _out, errors = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 2
        assert "IDAT_PORT" in errors


class TestDeaths:
    def test_a_child_that_dies_is_started_again(self, launcher):
        process = launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("worker"))
        (first,) = launcher.pids("worker")

        os.kill(first, signal.SIGKILL)

        launcher.wait_until(lambda: len(launcher.pids("worker")) == 2)
        assert process.poll() is None

    @pytest.mark.parametrize(
        "launcher",
        [{"worker": CURSED_WORKER}],
        indirect=True,
    )
    def test_gives_up_on_a_child_that_keeps_dying(self, launcher):
        process = launcher.start()

        _out, errors = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 1
        assert "the model is cursed" in errors
        assert not launcher.is_alive("api")

    @pytest.mark.parametrize("launcher", [{"api": "sys.exit('no key')"}], indirect=True)
    def test_a_child_that_cannot_start_ends_the_stack_with_its_words(self, launcher):
        process = launcher.start()

        _out, errors = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 1
        assert "the api ended with exit code 1 while starting" in errors
        assert "no key" in errors
        assert not launcher.is_alive("worker")

    @pytest.mark.parametrize("launcher", [{"migrations": "sys.exit('bad schema')"}], indirect=True)
    def test_a_failed_migration_starts_nothing(self, launcher):
        process = launcher.start()

        _out, errors = process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 1
        assert "bad schema" in errors
        assert not (launcher.data_dir / "api.pids").exists()


class TestLeash:
    def test_children_finish_when_the_launcher_is_killed(self, launcher):
        process = launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("worker"))

        process.kill()

        launcher.wait_until(lambda: not launcher.is_alive("api"))
        launcher.wait_until(lambda: not launcher.is_alive("worker"))
        assert (launcher.data_dir / "worker-was-asked").exists()

    @pytest.mark.parametrize("launcher", [{"worker": STUBBORN_WORKER}], indirect=True)
    def test_what_a_killed_child_leaves_behind_is_ended(self, launcher):
        launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("grandchild"))

        os.kill(launcher.pids("worker")[0], signal.SIGKILL)

        # The second one writes its pid once it holds the lock that the first one held for life.
        launcher.wait_until(lambda: len(launcher.pids("grandchild")) == 2)

    def test_a_new_stack_waits_for_the_children_of_a_killed_one(self, launcher):
        first = launcher.start_until_ready()
        launcher.wait_until(lambda: launcher.is_alive("worker"))
        first.kill()
        first.wait()

        launcher.start_until_ready()

        launcher.wait_until(lambda: len(launcher.pids("worker")) == 2)
