"""A table for people, in Markdown, and for programs, in JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.vtab.paper import (
    REMARKS,
    SOURCE,
    TITLES,
    PaperRow,
    mean_of_19,
    mean_of_groups,
)
from benchmarks.vtab.settings import Mode
from benchmarks.vtab.table import Figure, Line, Table
from core.catalog.recipes import DATASET_RECIPES, DatasetGroup

_MILLION = 1e6
_SHOWN_DIGEST = 12

_TITLES = {
    Mode.STRICT: "strict: settings chosen on val200, one look at the test split",
    Mode.PAPER: "paper: the recipes' settings, the test split after every epoch",
}


def print_markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown, the paper's figures below each line."""
    return "\n".join(_print_table(table) for table in tables) + "\n" + _print_remarks()


def describe_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return the tables as plain values; accuracies in %."""
    return [
        {
            "mode": table.mode.value,
            "where": table.where,
            "settings": dict(table.settings),
            "notes": list(table.notes),
            "lines": [_describe_line(line) for line in table.lines],
        }
        for table in tables
    ]


def _print_table(table: Table) -> str:
    heads = [*TITLES.values(), "Mean of 19", "Mean of 3 groups", "Params (M)"]
    lines = [
        f"## {_TITLES[table.mode]} ({table.where})",
        "",
        _print_cells(["Method", "Figure", *heads]),
        "|---|---|" + "---:|" * len(heads),
        _print_cells(["", "", *_print_groups(), "", "", ""]),
    ]
    papers: dict[str, PaperRow] = {}
    for index, line in enumerate(table.lines):
        lines.append(_print_cells([line.method.name, line.shows, *_print_line(line)]))
        if line.paper is not None:
            papers[line.method.name] = line.paper
        is_last = index + 1 == len(table.lines) or table.lines[index + 1].method is not line.method
        if is_last and line.paper is not None:
            lines.append(
                _print_cells(["", f"paper: {line.paper.label}", *_print_paper(line.paper)])
            )
    lines += ["", *_print_gaps(table.lines)]
    lines += [f"* {note}" for note in (_describe_settings(table.settings), *table.notes)]
    return "\n".join(lines) + "\n"


def _print_groups() -> list[str]:
    """Return a group's name above its first dataset."""
    seen: set[DatasetGroup] = set()
    cells = []
    for recipe in DATASET_RECIPES.values():
        cells.append("" if recipe.group in seen else f"*{recipe.group.value}*")
        seen.add(recipe.group)
    return cells


def _print_line(line: Line) -> list[str]:
    cells = [
        "diverged" if name in line.diverged else _print_figure(line.figures.get(name))
        for name in DATASET_RECIPES
    ]
    if line.averages is None:
        cells += [f"{len(line.missing)} missing"] * 2
    else:
        count = line.averages.datasets
        of = "" if count == len(DATASET_RECIPES) else f" (of {count})"
        cells += [f"{line.averages.plain:.2f}{of}", f"{line.averages.of_groups:.2f}{of}"]
    return [*cells, _print_parameters(line.parameters)]


def _print_paper(row: PaperRow) -> list[str]:
    cells = [f"{row.accuracies[name]:.1f}" for name in DATASET_RECIPES]
    means = [f"{mean_of_19(row.accuracies):.2f}", f"{mean_of_groups(row.accuracies):.2f}"]
    return [*cells, *means, f"{row.parameters:.2f}"]


def _print_figure(figure: Figure | None) -> str:
    if figure is None:
        return "missing"
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.1f}"
    return f"{figure.mean:.1f}{spread}"


def _print_parameters(parameters: Mapping[str, float] | None) -> str:
    if parameters is None:
        return "unknown"
    return " + ".join(f"{count / _MILLION:.4f}" for count in parameters.values())


def _print_gaps(lines: Sequence[Line]) -> list[str]:
    """Return a point for each method without all of its datasets, and one about the seeds."""
    gaps = {
        line.method.name: ", ".join(DATASET_RECIPES[name].code_name for name in line.missing)
        for line in lines
        if line.missing
    }
    by_gap: dict[str, list[str]] = {}
    for method, gap in gaps.items():
        by_gap.setdefault(gap, []).append(method)
    points = [f"* {', '.join(methods)}: no figure for {gap}." for gap, methods in by_gap.items()]
    counts = {len(figure.seeds) for line in lines for figure in line.figures.values()}
    if counts:
        span = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        spread = "; ± is the standard deviation over the seeds" if max(counts) > 1 else ""
        points.append(f"* Seeds in a cell: {span}{spread}.")
    return points


def _describe_settings(settings: Mapping[str, Any]) -> str:
    shown = (
        f"{name} {str(value)[:_SHOWN_DIGEST] if name.startswith('weights') else value}"
        for name, value in settings.items()
    )
    return f"Settings: {', '.join(shown)}."


def _print_remarks() -> str:
    points = [f"* {remark}" for remark in REMARKS]
    return "\n".join([f"About the paper's rows ({SOURCE}):", "", *points]) + "\n"


def _print_cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _describe_line(line: Line) -> dict[str, Any]:
    paper = line.paper
    averages = line.averages
    return {
        "method": line.method.name,
        "figure": line.shows,
        "accuracies": {
            name: {
                "mean": figure.mean,
                "standard_deviation": figure.deviation,
                "seeds": list(figure.seeds),
            }
            for name, figure in line.figures.items()
        },
        "missing": line.missing,
        "diverged": sorted(line.diverged),
        "mean": None if averages is None else averages.plain,
        "mean_of_groups": None if averages is None else averages.of_groups,
        "averaged_datasets": None if averages is None else averages.datasets,
        "trainable_parameters": line.parameters and dict(line.parameters),
        "paper": paper
        and {
            "label": paper.label,
            "accuracies": dict(paper.accuracies),
            "mean": mean_of_19(paper.accuracies),
            "mean_of_groups": mean_of_groups(paper.accuracies),
            "mean_as_printed": paper.mean,
            "parameters_millions": paper.parameters,
            "source": SOURCE,
        },
    }
