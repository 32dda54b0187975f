"""Tables from rows that were made by hand, with figures worked out by hand."""

import pytest

from benchmarks.miniature.ablation import AXES, build_pair, format_ablations, list_ablation_jobs
from benchmarks.miniature.methods import METHODS, get_method
from benchmarks.miniature.report import Results, format_report
from benchmarks.miniature.suite import Size
from benchmarks.miniature.table import build_table_job, list_table_jobs
from core.catalog.methods import DistillationLoss
from core.errors import InvalidError

SIZE = Size(train=8, val=8, test=8, epochs=1, batch_size=8)
RATES = {"S": 0.01, "P": 0.02, "PS": 0.03}
TASKS = ("digits", "count", "textures")


def table(accuracies, *, seeds=(0, 1, 2), tasks=TASKS, methods=("plain-P", "idat-P-mse")):
    """Return results with test accuracy `accuracies(task, method, seed)`, a share."""
    rows = {}
    for task in tasks:
        for name in methods:
            for seed in seeds:
                value = accuracies(task, name, seed)
                if value is None:
                    continue
                job = build_table_job(task, METHODS[name], seed, RATES, SIZE)
                row = {**job.to_json(), "test": value, "data_sha256": f"{task} {seed}"}
                if name.startswith("idat"):
                    row["teacher_test"] = value / 2
                rows[job.key] = row
    return Results(rows, tasks, [METHODS[name] for name in methods], seeds, RATES, SIZE)


def read_line(report, heading, name):
    """Return the cells of a table's line."""
    section = report[report.index(heading) :]
    line = next(x for x in section.splitlines() if x.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def made_up(task, name, seed):
    plain = {"digits": 0.8, "count": 0.4, "textures": 0.6}[task] + 0.1 * seed
    if name == "plain-P":
        return plain
    return plain + {"digits": 0.03, "count": 0.01 * seed, "textures": -0.01}[task]


class TestReport:
    def test_means_and_deviations(self):
        report = format_report(table(made_up))

        # 80, 90, 100: mean 90, deviation 10; the mean over tasks of 90, 50 and 70.
        assert read_line(report, "Test accuracy", "plain-P") == [
            *("90.0 ± 10.0", "50.0 ± 10.0", "70.0 ± 10.0"),
            "70.0",
        ]
        assert read_line(report, "Teacher", "idat-P-mse")[0] == "46.5 ± 5.0"

    def test_paired_differences(self):
        cells = read_line(format_report(table(made_up)), "iDAT minus", "idat-P-mse")

        # Seed by seed 3, 3, 3; 0, 1, 2; -1, -1, -1. t(0.975, 2) = 4.303, and 4.303 / √3 = 2.484.
        assert cells[:3] == ["**+3.0 ± 0.0**", "+1.0 ± 2.5", "**-1.0 ± 0.0**"]
        # Means of the tasks: 3, 1, -1: mean 1, deviation 2.
        assert cells[3:] == ["+1.0 ± 5.0", "5/1/3"]

    def test_a_pair_needs_both_halves(self):
        def with_a_hole(task, name, seed):
            return (
                None if (task, name, seed) == ("count", "plain-P", 0) else made_up(task, name, seed)
            )

        report = format_report(table(with_a_hole))
        cells = read_line(report, "iDAT minus", "idat-P-mse")

        # 1 and 2 are left: mean 1.5, half width tan(0.475π) · 0.7071 / √2.
        assert "Seeds 0, 1, 2: 17 of 18 runs." in report
        assert cells[1] == "+1.5 ± 6.4"
        assert cells[4] == "5/0/3"

    def test_an_empty_cell_leaves_no_mean_over_tasks(self):
        results = table(lambda t, m, s: None if t == "count" else made_up(t, m, s))

        assert read_line(format_report(results), "Test accuracy", "plain-P")[1:] == [
            *("-", "70.0 ± 10.0", "-"),
        ]

    def test_diverged_runs_are_no_figures(self):
        results = table(made_up, seeds=(0, 1))
        row = results.rows[build_table_job("digits", METHODS["plain-P"], 1, RATES, SIZE).key]
        del row["test"]
        row["error"] = "diverged"

        assert read_line(format_report(results), "Test accuracy", "plain-P")[0] == "80.0"

    def test_refuses_a_pair_that_saw_other_images(self):
        results = table(made_up)
        row = results.rows[build_table_job("count", METHODS["plain-P"], 1, RATES, SIZE).key]
        row["data_sha256"] = "other"

        with pytest.raises(InvalidError, match="count, seed 1, did not see the same images"):
            format_report(results)

    def test_other_settings_are_not_mixed_in(self):
        results = table(made_up)
        other = Results(results.rows, TASKS, results.methods, (0, 1, 2), {**RATES, "P": 0.5}, SIZE)

        assert read_line(format_report(other), "Test accuracy", "plain-P") == ["-"] * 4


class TestTableJobs:
    def test_whole_seeds_come_first(self):
        methods = list(METHODS.values())
        jobs = list(list_table_jobs(TASKS, methods, (0, 1, 2), RATES, SIZE))

        assert [job.seed for job in jobs] == [0] * 30 + [1] * 30 + [2] * 30
        assert len({job.key for job in jobs}) == 90

    def test_a_variant_differs_from_its_twin_by_the_teacher_alone(self):
        own, twin = (
            build_table_job("count", METHODS[name], 1, RATES, SIZE).settings
            for name in ("idat-PS-kl", "plain-PS")
        )

        differing = {k for k, v in vars(own).items() if v != getattr(twin, k)}
        assert differing == {"teacher", "loss_weight", "temperature"}


class TestAblations:
    def test_every_loss_of_the_catalog_has_a_line(self):
        assert {variant.value for variant in AXES["loss"]} == {x.value for x in DistillationLoss}

    def test_the_tables_own_setting_is_on_every_axis_and_run_once(self):
        jobs = list(list_ablation_jobs(["count"], [0], RATES, SIZE))
        keys = [job.key for job in jobs]
        own = {
            build_table_job("count", get_method(name), 0, RATES, SIZE).key
            for name in ("idat-P-mse", "idat-P-kl", "plain-P")
        }

        assert len(keys) == len(set(keys))
        assert own <= set(keys)
        for variants in AXES.values():
            pairs = [build_pair(variant, "count", 0, RATES, SIZE) for variant in variants]
            assert any({own_job.key, twin.key} <= own for own_job, twin in pairs)

    def test_widths_and_students_are_compared_with_twins_of_the_same(self):
        for axis in ("hidden dimension h (mse)", "teacher (mse)"):
            for variant in AXES[axis]:
                own, twin = build_pair(variant, "count", 0, RATES, SIZE)
                assert own.settings.hidden_dim == twin.settings.hidden_dim
                assert own.settings.student == twin.settings.student
                assert twin.settings.teacher is None

    def test_gains_are_the_mean_and_range_of_the_pairs(self):
        rows = {}
        for task, gain in (("count", 0.02), ("digits", -0.01)):
            for variant in AXES["temperature T (kl)"]:
                for job in build_pair(variant, task, 0, RATES, SIZE):
                    own = job.settings.teacher is not None
                    rows[job.key] = {
                        **job.to_json(),
                        "data_sha256": task,
                        "test": 0.5 + gain * own,
                        "teacher_test": 0.4,
                    }

        report = format_ablations(rows, ["count", "digits"], [0], RATES, SIZE)

        cells = read_line(report, "temperature", "2.0")
        assert cells == ["52.0", "50.0", "40.0", "49.0", "50.0", "40.0", "+0.5 (-1.0 … +2.0)"]
        assert read_line(report, "weight", "2.0")[-1] == "-"
