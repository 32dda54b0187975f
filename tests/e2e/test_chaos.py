"""A short chaos run on each back end; the long one is `python -m benchmarks.chaos`."""

import os
import shutil
from pathlib import Path

import psycopg
import pytest

from benchmarks.chaos.options import Options
from benchmarks.chaos.plans import LONG, SHORT
from benchmarks.chaos.report import format_result
from benchmarks.chaos.run import run_chaos

_POSTGRES_URL = os.environ.get(  # noqa: TID251 - tests find their servers here, not in the settings
    "IDAT_TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/test"
)

#: Each strikes once, in an order drawn from the seed.
_OF_PROCESSES = (
    "kill_api",
    "kill_worker",
    "kill_pool",
    "kill_trainer",
    "pause_worker",
    "restart_api",
    "restart_worker",
)
_KINDS = {
    "embedded": (*_OF_PROCESSES, "lock_database", "kill_trainer", "kill_worker"),
    "scaled": (
        *_OF_PROCESSES,
        "terminate_sessions",
        "stall_database",
        "flush_redis",
        "kill_redis",
        "reset_store",
        "refuse_store",
    ),
}


def skip_without_servers() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    try:
        psycopg.connect(_POSTGRES_URL, connect_timeout=2).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"PostgreSQL at IDAT_TEST_DATABASE_URL cannot be reached: {error}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["embedded", "scaled"])
def test_no_promise_is_broken(backend: str, tmp_path: Path) -> None:
    if backend == "scaled":
        skip_without_servers()
    options = Options(
        backend=backend,
        faults=len(_KINDS[backend]),
        seed=1,
        time_limit_s=300,
        settle_s=300,
        mean_gap_s=1.5,
        customers=3,
        kinds=_KINDS[backend],
        plans=(SHORT, LONG),
        folder=tmp_path / "run",
        postgresql_url=_POSTGRES_URL,
    )
    lines: list[str] = []
    result = run_chaos(options, lines.append)
    told = "\n".join([*lines, format_result(options, result)])
    assert result.violations == [], told
    assert result.is_complete, told
    assert set(result.faults) <= set(_KINDS[backend])
    assert result.endings["succeeded"] >= 2, told
