"""Looking at processes from outside."""

import time
from pathlib import Path

_PATIENCE_S = 60.0


def is_dead(pid: int) -> bool:
    """Whether a process has ended, buried or not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def wait_for_death(pid: int) -> None:
    """Wait until a process has ended."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not is_dead(pid):
        assert time.monotonic() < deadline_s, f"process {pid} is still alive"
        time.sleep(0.02)


def wait_for_file(path: Path) -> str:
    """Wait until a file has a whole line, and return it."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline_s, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text().strip()
