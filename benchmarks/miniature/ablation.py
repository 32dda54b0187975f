"""The paper's ablations in small: one setting at a time, around iDAT with parallel adapters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.miniature.jobs import MEASUREMENT, Job, build_settings
from benchmarks.miniature.methods import Method
from benchmarks.miniature.report import find_row, format_spread, format_table, subtract
from benchmarks.miniature.rows import Row
from benchmarks.miniature.statistics import summarise
from benchmarks.miniature.suite import Size
from core.catalog.methods import DistillationLoss
from core.catalog.pairs import STARTER_STUDENT, STARTER_TEACHER

#: Two that everybody has; the first two seeds of the table.
ABLATION_TASKS = ("textures", "sprites-orientation")
ABLATION_SEEDS = (0, 1)

_PLACEMENT = "P"
_MSE = Method(_PLACEMENT, DistillationLoss.MSE)
_KL = Method(_PLACEMENT, DistillationLoss.KL)


@dataclass(frozen=True)
class Variant:
    """One value of one axis.

    Attributes:
        value: how the table calls it.
        method: what is trained.
        changes: of iDAT's settings, see `build_settings`.
        twin_changes: of the plain twin's settings.
    """

    value: str
    method: Method
    changes: Mapping[str, Any] = field(default_factory=dict)
    twin_changes: Mapping[str, Any] = field(default_factory=dict)


_SMALL_STUDENT = {"student": STARTER_TEACHER, "teacher": STARTER_STUDENT}

#: Axis → its values. The table's own setting is among those of every axis.
AXES: dict[str, tuple[Variant, ...]] = {
    "temperature T (kl)": tuple(
        Variant(f"{t}", _KL, {"temperature": t}) for t in (1.0, 2.0, 5.0, 10.0)
    ),
    "weight λ (mse)": tuple(
        Variant(f"{w}", _MSE, {"loss_weight": w}) for w in (0.1, 0.5, 1.0, 2.0)
    ),
    "loss": tuple(Variant(loss.value, Method(_PLACEMENT, loss)) for loss in DistillationLoss),
    "hidden dimension h (mse)": tuple(
        Variant(f"{h}", _MSE, {"hidden_dim": h}, {"hidden_dim": h}) for h in (2, 4, 8, 16, 32)
    ),
    "teacher (mse)": (
        Variant("smaller than its student", _MSE),
        Variant("equal to its student", _MSE, {"teacher": STARTER_STUDENT}),
        Variant("larger than its student", _MSE, _SMALL_STUDENT, {"student": STARTER_TEACHER}),
    ),
}


def list_ablation_jobs(
    tasks: Sequence[str], seeds: Sequence[int], rates: Mapping[str, float], size: Size
) -> Iterator[Job]:
    """Yield the runs of every axis with their plain twins, each once; whole seeds first."""
    seen = set()
    for seed in seeds:
        for task in tasks:
            for variant in (variant for axis in AXES.values() for variant in axis):
                for job in build_pair(variant, task, seed, rates, size):
                    if job.key not in seen:
                        seen.add(job.key)
                        yield job


def build_pair(
    variant: Variant, task: str, seed: int, rates: Mapping[str, float], size: Size
) -> tuple[Job, Job]:
    """Return the runs of a variant and of its plain twin."""
    rate = rates[_PLACEMENT]
    own, twin = variant.method, variant.method.twin
    settings = build_settings(own, size, learning_rate=rate, **variant.changes)
    plain = build_settings(twin, size, learning_rate=rate, **variant.twin_changes)
    return (
        Job(MEASUREMENT, task, own.name, seed, settings),
        Job(MEASUREMENT, task, twin.name, seed, plain),
    )


def format_ablations(
    rows: Mapping[str, Row],
    tasks: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float],
    size: Size,
) -> str:
    """Return a table for each axis that has any row of its own, with its heading.

    The gain is over the plain twin, in points: its mean over tasks and seeds, and the lowest and
    highest of them. So few runs make no interval worth printing.
    """
    parts = []
    for axis, variants in AXES.items():
        head = [axis]
        for task in tasks:
            head += [f"{task}: iDAT", "plain", "teacher"]
        lines = []
        for variant in variants:
            cells, gains = [], []
            for task in tasks:
                pairs = [build_pair(variant, task, seed, rates, size) for seed in seeds]
                found = [(find_row(rows, own), find_row(rows, twin)) for own, twin in pairs]
                both = [(own, twin) for own, twin in found if own is not None and twin is not None]
                gains += [subtract(own, twin) for own, twin in both]
                cells += [
                    format_spread([100 * own["test"] for own, _ in both]),
                    format_spread([100 * twin["test"] for _, twin in both]),
                    format_spread([100 * own["teacher_test"] for own, _ in both]),
                ]
            lines.append([variant.value, *cells, _format_gains(gains)])
        parts.append(f"### {axis}\n\n{format_table([*head, 'gain (lowest … highest)'], lines)}")
    return "\n\n".join(parts)


def _format_gains(gains: Sequence[float]) -> str:
    if not gains:
        return "-"
    return f"{summarise(gains).mean:+.1f} ({min(gains):+.1f} … {max(gains):+.1f})"
