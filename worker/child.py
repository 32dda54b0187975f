"""The child's side of supervision: how a process that does the work talks to its supervisor.

The supervisor starts `python -m worker.<module> <workdir>` with a request in the file
`<workdir>/request.json`, reads JSON lines from the child's stdout, and writes commands, one a line,
to its stdin. A child whose stdin ends has lost its supervisor and exits at once, so that no orphan
keeps a GPU.
"""

import contextlib
import ctypes
import ctypes.util
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

REQUEST_FILE = "request.json"
STOP_COMMAND = "stop"
#: Least time between two messages of progress.
PROGRESS_INTERVAL_S = 0.5
#: Exit code of a child that found itself orphaned.
ORPHANED_EXIT_CODE = 86

_PR_SET_PDEATHSIG = 1
_send_lock = threading.Lock()


def read_request(workdir: Path) -> dict[str, Any]:
    """Return the supervisor's request."""
    request: dict[str, Any] = json.loads((workdir / REQUEST_FILE).read_text())
    return request


def send(message: dict[str, Any]) -> None:
    """Send one message to the supervisor; safe from any thread."""
    with _send_lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def send_failure(
    code: str, message: str, *, user: bool, data: dict[str, Any] | None = None
) -> None:
    """Send the final message of work that failed for a reason another attempt would meet again.

    Args:
        code: stable machine-readable reason.
        message: a sentence for a person, with the way out.
        user: whether the request is to blame rather than the service.
        data: figures that help.
    """
    owner = "user" if user else "system"
    send({"type": "failed", "code": code, "message": message, "class": owner, "data": data or {}})


def listen_for_stop() -> threading.Event:
    """Return an event that is set when the supervisor asks to stop; exit when it is gone."""
    stop = threading.Event()
    threading.Thread(target=_listen, args=(stop,), name="supervisor-pipe", daemon=True).start()
    _die_with_parent()
    return stop


def _listen(stop: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin:
            if line.strip() == STOP_COMMAND:
                stop.set()
    # No clean-up: another attempt may already own everything this process could touch.
    os._exit(ORPHANED_EXIT_CODE)


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL at the parent's death: the pipe's thread needs the interpreter lock."""
    if sys.platform != "linux":
        return
    library = ctypes.util.find_library("c")
    if library is None:
        return
    ctypes.CDLL(library, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
