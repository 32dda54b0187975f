"""From rows to the figures of a table like the paper's Table 3."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.vtab.methods import METHODS, Method
from benchmarks.vtab.paper import TABLE_3, PaperRow, mean_of_19, mean_of_groups
from benchmarks.vtab.protocols import DIVERGED
from benchmarks.vtab.results import ResultsError, Row
from benchmarks.vtab.settings import Mode
from core.catalog.adapters import adapter_parameters
from core.catalog.backbones import find_backbone, head_parameters
from core.catalog.recipes import DATASET_RECIPES, DatasetGroup


@dataclass(frozen=True)
class Figure:
    """One cell: a dataset's accuracies over the seeds, in %.

    Attributes:
        mean: over the seeds.
        deviation: standard deviation over the seeds; None for one seed.
        seeds: which.
    """

    mean: float
    deviation: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Averages:
    """The means of a line, in %.

    Attributes:
        plain: over the datasets.
        of_groups: over the group means.
        datasets: how many datasets they are of.
    """

    plain: float
    of_groups: float
    datasets: int


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        method: of the benchmark.
        shows: which figure of it: of the protocol, or the optimistic one.
        figures: by dataset; those without a result are left out.
        diverged: datasets without a result because training diverged.
        averages: None where a dataset is missing and partial ones were not asked for.
        parameters: trainable, mean over the 19 datasets, by role; None for a network of which
            nothing is known.
        paper: the same method in the paper.
    """

    method: Method
    shows: str
    figures: Mapping[str, Figure]
    diverged: frozenset[str]
    averages: Averages | None
    parameters: Mapping[str, float] | None
    paper: PaperRow | None

    @property
    def missing(self) -> list[str]:
        """The datasets without a figure."""
        return [name for name in DATASET_RECIPES if name not in self.figures]


@dataclass(frozen=True)
class Table:
    """The rows of one protocol, computed in one way.

    Attributes:
        mode: the protocol.
        where: `in-process` or `service`.
        settings: what the rows share, by method.
        lines: in the paper's order.
        notes: what the rows say about themselves.
    """

    mode: Mode
    where: str
    settings: Mapping[str, Any]
    lines: Sequence[Line]
    notes: Sequence[str]


def build_tables(
    rows: Iterable[Row], *, only: Mapping[str, str] | None = None, partial: bool = False
) -> list[Table]:
    """Return a table for each protocol in the rows.

    Args:
        rows: of any number of results files.
        only: rows whose setting of this name has another value are left out.
        partial: average over what is there.

    Raises:
        ResultsError: rows of one table that do not belong together, or none at all.
    """
    kept = [row for row in _without_copies(rows) if _matches(row, only or {})]
    if not kept:
        raise ResultsError("there are no such results")
    tables = []
    for mode in Mode:
        for where in sorted({row["where"] for row in kept if row["mode"] == mode}):
            chosen = [row for row in kept if (row["mode"], row["where"]) == (mode, where)]
            tables.append(_build_table(mode, where, chosen, partial=partial))
    return tables


def average(figures: Mapping[str, Figure], *, partial: bool) -> Averages | None:
    """Return the means of a line, or None where a dataset is missing and `partial` is not set.

    With `partial`, a group without any dataset is left out of the mean of the groups.
    """
    means = {name: figures[name].mean for name in DATASET_RECIPES if name in figures}
    if len(means) == len(DATASET_RECIPES):
        return Averages(mean_of_19(means), mean_of_groups(means), len(means))
    if not partial or not means:
        return None
    groups = [
        fmean(found)
        for group in DatasetGroup
        if (found := [v for name, v in means.items() if DATASET_RECIPES[name].group is group])
    ]
    return Averages(fmean(means.values()), fmean(groups), len(means))


def count_parameters(method: Method, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the trainable numbers by role, mean over the 19 datasets, from the networks' facts.

    Args:
        method: the line's.
        settings: of its rows.
    """
    counts = {}
    for role in ("student", "teacher") if method.has_teacher else ("student",):
        facts = find_backbone(settings[role])
        if facts is None:
            return None
        adapters = 0
        if method.kind is not None:
            adapters = adapter_parameters(facts, method.kind, settings["hidden_dim"])
        heads = [head_parameters(facts, recipe.num_classes) for recipe in DATASET_RECIPES.values()]
        counts[role] = adapters + fmean(heads)
    return counts


def _build_table(mode: Mode, where: str, rows: Sequence[Row], *, partial: bool) -> Table:
    settings = _find_settings(rows)
    _check_data(rows)
    first = "last epoch" if mode is Mode.PAPER else "tested once"
    shown: dict[str, Callable[[Row], float]] = {first: lambda row: row["test"]["accuracy"]}
    if mode is Mode.PAPER:
        shown["best on test, optimistic"] = lambda row: row["test"]["best_on_test_accuracy"]
    lines = []
    for method in METHODS.values():
        own = [row for row in rows if row["method"] == method.name]
        for shows, read in shown.items() if own else ():
            figures = _read_figures(own, read)
            lines.append(
                Line(
                    method=method,
                    shows=shows,
                    figures=figures,
                    diverged=frozenset(r["dataset"] for r in own if r["status"] == DIVERGED),
                    averages=average(figures, partial=partial),
                    parameters=count_parameters(method, own[0]["settings"]),
                    paper=next((row for row in TABLE_3 if row.method == method.name), None),
                )
            )
    notes = list(dict.fromkeys(note for row in rows for note in row.get("notes", ())))
    notes += [
        f"{row['method']} on {row['dataset']}, seed {row['seed']}, had stopped learning by epoch "
        f"{row['collapsed_epoch']} of {row['epochs_run']}."
        for row in rows
        if row.get("collapsed_epoch") is not None
    ]
    return Table(mode, where, settings, lines, notes)


def _read_figures(rows: Sequence[Row], read: Callable[[Row], float]) -> dict[str, Figure]:
    """Return the figures by dataset; one seed that diverged leaves the dataset without."""
    figures = {}
    for name in DATASET_RECIPES:
        own = sorted((row for row in rows if row["dataset"] == name), key=lambda row: row["seed"])
        if not own or any(row["status"] == DIVERGED for row in own):
            continue
        values = [100 * read(row) for row in own]
        deviation = stdev(values) if len(values) > 1 else None
        figures[name] = Figure(fmean(values), deviation, tuple(row["seed"] for row in own))
    return figures


def _find_settings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return every setting of the rows; where two rows differ in one, they make no table.

    Methods have different settings, but what two of them have must be equal.
    """
    found: dict[str, Any] = {}
    for row in rows:
        for name, value in _read_settings(row).items():
            if found.setdefault(name, value) != value:
                raise ResultsError(
                    f"the rows differ in {name}: {_text(found[name])} and {_text(value)}; choose "
                    f"with --only '{name}={_text(value)}', or name another file"
                )
    return found


def _check_data(rows: Sequence[Row]) -> None:
    """Refuse rows of different data, and different results of the same cell."""
    digests: dict[str, str] = {}
    seen: set[tuple[str, str, int]] = set()
    for row in rows:
        if digests.setdefault(row["dataset"], row["data_digest"]) != row["data_digest"]:
            raise ResultsError(
                f"the rows of {row['dataset']} are of two different copies of the data; name the "
                "results files of one copy only"
            )
        cell = (row["dataset"], row["method"], row["seed"])
        if cell in seen:
            raise ResultsError(
                f"there are two different results of {cell[0]}, {cell[1]}, seed {cell[2]}; name "
                "one results file of the two"
            )
        seen.add(cell)


def _without_copies(rows: Iterable[Row]) -> list[Row]:
    """Return the rows, each once: files may be given that share some."""
    return list({json.dumps(row, sort_keys=True): row for row in rows}.values())


def _matches(row: Row, only: Mapping[str, str]) -> bool:
    values = _read_settings(row)
    for name, wanted in only.items():
        if name in row and name not in values:
            values[name] = row[name]
        # A setting that the method does not have, such as a probe's hidden_dim, excludes nothing.
        if name in values and _text(values[name]) != wanted:
            return False
    return True


def _read_settings(row: Row) -> dict[str, Any]:
    """Return the settings of a row, the weights that it used among them."""
    used = row["weights"] or row.get("weights_used") or {}
    weights = {f"weights of the {role}": sha for role, sha in used.items()}
    return {**row["settings"], **weights}


def _text(value: Any) -> str:  # noqa: ANN401 - JSON
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
