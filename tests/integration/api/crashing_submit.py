"""Submits a job again and again, and dies one line of the service's code later each time.

`python -m tests.integration.api.crashing_submit DATASET_ID ACKNOWLEDGED_FILE`, configured as the
API is. Each try is a process of its own with an `Idempotency-Key` of its own, `crash-0`, `crash-1`,
…; what is acknowledged is written down as a line `key job_id`. The last try is the first that was
not killed.
"""

import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi.testclient import TestClient

from api.app import create_app
from core.settings import Settings

_ROOT = Path(__file__).parents[3]
#: Where a submission's transactions begin and end, and what is written in them.
_TRACED = {
    str(_ROOT / path)
    for path in (
        "api/idempotency.py",
        "core/platform/db/engine.py",
        "core/platform/idempotency.py",
        "core/platform/jobs/events.py",
    )
}
_KILLED = 77


class Crash:
    """A tracer that ends the process, as `kill -9` would, at the nth line of the traced files."""

    def __init__(self, lines_left: int) -> None:
        self._lines_left = lines_left
        self.is_armed = False

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> "Crash | None":
        if not self.is_armed or frame.f_code.co_filename not in _TRACED:
            return None
        if event == "line":
            if self._lines_left == 0:
                os._exit(_KILLED)
            self._lines_left -= 1
        return self


def main(dataset_id: str, acknowledged: Path) -> None:
    app = create_app(Settings())
    number = 0
    while _try_in_child(app, dataset_id, number, acknowledged) == _KILLED:
        number += 1


def _try_in_child(app: Any, dataset_id: str, number: int, acknowledged: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _submit(app, dataset_id, number, acknowledged)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _submit(app: Any, dataset_id: str, number: int, acknowledged: Path) -> int:
    key = f"crash-{number}"
    crash = Crash(number)
    threading.settrace(crash)  # for threads that begin from now on, as the client's do
    with TestClient(app, base_url="http://127.0.0.1") as client:
        crash.is_armed = True
        answer = client.post(
            "/v1/fine_tuning/jobs",
            json={"dataset_id": dataset_id, "method": {"type": "idat", "pair": "starter"}},
            headers={"idempotency-key": key},
        )
        crash.is_armed = False
    if answer.status_code != 201:
        sys.stderr.write(answer.text)
        return 1
    with acknowledged.open("a") as file:
        file.write(f"{key} {answer.json()['id']}\n")
    return 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
