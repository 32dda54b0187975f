"""Plain adapters and iDAT on six small tasks, with the starter pair and no download.

Three commands write to one results file, a JSON line for each run, as soon as it is known; runs
that are in the file are not run again, so any command can be stopped (Ctrl-C) and repeated.
`select` tries learning rates on validation images, `table` (the default) measures every row,
`ablate` varies one setting at a time. `--report` prints the tables from the file and runs nothing.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.miniature.ablation import (
    ABLATION_SEEDS,
    ABLATION_TASKS,
    format_ablations,
    list_ablation_jobs,
)
from benchmarks.miniature.jobs import Job, build_key
from benchmarks.miniature.methods import METHODS
from benchmarks.miniature.report import Results, format_rates, format_report
from benchmarks.miniature.rows import Row, append_row, read_rows
from benchmarks.miniature.selection import (
    SELECTION_SEED,
    choose_rates,
    list_selected_tasks,
    list_selection_jobs,
)
from benchmarks.miniature.suite import CIFAR, SIZES, TASKS
from benchmarks.miniature.table import list_table_jobs
from core.clock import monotonic_s
from core.errors import AppError, InvalidError

SEEDS = (0, 1, 2)

_COMMANDS = ("select", "table", "ablate")
_STOPPED = 130  # the shell's exit code of a program that SIGINT ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        check_options(options)
        if options.report:
            print(_report(options))
        else:
            _run(list(list_jobs(options)), options)
    except AppError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished runs are in {options.out}, the same command goes on from there")
        return _STOPPED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.miniature",
        description=__doc__,
        epilog=f"tasks: {' '.join(TASKS)}\nmethods: {' '.join(METHODS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=_COMMANDS, help="default: table")
    parser.add_argument(
        "--report",
        action="store_true",
        help="print the command's tables and run nothing; without a command, all of them",
    )
    parser.add_argument(
        "--size",
        default="small",
        choices=tuple(SIZES),
        help="small (default): for two cores; full: 800 + 200 images and 100 epochs, for a GPU",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results/miniature.jsonl"),
        help="results file (default: %(default)s)",
    )
    parser.add_argument(
        "--cifar",
        type=Path,
        metavar="ZIP",
        help=f"holds */{{train,val,test}}/CLASS/*.jpg; without it, {CIFAR} is left out",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help=f"default: all; for ablate {' '.join(ABLATION_TASKS)}",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=tuple(METHODS),
        metavar="METHOD",
        help="rows of the table (default: all)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        help=f"default: {_listed(SEEDS)}; for ablate {_listed(ABLATION_SEEDS)}",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes of one thread each (default: 1)"
    )
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Fill in tasks and seeds, and leave CIFAR out, saying so, where its zip was not named.

    Raises:
        InvalidError: options that cannot be meant.
    """
    if options.workers < 1:
        raise InvalidError("--workers must be at least 1")
    ablates = options.command == "ablate"
    options.seeds = options.seeds or list(ABLATION_SEEDS if ablates else SEEDS)
    if SELECTION_SEED in options.seeds or min(options.seeds) < 0:
        raise InvalidError(
            f"--seeds must be 0 or more, and not {SELECTION_SEED}: that one chooses the rates"
        )
    options.tasks = options.tasks or list(ABLATION_TASKS if ablates else TASKS)
    if CIFAR not in options.tasks or options.report:
        return
    if options.cifar is not None and options.cifar.is_file():
        return
    reason = "no --cifar was given" if options.cifar is None else f"{options.cifar} is no file"
    print(f"{CIFAR} is left out: {reason}", file=sys.stderr)
    options.tasks = [task for task in options.tasks if task != CIFAR]
    if not options.tasks:
        raise InvalidError("no task is left; name the zip with --cifar")


def list_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Yield the runs of the command.

    Raises:
        InvalidError: the learning rates are not chosen yet.
    """
    size = SIZES[options.size]
    if options.command == "select":
        yield from list_selection_jobs(options.tasks, size)
        return
    rates = choose_rates(rows_by_key(read_rows(options.out)), size, needed=options.tasks)
    print("learning rates, from validation: " + ", ".join(f"{k} {v:g}" for k, v in rates.items()))
    if options.command == "ablate":
        yield from list_ablation_jobs(options.tasks, options.seeds, rates, size)
        return
    methods = [METHODS[name] for name in options.methods]
    yield from list_table_jobs(options.tasks, methods, options.seeds, rates, size)


def rows_by_key(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows by the key of their job."""
    return {build_key(row): row for row in rows}


def _report(options: argparse.Namespace) -> str:
    size = SIZES[options.size]
    rows = rows_by_key(read_rows(options.out))
    rates = choose_rates(rows, size)
    tasks = [task for task in options.tasks if task in list_selected_tasks(rows, size)]
    if options.command == "select":
        return format_rates(rows, rates, size)
    if options.command == "ablate":
        return format_ablations(rows, tasks, options.seeds, rates, size)
    methods = [METHODS[name] for name in options.methods]
    parts = [
        format_rates(rows, rates, size),
        format_report(Results(rows, tasks, methods, options.seeds, rates, size)),
    ]
    if options.command is None:
        parts.append(format_ablations(rows, ABLATION_TASKS, ABLATION_SEEDS, rates, size))
    return "\n\n".join(parts)


def _run(jobs: list[Job], options: argparse.Namespace) -> None:
    """Run what is not in the file yet, and print a line for each."""
    known = rows_by_key(read_rows(options.out))
    missing = [job for job in jobs if job.key not in known]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are in {options.out}", flush=True)
    if not missing:
        return
    from benchmarks.miniature.pool import run_jobs  # noqa: PLC0415 - a report needs no torch

    # A service manager's way to stop is treated like a person's.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started_s = monotonic_s()
    with closing(run_jobs(missing, workers=options.workers, cifar=options.cifar)) as rows:
        for number, row in enumerate(rows, start=1):
            append_row(options.out, row)
            left_s = (monotonic_s() - started_s) / number * (len(missing) - number)
            print(
                f"{_show(row)}  [{number}/{len(missing)}, {left_s / 60:.0f} min left]", flush=True
            )


def _listed(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))


def _show(row: Row) -> str:
    name = f"{row['task']:19} {row['method']:12} seed {row['seed']}"
    if "error" in row:
        return f"{name}  {row['error']}"
    figures = [f"{split} {100 * row[split]:.1f}" for split in ("val", "test") if split in row]
    return f"{name}  {'  '.join(figures)} %"


if __name__ == "__main__":
    sys.exit(main())
