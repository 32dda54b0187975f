"""F15: which code may read the wall clock of its process, and that leases are not among it."""

import ast
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
#: Everything that claims, renews, expires, fences or waits for a lease.
_LEASES = [
    "core/platform/leases.py",
    "core/platform/db/clock.py",
    "core/platform/jobs",
    "core/platform/datasets/repository.py",
    "core/platform/collection/turns.py",
    "worker/supervisor.py",
    "worker/side_work.py",
    "worker/training.py",
    "worker/validation.py",
    "worker/poller.py",
    "worker/tasks.py",
    "worker/child.py",
]
_WALL_CLOCKS = {"now_s", "now", "utcnow", "today", "time", "time_ns", "gmtime", "localtime"}


def _list_files() -> list[Path]:
    paths = [_ROOT / name for name in _LEASES]
    return [file for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]


def find_wall_clocks(source: str) -> list[str]:
    """Return the calls in a source that tell the time of day."""
    called = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = (
        each.attr
        if isinstance(each, ast.Attribute)
        else each.id
        if isinstance(each, ast.Name)
        else ""
        for each in called
    )
    return [name for name in names if name in _WALL_CLOCKS]


@pytest.mark.parametrize("path", _list_files(), ids=lambda path: path.name)
def test_no_lease_decision_reads_the_process_clock(path: Path) -> None:
    assert find_wall_clocks(path.read_text()) == []


@pytest.mark.parametrize(
    "source", ["import time\ntime.time()", "now_s()", "datetime.now(UTC)", "x = 1 + clock.now_s()"]
)
def test_reading_it_would_be_seen(source: str) -> None:
    assert len(find_wall_clocks(source)) == 1


def test_the_databases_and_the_monotonic_clock_are_no_wall_clocks() -> None:
    assert find_wall_clocks("db_now()\nmonotonic_s()\ntime.monotonic()\ntime.sleep(1)") == []
