"""What a run tells: a table for people, a row for programs."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

from benchmarks.chaos.options import Options, Result
from benchmarks.chaos.processes import ROOT
from benchmarks.machine import describe_machine

_LIBRARIES = ("celery", "kombu", "sqlalchemy", "psycopg", "redis", "fastapi", "torch")


def format_result(options: Options, result: Result) -> str:
    """Return the tables of faults, endings and violations."""
    lines = [f"{'fault':20} {'struck':>6} {'nothing there':>14}"]
    lines += [
        f"{kind:20} {result.faults[kind]:6} {result.missed[kind]:14}"
        for kind in sorted({*result.faults, *result.missed})
    ]
    lines += [f"{'all':20} {result.faults.total():6}", ""]
    lines += [f"{'jobs ended':20} {'jobs':>6}"]
    lines += [f"{state:20} {count:6}" for state, count in sorted(result.endings.items())]
    lines += [f"{'all':20} {result.endings.total():6}", ""]
    tries = " ".join(f"{jobs}x{attempt}" for attempt, jobs in sorted(result.attempts.items()))
    times = (
        f"{result.fault_duration_s:.0f} s of faults, {result.settle_duration_s:.0f} s until every "
        f"job had ended, {result.duration_s:.0f} s in all"
    )
    lines += [
        f"attempts of a job (jobs x attempts): {tries}",
        f"back end {options.backend}, seed {options.seed}: {times}",
        "",
        f"violations: {len(result.violations)}",
    ]
    lines += [f"  {violation}" for violation in result.violations]
    return "\n".join(lines)


def build_row(options: Options, result: Result) -> dict[str, Any]:
    """Return the run as a row of a results file, with the machine and what the run can repeat."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": options.backend,
        "store": options.store if options.backend == "scaled" else "folder",
        "seed": options.seed,
        "faults_wanted": options.faults,
        "time_limit_s": options.time_limit_s,
        "mean_gap_s": options.mean_gap_s,
        "customers": options.customers,
        "kinds": list(options.kinds) if options.kinds else None,
        "faults": dict(sorted(result.faults.items())),
        "faults_struck": result.faults.total(),
        "faults_missed": dict(sorted(result.missed.items())),
        "jobs": dict(sorted(result.endings.items())),
        "jobs_accepted": result.endings.total(),
        "attempts": {str(attempt): jobs for attempt, jobs in sorted(result.attempts.items())},
        "violations": [vars(violation) for violation in result.violations],
        "duration_s": round(result.duration_s, 1),
        "fault_duration_s": round(result.fault_duration_s, 1),
        "settle_duration_s": round(result.settle_duration_s, 1),
        "machine": _describe_host(),
        "versions": _find_versions(),
    }


def _describe_host() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        **describe_machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes,
        "system": platform.platform(),
    }


def _find_versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "code": _find_commit(), **versions}


def _find_commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
