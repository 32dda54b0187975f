"""The learning rates: one for each placement, chosen on validation images only.

Plain adapters alone are tried, with a seed that no reported row has, on every task. The rate with
the highest mean validation accuracy over the tasks is the placement's, for plain adapters and iDAT
alike; among equals the one with the lower mean validation loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from benchmarks.miniature.jobs import SELECTION, Job, build_settings
from benchmarks.miniature.methods import PLACEMENTS, Method
from benchmarks.miniature.rows import Row
from benchmarks.miniature.suite import TASKS, Size
from core.errors import InvalidError

#: Draws the selection's images and weights; no reported row may have it.
SELECTION_SEED = 1000

#: Around the starter pair's own: 5e-3 of `sequential`, 2e-2 of `parallel` (docs/starter.md).
RATES = {
    "S": (2.5e-3, 5e-3, 1e-2),
    "P": (1e-2, 2e-2, 4e-2),
    "PS": (1e-2, 2e-2, 4e-2),
}


def list_selection_jobs(tasks: Sequence[str], size: Size) -> Iterator[Job]:
    """Yield the runs of the grid, task by task."""
    for task in tasks:
        for placement in PLACEMENTS:
            for rate in RATES[placement]:
                yield build_selection_job(task, placement, rate, size)


def build_selection_job(task: str, placement: str, rate: float, size: Size) -> Job:
    """Return one run of the grid."""
    method = Method(placement, None)
    settings = build_settings(method, size, learning_rate=rate, with_test=False)
    return Job(SELECTION, task, method.name, SELECTION_SEED, settings)


def list_selected_tasks(rows: Mapping[str, Row], size: Size) -> list[str]:
    """Return the tasks of which any run of the grid is known."""
    return [task for task in TASKS if any(j.key in rows for j in list_selection_jobs([task], size))]


def choose_rates(
    rows: Mapping[str, Row], size: Size, *, needed: Sequence[str] = ()
) -> dict[str, float]:
    """Return the learning rate of each placement.

    Every task that the grid was run on has its say, whichever tasks are then measured.

    Args:
        rows: every row by its job's key.
        size: of the runs.
        needed: tasks that must be among those that decide.

    Raises:
        InvalidError: runs of the grid are missing.
    """
    tasks = list_selected_tasks(rows, size)
    wanted = {*tasks, *needed} or set(TASKS)
    missing = [job for job in list_selection_jobs(sorted(wanted), size) if job.key not in rows]
    if missing:
        raise InvalidError(
            f"{len(missing)} runs of the learning-rate grid are not in the results file "
            f"({', '.join(sorted({job.task for job in missing}))}); first run "
            "`python -m benchmarks.miniature select` with the same --out, --size and --cifar"
        )
    return {
        placement: max(
            RATES[placement], key=lambda rate: score_rate(rows, tasks, placement, rate, size)
        )
        for placement in PLACEMENTS
    }


def score_rate(
    rows: Mapping[str, Row], tasks: Sequence[str], placement: str, rate: float, size: Size
) -> tuple[float, float]:
    """Return mean validation accuracy, then minus the mean loss; a diverged run counts as 0."""
    own = [rows[build_selection_job(task, placement, rate, size).key] for task in tasks]
    accuracy = mean(row.get("val", 0.0) for row in own)
    return accuracy, -mean(row.get("val_loss", math.inf) for row in own)
