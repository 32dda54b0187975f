"""`python -m benchmarks.vtab check|run|table`: VTAB-1k on a folder of yours; docs/vtab.md."""

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from benchmarks.vtab.dataset import Dataset, find_recipes
from benchmarks.vtab.folder import check_root, require_usable
from benchmarks.vtab.lists import Expected, describe_problems
from benchmarks.vtab.markdown import describe_json, print_markdown
from benchmarks.vtab.methods import Method, find_methods
from benchmarks.vtab.options import (
    PAPER_SEEDS,
    STRICT_SEEDS,
    build_machine,
    build_parser,
    build_settings,
    find_work_dir,
    parse_only,
)
from benchmarks.vtab.results import ResultsFile, read_results
from benchmarks.vtab.runner import Runner
from benchmarks.vtab.service import ServiceRunner
from benchmarks.vtab.settings import Mode, Settings
from benchmarks.vtab.table import build_tables
from benchmarks.vtab.watch import Console, StopSignal
from core.errors import AppError, InvalidError
from core.ml.backbones.precision import resolve_device
from core.ml.training.determinism import make_deterministic
from core.ml.training.loop import TrainingStoppedError
from core.settings import build_environment

_FAILED = 1
_WRONG = 2
_STOPPED = 130
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def main(arguments: Sequence[str], *, expected: Expected | None = None) -> int:
    """Run a command; return its exit code.

    Args:
        arguments: of the command line.
        expected: other sizes than VTAB-1k's, for folders made on purpose.
    """
    options = build_parser().parse_args(arguments)
    commands = {"check": _check, "run": _run, "table": _table}
    try:
        return commands[options.command](options, expected or Expected())
    except TrainingStoppedError:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return _STOPPED
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return _STOPPED
    except AppError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return _WRONG
    except torch.OutOfMemoryError as error:
        print(
            f"the GPU is full; lower --batch-size, or take a smaller pair: {error}", file=sys.stderr
        )
        return _FAILED
    except OSError as error:
        print(f"{error}", file=sys.stderr)
        return _FAILED


def _check(options: argparse.Namespace, expected: Expected) -> int:
    datasets = check_root(
        options.root, find_recipes(options.datasets), expected=expected, decoding=options.decode
    )
    if options.json:
        print(json.dumps([_describe(dataset) for dataset in datasets], indent=2))
    else:
        for dataset in datasets:
            warnings = sum(not problem.is_fatal for problem in dataset.problems)
            state = "ok" if dataset.is_usable else "NOT USABLE" if dataset.lists else "missing"
            print(
                f"{dataset.recipe.code_name:22}{state:12}"
                + (dataset.digest[:16] if dataset.lists else "")
                + (f"  {warnings} warnings" if warnings else "")
            )
        for line in describe_problems(p for dataset in datasets for p in dataset.problems):
            print(line)
    return 0 if all(dataset.is_usable for dataset in datasets) else _WRONG


def _run(options: argparse.Namespace, expected: Expected) -> int:
    settings = build_settings(options)
    methods = find_methods(options.methods)
    seeds = list(dict.fromkeys(options.seeds or _default_seeds(settings)))
    _check_methods(settings, methods)
    if any(seed < 0 for seed in seeds):
        raise InvalidError("a seed is a whole number from 0")
    recipes = find_recipes(options.datasets)
    console = Console()
    with StopSignal() as stop:

        def say(line: str) -> None:
            stop.check()
            console.show(f"  {line}")

        datasets = check_root(
            options.root, recipes, expected=expected, decoding=options.decode, say=say
        )
        require_usable(datasets)
        for line in describe_problems(p for dataset in datasets for p in dataset.problems):
            console.say(f"warning: {line}")
        with ResultsFile(options.out) as results:
            if options.service:
                client_key = _read_key(options.api_key_env)
                ServiceRunner(
                    settings,
                    url=options.service,
                    api_key=client_key,
                    work_dir=find_work_dir(options),
                    wait_s=options.wait_s,
                    stop=stop,
                    console=console,
                ).run(datasets, methods, seeds, results)
            else:
                _prepare_torch(options)
                machine = build_machine(options)
                Runner(settings, machine, stop=stop, console=console).run(
                    datasets, methods, seeds, results
                )
    console.say(f"All rows are in {options.out}; python -m benchmarks.vtab table {options.out}")
    return 0


def _table(options: argparse.Namespace, _expected: Expected) -> int:
    rows = read_results(options.results)
    tables = build_tables(rows, only=parse_only(options.only), partial=options.partial)
    if options.json:
        print(json.dumps(describe_json(tables), indent=2))
    else:
        print(print_markdown(tables))
    return 0


def _default_seeds(settings: Settings) -> tuple[int, ...]:
    return PAPER_SEEDS if settings.mode is Mode.PAPER else STRICT_SEEDS


def _check_methods(settings: Settings, methods: Sequence[Method]) -> None:
    if not settings.teacher and any(method.has_teacher for method in methods):
        raise InvalidError(
            "iDAT needs a teacher: name it with --teacher, or take methods without one, for "
            "example --methods linear_probe S P PS"
        )


def _prepare_torch(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.deterministic:
        device = resolve_device(options.device)
        if device.type == "cuda" and _CUBLAS not in build_environment({}):
            raise InvalidError(
                f"--deterministic needs the environment variable {_CUBLAS}=:4096:8, which cuBLAS "
                "reads when the process starts"
            )
        make_deterministic(device)


def _read_key(name: str | None) -> str | None:
    if name is None:
        return None
    key = build_environment({}).get(name)
    if not key:
        raise InvalidError(f"the environment variable {name} of --api-key-env is not set")
    return key


def _describe(dataset: Dataset) -> dict[str, object]:
    return {
        "dataset": dataset.recipe.name,
        "is_usable": dataset.is_usable,
        "digest": dataset.digest,
        "lists": dataset.describe(),
        "problems": [str(problem) for problem in dataset.problems],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
