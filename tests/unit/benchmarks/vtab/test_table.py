"""The table: averages by hand, gaps that are told, and rows that do not belong together."""

import json

import pytest

from benchmarks.vtab.__main__ import main
from benchmarks.vtab.markdown import print_markdown
from benchmarks.vtab.methods import METHODS
from benchmarks.vtab.results import ResultsError, ResultsFile
from benchmarks.vtab.settings import Settings
from benchmarks.vtab.table import build_tables, count_parameters
from core.catalog.recipes import DATASET_RECIPES, DatasetGroup

NAMES = list(DATASET_RECIPES)


def build_row(dataset, method="S", seed=1, accuracy=0.5, mode="strict", **changes):
    settings = {"student": "vit_base_patch16_224.augreg_in21k", "epochs": 100, "precision": "fp32"}
    if method != "linear_probe":
        settings["hidden_dim"] = 4
    if method.startswith("iDAT"):
        settings["teacher"] = "vit_small_patch16_224.augreg_in21k"
    test = {"images": 10, "accuracy": accuracy, "last_epoch_accuracy": accuracy}
    if mode == "paper":
        test["best_on_test_accuracy"] = accuracy + 0.1
    return {
        "format": 1,
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "mode": mode,
        "where": "in-process",
        "settings": settings | changes.pop("settings", {}),
        "data_digest": f"digest of {dataset}",
        "weights": {"student": "w"},
        "status": "ok",
        "test": test,
        **changes,
    }


def build_rows(figures, **options):
    return [build_row(name, accuracy=value, **options) for name, value in figures.items()]


#: 0.40 on the 7 natural, 0.60 on the 4 specialized, 0.80 on the 8 structured datasets.
BY_GROUP = {
    name: {"natural": 0.4, "specialized": 0.6, "structured": 0.8}[recipe.group]
    for name, recipe in DATASET_RECIPES.items()
}


class TestAverages:
    def test_both_of_a_whole_line(self):
        (table,) = build_tables(build_rows(BY_GROUP))
        (line,) = table.lines
        assert line.averages.plain == pytest.approx((7 * 40 + 4 * 60 + 8 * 80) / 19)
        assert line.averages.of_groups == pytest.approx((40 + 60 + 80) / 3)
        assert (line.missing, line.averages.datasets) == ([], 19)

    def test_refused_with_a_gap(self):
        rows = build_rows({k: v for k, v in BY_GROUP.items() if k != "vtab-kitti"})
        (table,) = build_tables(rows)
        assert table.lines[0].averages is None
        text = print_markdown([table])
        assert "| 1 missing | 1 missing |" in text
        assert "* S: no figure for kitti." in text
        assert " missing | 80.0 |" in text

    def test_partial_says_of_how_many(self):
        rows = build_rows(
            {k: v for k, v in BY_GROUP.items() if DATASET_RECIPES[k].group != "specialized"}
        )
        (table,) = build_tables(rows, partial=True)
        averages = table.lines[0].averages
        assert averages.plain == pytest.approx((7 * 40 + 8 * 80) / 15)
        assert averages.of_groups == pytest.approx((40 + 80) / 2)
        assert "| 61.33 (of 15) | 60.00 (of 15) |" in print_markdown([table])

    def test_over_seeds(self):
        rows = [build_row("vtab-dtd", seed=seed, accuracy=a) for seed, a in ((1, 0.5), (2, 0.6))]
        figure = build_tables(rows)[0].lines[0].figures["vtab-dtd"]
        assert figure.mean == pytest.approx(55)
        assert figure.deviation == pytest.approx(50**0.5)  # of 50 and 60
        assert figure.seeds == (1, 2)
        assert "55.0 ± 7.1" in print_markdown(build_tables(rows))

    def test_a_seed_that_diverged_leaves_no_figure(self):
        rows = [
            build_row("vtab-dtd", seed=1),
            build_row("vtab-dtd", seed=2, status="diverged", test=None),
        ]
        (line,) = build_tables(rows)[0].lines
        assert line.diverged == {"vtab-dtd"}
        assert "vtab-dtd" in line.missing
        assert "| diverged |" in print_markdown(build_tables(rows))

    def test_a_run_that_stopped_learning_is_told(self):
        rows = [build_row("vtab-clevr_dist", collapsed_epoch=12, epochs_run=110)]
        note = "S on vtab-clevr_dist, seed 1, had stopped learning by epoch 12 of 110."
        assert build_tables(rows)[0].notes == [note]
        assert f"* {note}" in print_markdown(build_tables(rows))


class TestLines:
    def test_order_paper_rows_and_modes(self):
        rows = [
            *build_rows(BY_GROUP, method="iDAT-P-mse", mode="paper"),
            *build_rows(BY_GROUP, method="linear_probe", mode="paper"),
            *build_rows(BY_GROUP, method="S"),
        ]
        strict, paper = build_tables(rows)
        assert (strict.mode, paper.mode) == ("strict", "paper")
        assert [(line.method.name, line.shows) for line in paper.lines] == [
            ("linear_probe", "last epoch"),
            ("linear_probe", "best on test, optimistic"),
            ("iDAT-P-mse", "last epoch"),
            ("iDAT-P-mse", "best on test, optimistic"),
        ]
        plain = (7 * 40 + 4 * 60 + 8 * 80) / 19
        assert [line.averages.plain for line in paper.lines[2:]] == pytest.approx(
            [plain, plain + 10]
        )
        text = print_markdown([paper])
        lines = text.splitlines()
        ours = next(k for k, line in enumerate(lines) if line.startswith("| iDAT-P-mse | best"))
        assert lines[ours + 1].startswith("|  | paper: iDAT-P-mse | 74.6 | 94.0 |")
        assert lines[ours + 1].endswith("| 41.6 | 73.57 | 76.13 | 0.20 |")
        assert text.count("paper: iDAT-P-mse") == 1

    def test_every_row_of_the_markdown_has_every_column(self):
        text = print_markdown(build_tables(build_rows(BY_GROUP)))
        widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        assert widths == {2 + 19 + 3 + 1}
        head = text.splitlines()[4]
        assert [c for c in head.replace("|", " ").split() if c] == [f"*{g}*" for g in DatasetGroup]

    def test_parameters_by_the_codes_formula(self):
        settings = {
            "student": Settings().student,
            "teacher": Settings().teacher,
            "hidden_dim": 4,
        }
        both = count_parameters(METHODS["iDAT-S-kl"], settings)
        assert both["student"] == pytest.approx(121_037.3, abs=0.05)
        assert both["teacher"] == pytest.approx(60_567.4, abs=0.05)
        probe = count_parameters(METHODS["linear_probe"], settings)
        assert probe == {"student": pytest.approx(769 * 940 / 19)}
        rows = build_rows(BY_GROUP, method="iDAT-S-kl")
        assert "| 0.1210 + 0.0606 |" in print_markdown(build_tables(rows))

    def test_a_network_that_nobody_knows(self):
        rows = build_rows(BY_GROUP, settings={"student": "own"})
        assert "| unknown |" in print_markdown(build_tables(rows))


class TestConsistency:
    def test_different_settings_make_no_table(self):
        rows = [build_row("vtab-dtd"), build_row("vtab-pets", settings={"epochs": 50})]
        with pytest.raises(ResultsError, match=r"differ in epochs: 100 and 50.*--only 'epochs=50'"):
            build_tables(rows)
        (table,) = build_tables(rows, only={"epochs": "50"})
        assert list(table.lines[0].figures) == ["vtab-pets"]

    def test_what_a_method_lacks_is_no_difference(self):
        rows = [build_row("vtab-dtd"), build_row("vtab-dtd", method="linear_probe")]
        assert len(build_tables(rows, only={"hidden_dim": "4"})[0].lines) == 2

    def test_different_weights(self):
        rows = [build_row("vtab-dtd"), build_row("vtab-pets", weights={"student": "v"})]
        with pytest.raises(ResultsError, match="differ in weights of the student: w and v"):
            build_tables(rows)

    def test_different_data(self):
        rows = [build_row("vtab-dtd"), build_row("vtab-dtd", seed=2, data_digest="other")]
        with pytest.raises(ResultsError, match="vtab-dtd are of two different copies"):
            build_tables(rows)

    def test_two_results_of_one_cell(self):
        rows = [build_row("vtab-dtd"), build_row("vtab-dtd", accuracy=0.7)]
        with pytest.raises(ResultsError, match="two different results of vtab-dtd, S, seed 1"):
            build_tables(rows)
        assert len(build_tables([rows[0], dict(rows[0])])[0].lines) == 1

    def test_nothing(self):
        with pytest.raises(ResultsError, match="no such results"):
            build_tables([build_row("vtab-dtd")], only={"epochs": "7"})


class TestCommand:
    @pytest.fixture
    def results(self, tmp_path):
        path = tmp_path / "results.jsonl"
        with ResultsFile(path) as results:
            for row in build_rows(BY_GROUP):
                results.append(row)
        return path

    def test_markdown(self, results, capsys):
        assert main(["table", str(results)]) == 0
        out = capsys.readouterr().out
        assert out.startswith("## strict: settings chosen on val200")
        assert "| S | tested once | 40.0 | 40.0 |" in out
        assert "| 61.05 | 60.00 | 0.1210 |" in out
        assert "Of the 2.66 points" in out

    def test_json(self, results, capsys):
        assert main(["table", str(results), "--json"]) == 0
        (table,) = json.loads(capsys.readouterr().out)
        (line,) = table["lines"]
        assert line["mean"] == pytest.approx(61.0526, abs=1e-4)
        assert line["accuracies"]["vtab-dtd"] == {
            "mean": 40.0,
            "standard_deviation": None,
            "seeds": [1],
        }
        assert (line["paper"]["mean_as_printed"], line["missing"]) == (71.55, [])

    def test_no_file(self, tmp_path, capsys):
        assert main(["table", str(tmp_path / "none.jsonl")]) == 2
        assert "cannot be read" in capsys.readouterr().err

    def test_bad_only(self, results, capsys):
        assert main(["table", str(results), "--only", "epochs"]) == 2
        assert "NAME=VALUE" in capsys.readouterr().err
