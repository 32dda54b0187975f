"""A child that does what its request says: `python -m tests.unit.worker.children.scripted DIR`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.child import listen_for_stop, read_request, send, send_failure

Request = dict[str, Any]
FOREVER_S = 3600


def log(text: str) -> None:
    send({"type": "log", "message": text})


def start_grandchild() -> None:
    """Start a process that keeps this one's stdout open."""
    sleeper = subprocess.Popen(["sleep", str(FOREVER_S)])
    send({"type": "pid", "pid": sleeper.pid})


def succeed(request: Request) -> None:
    send({"type": "progress", "step": 1})
    for text in request.get("log", []):
        log(text)
    send({"type": "done", "metrics": {"accuracy": 0.5}})


def succeed_when_told(request: Request) -> None:
    for text in request["log"]:
        log(text)
    while not Path(request["go_file"]).exists():
        time.sleep(0.01)
    send({"type": "done"})


def diverge(_request: Request) -> None:
    send({"type": "done", "metrics": {"loss": float("nan"), "least": float("-inf")}})


def fail(_request: Request) -> None:
    send_failure("out_of_memory", "too big", user=False, data={"bytes": 7})


def exit_badly(_request: Request) -> None:
    sys.stderr.write("the reason why\n")
    sys.exit(3)


def say_done_and_exit_badly(_request: Request) -> None:
    send({"type": "done"})
    sys.exit(3)


def exit_without_a_word(_request: Request) -> None:
    return


def kill_yourself(_request: Request) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def talk_nonsense(_request: Request) -> None:
    lines = [b"Epoch 1: 100%", b"\xff\xfe\x00", b'{"a": 1}', b"[1]", b"null", b'{"type": 3}']
    lines += [b"[" * 100_000, b"x" * (3 << 20), b'{"type": "don']
    sys.stdout.buffer.write(b"\n".join(lines) + b"\n")
    sys.stdout.buffer.flush()
    send({"type": "done"})


def hang(_request: Request) -> None:
    time.sleep(FOREVER_S)


def hang_without_stdout(_request: Request) -> None:
    sys.stdout.flush()
    os.close(1)
    time.sleep(FOREVER_S)


def hang_with_grandchild(_request: Request) -> None:
    start_grandchild()
    time.sleep(FOREVER_S)


def leave_a_grandchild(_request: Request) -> None:
    start_grandchild()
    send({"type": "done"})


def die_and_leave_a_grandchild(request: Request) -> None:
    start_grandchild()
    kill_yourself(request)


def main() -> None:
    stop = listen_for_stop()
    request = read_request(Path(sys.argv[1]))
    send({"type": "pid", "pid": os.getpid()})

    def stop_when_asked(request: Request) -> None:
        stop.wait()
        if "stopped_file" in request:
            Path(request["stopped_file"]).write_text("stopped\n")
        send({"type": "stopped"})

    scripts: list[Callable[[Request], None]] = [
        succeed,
        succeed_when_told,
        diverge,
        fail,
        exit_badly,
        say_done_and_exit_badly,
        exit_without_a_word,
        kill_yourself,
        talk_nonsense,
        hang,
        hang_without_stdout,
        hang_with_grandchild,
        leave_a_grandchild,
        die_and_leave_a_grandchild,
        stop_when_asked,
    ]
    {script.__name__: script for script in scripts}[request["script"]](request)


if __name__ == "__main__":
    main()
