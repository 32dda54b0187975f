"""Chaos: strike a running service with faults while customers use it, and see what it kept.

Starts two APIs and two workers as real processes, lets customers create, cancel, pause, resume and
repeat small jobs over HTTP, and meanwhile kills, stops, restarts, cuts off and fills up what the
service consists of and what it runs on. Afterwards every accepted job must have ended in exactly
one way, with exactly the bytes of an undisturbed run, and nothing may be left behind. Exits with 1
if anything was violated, with 2 if the run could not be made.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.options import Options, Result
from benchmarks.chaos.report import build_row, format_result
from benchmarks.chaos.run import run_chaos
from benchmarks.miniature.rows import append_row
from core.clock import monotonic_s
from core.errors import AppError

_STOPPED = 130  # the shell's exit code of a program that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    given = build_parser().parse_args(arguments)
    options = Options(
        backend=given.backend,
        store=given.store,
        faults=given.faults,
        seed=given.seed,
        time_limit_s=given.time_limit_s,
        settle_s=given.settle_s,
        mean_gap_s=given.gap_s,
        customers=given.customers,
        kinds=tuple(given.kinds) if given.kinds else None,
        folder=given.keep,
        postgresql_url=given.postgresql,
    )
    # A service manager's way to stop is treated like a person's.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_s = monotonic_s()

    def tell(line: str) -> None:
        print(f"[{monotonic_s() - started_s:7.1f} s] {line}", flush=True)

    try:
        result = run_chaos(options, tell)
    except AppError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; every process of the run has been ended")
        return _STOPPED
    print("\n" + format_result(options, result))
    if given.out is not None:
        append_row(given.out, build_row(options, result))
    return _conclude(result, is_kept=given.keep is not None)


def _conclude(result: Result, *, is_kept: bool) -> int:
    if result.violations or is_kept:
        print(f"\nlogs are in {result.folder / 'logs'}")
    else:
        shutil.rmtree(result.folder)
    if not result.is_complete:
        print("\nthe time was up before as many faults had struck as were asked for")
    return 1 if result.violations else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        epilog=f"faults: {' '.join(FAULTS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=("embedded", "scaled"),
        default="embedded",
        help="embedded (default): SQLite, a folder, no broker; scaled: a PostgreSQL database and "
        "a redis-server of its own, which need a server and the program",
    )
    parser.add_argument(
        "--store",
        choices=("s3", "folder"),
        default="s3",
        help="of scaled: an S3 server of its own (default), or a folder",
    )
    parser.add_argument(
        "--faults", type=int, default=40, help="how many must strike (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of faults, customers and delays (default: %(default)s)"
    )
    parser.add_argument(
        "--time-limit-s",
        type=float,
        default=1800.0,
        help="begin no fault after so long (default: %(default)s)",
    )
    parser.add_argument(
        "--settle-s",
        type=float,
        default=600.0,
        help="how long jobs may take to end after the last fault (default: %(default)s)",
    )
    parser.add_argument(
        "--gap-s", type=float, default=4.0, help="mean time between faults (default: %(default)s)"
    )
    parser.add_argument(
        "--customers", type=int, default=5, help="jobs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=tuple(FAULTS), metavar="FAULT", help="default: all"
    )
    parser.add_argument(
        "--postgresql",
        default="postgresql://postgres@127.0.0.1:5432/postgres",
        metavar="URL",
        help="server on which a database may be created (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="JSONL", help="append a row with the result")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="empty or new: for logs, and data where something was violated; without it they are "
        "removed after a run without violations",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
