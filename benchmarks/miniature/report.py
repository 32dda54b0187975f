"""The tables, in Markdown, from the rows of the results file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.miniature.jobs import Job
from benchmarks.miniature.methods import IDAT, PLACEMENTS, Method
from benchmarks.miniature.rows import Row
from benchmarks.miniature.selection import (
    RATES,
    SELECTION_SEED,
    list_selected_tasks,
    score_rate,
)
from benchmarks.miniature.statistics import Summary, count_signs, summarise
from benchmarks.miniature.suite import Size
from benchmarks.miniature.table import build_table_job
from core.errors import InvalidError


@dataclass(frozen=True)
class Results:
    """What the tables are made of.

    Attributes:
        rows: every row by its job's key.
        tasks: the tables' columns.
        methods: the tables' rows.
        seeds: what is averaged over.
        rates: the learning rate of each placement.
        size: of the runs.
    """

    rows: Mapping[str, Row]
    tasks: Sequence[str]
    methods: Sequence[Method]
    seeds: Sequence[int]
    rates: Mapping[str, float]
    size: Size

    def find_row(self, task: str, method: Method, seed: int) -> Row | None:
        """Return the row of a cell and seed; None if it was not run, or diverged."""
        return find_row(self.rows, build_table_job(task, method, seed, self.rates, self.size))

    def accuracies(self, task: str, method: Method, figure: str = "test") -> list[float]:
        """Return accuracies in %, of the seeds that there are."""
        rows = [self.find_row(task, method, seed) for seed in self.seeds]
        return [100 * row[figure] for row in rows if row is not None and figure in row]

    def differences(self, task: str, method: Method) -> list[float]:
        """Return test accuracy minus that of the plain twin, in points, seed by seed.

        Raises:
            InvalidError: a pair did not see the same images.
        """
        found = []
        for seed in self.seeds:
            own = self.find_row(task, method, seed)
            twin = self.find_row(task, method.twin, seed)
            if own is not None and twin is not None:
                found.append(subtract(own, twin))
        return found


def find_row(rows: Mapping[str, Row], job: Job) -> Row | None:
    """Return a job's row; None if it was not run, or diverged."""
    row = rows.get(job.key)
    return None if row is None or "error" in row else row


def subtract(own: Row, twin: Row) -> float:
    """Return test accuracy minus that of the twin, in points.

    Raises:
        InvalidError: they did not see the same images.
    """
    if own["data_sha256"] != twin["data_sha256"]:
        raise InvalidError(
            f"{own['method']} and {twin['method']} of {own['task']}, seed {own['seed']}, did not "
            "see the same images; remove one's rows from the results file and run again"
        )
    return float(100 * (own["test"] - twin["test"]))


def format_report(results: Results) -> str:
    """Return the tables of the main benchmark with their headings."""
    parts = [
        ("Test accuracy in %, mean ± standard deviation over seeds", _accuracies(results)),
        ("Teacher: test accuracy in %, mean ± standard deviation over seeds", _teachers(results)),
        ("iDAT minus its plain twin, in points, with 95 % confidence intervals", _gains(results)),
    ]
    known = sum(
        results.find_row(task, method, seed) is not None
        for task in results.tasks
        for method in results.methods
        for seed in results.seeds
    )
    wanted = len(results.tasks) * len(results.methods) * len(results.seeds)
    seeds = ", ".join(map(str, results.seeds))
    tables = [f"### {heading}\n\n{table}" for heading, table in parts]
    return "\n\n".join([f"Seeds {seeds}: {known} of {wanted} runs.", *tables])


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def format_spread(values: Sequence[float]) -> str:
    """Return `mean ± deviation`, the mean alone of one number, a dash of none."""
    if not values:
        return "-"
    summary = summarise(values)
    spread = "" if summary.deviation is None else f" ± {summary.deviation:.1f}"
    return f"{summary.mean:.1f}{spread}"


def format_interval(summary: Summary) -> str:
    """Return the mean with its sign and interval, in bold where the interval excludes zero."""
    if summary.half_width is None:
        return f"{summary.mean:+.1f}"
    text = f"{summary.mean:+.1f} ± {summary.half_width:.1f}"
    return text if summary.has_zero else f"**{text}**"


def format_rates(rows: Mapping[str, Row], rates: Mapping[str, float], size: Size) -> str:
    """Return the table that the learning rates come from, with its heading; chosen ones in bold."""
    tasks = list_selected_tasks(rows, size)
    lines = []
    for placement in PLACEMENTS:
        cells = []
        for rate in RATES[placement]:
            accuracy, _ = score_rate(rows, tasks, placement, rate, size)
            text = f"{rate:g}: {100 * accuracy:.1f}"
            cells.append(f"**{text}**" if rate == rates[placement] else text)
        lines.append([f"plain-{placement}", *cells])
    table = format_table(["", "low", "middle", "high"], lines)
    heading = "### Learning rates: validation accuracy in %, mean over tasks"
    return f"{heading}\n\n{len(tasks)} tasks, seed {SELECTION_SEED}.\n\n{table}"


def _accuracies(results: Results) -> str:
    lines = []
    for method in results.methods:
        cells = [results.accuracies(task, method) for task in results.tasks]
        lines.append([method.name, *map(format_spread, cells), _mean_of_means(cells)])
    return format_table(["", *results.tasks, "mean"], lines)


def _teachers(results: Results) -> str:
    lines = []
    for method in _variants(results):
        cells = [results.accuracies(task, method, "teacher_test") for task in results.tasks]
        lines.append([method.name, *map(format_spread, cells), _mean_of_means(cells)])
    return format_table(["", *results.tasks, "mean"], lines)


def _gains(results: Results) -> str:
    lines = []
    for method in _variants(results):
        found = [results.differences(task, method) for task in results.tasks]
        there = [values for values in found if values]
        cells = [format_interval(summarise(values)) if values else "-" for values in found]
        overall = "-"
        if there:
            # Tasks are the unit: seeds of one task are no independent evidence about other tasks.
            overall = format_interval(summarise([summarise(values).mean for values in there]))
        record = count_signs([value for values in there for value in values])
        lines.append([method.name, *cells, overall, f"{record.wins}/{record.ties}/{record.losses}"])
    return format_table(["", *results.tasks, "over tasks", "win/tie/loss"], lines)


def _variants(results: Results) -> Iterator[Method]:
    return (method for method in results.methods if method in IDAT)


def _mean_of_means(cells: Sequence[Sequence[float]]) -> str:
    """Return the mean over tasks; a dash unless every task has a figure."""
    if not all(cells):
        return "-"
    return f"{summarise([summarise(values).mean for values in cells]).mean:.1f}"
