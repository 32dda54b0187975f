"""The command line: what it refuses, what it skips, how it stops and goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.miniature import __main__ as command
from benchmarks.miniature.jobs import MEASUREMENT, Job, build_settings
from benchmarks.miniature.methods import METHODS
from benchmarks.miniature.pool import run_jobs
from benchmarks.miniature.rows import append_row, read_rows
from benchmarks.miniature.selection import list_selection_jobs
from benchmarks.miniature.suite import SIZES, TASKS, Size

ROOT = Path(__file__).parents[4]
TINY = Size(train=16, val=8, test=8, epochs=1, batch_size=8)


def write_grid(path, tasks):
    for job in list_selection_jobs(tasks, SIZES["small"]):
        append_row(path, {**job.to_json(), "val": 0.5, "val_loss": job.settings.learning_rate})


def parse(*arguments):
    options = command.build_parser().parse_args(arguments)
    command.check_options(options)
    return options


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--workers", "0"], "--workers"),
            (["--seeds", "0", "1000"], "not 1000"),
            (["--seeds", "-1"], "0 or more"),
            (["--tasks", "cifar10-1k"], "no task is left"),
            (["--tasks", "digits", "--out", "/nowhere/none.jsonl"], "miniature select"),
        ],
    )
    def test_what_cannot_be_is_said_in_a_sentence(self, arguments, words, capsys):
        assert command.main(arguments) == 2

        assert words in capsys.readouterr().err

    def test_cifar_is_left_out_with_the_reason(self, tmp_path, capsys):
        assert parse().tasks == [task for task in TASKS if task != "cifar10-1k"]
        assert "cifar10-1k is left out: no --cifar" in capsys.readouterr().err
        parse("--cifar", str(tmp_path / "none.zip"))
        assert "none.zip is no file" in capsys.readouterr().err

    def test_ablations_have_their_own_tasks_and_seeds(self):
        options = parse("ablate")

        assert (len(options.tasks), options.seeds) == (2, [0, 1])


class TestJobs:
    def test_the_table_has_every_method_and_seed(self, tmp_path):
        out = tmp_path / "rows.jsonl"
        write_grid(out, ["digits", "count"])
        jobs = list(command.list_jobs(parse("--tasks", "digits", "count", "--out", str(out))))

        assert len(jobs) == 2 * len(METHODS) * 3
        # The lowest rates had the lowest made-up loss.
        rates = {job.method: job.settings.learning_rate for job in jobs}
        assert (rates["plain-S"], rates["idat-P-kl"], rates["probe"]) == (2.5e-3, 1e-2, None)


class TestReport:
    def test_prints_what_there_is_and_runs_nothing(self, tmp_path, capsys):
        out = tmp_path / "rows.jsonl"
        write_grid(out, ["digits", "count"])
        before = out.read_bytes()

        assert command.main(["--report", "--out", str(out)]) == 0

        printed = capsys.readouterr().out
        assert "2 tasks, seed 1000" in printed
        assert "| idat-PS-kl | - | - | - |" in printed
        assert "### weight λ (mse)" in printed
        assert out.read_bytes() == before

    def test_runs_that_are_there_are_not_run_again(self, tmp_path, capsys):
        out = tmp_path / "rows.jsonl"
        write_grid(out, ["count"])

        assert command.main(["select", "--tasks", "count", "--out", str(out)]) == 0

        assert "9 of 9 runs are in" in capsys.readouterr().out
        assert len(read_rows(out)) == 9


class TestRunJobs:
    @pytest.mark.slow
    def test_workers_give_a_row_for_every_job(self):
        jobs = [
            Job(
                MEASUREMENT,
                "sprites-location",
                name,
                seed,
                build_settings(METHODS[name], TINY, learning_rate=1e-2),
            )
            for seed in range(2)
            for name in ("plain-P", "probe")
        ]

        rows = list(run_jobs(jobs, workers=2, cifar=None))

        assert sorted((row["seed"], row["method"]) for row in rows) == [
            *((0, "plain-P"), (0, "probe")),
            *((1, "plain-P"), (1, "probe")),
        ]

    def test_no_jobs_give_no_rows(self):
        assert list(run_jobs([], workers=2, cifar=None)) == []


#: Runs the command with runs of a second each; a shell may have left SIGINT ignored.
DRIVER = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.miniature import __main__ as command, suite
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    suite.SIZES["small"] = suite.Size(train=16, val=8, test=8, epochs=1, batch_size=8)
    sys.exit(command.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stops_in_order_and_keeps_what_is_known(tmp_path, sent):
    out, driver = tmp_path / "rows.jsonl", tmp_path / "driver.py"
    driver.write_text(DRIVER)
    tasks = [task for task in TASKS if task != "cifar10-1k"]
    with subprocess.Popen(
        [sys.executable, str(driver), "select", "--tasks", *tasks, "--out", str(out)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        seen = process.stdout.readline()  # the count, printed before the workers start
        first = process.stdout.readline()  # the first row
        process.send_signal(sent)
        rest = process.stdout.read()

    assert seen.startswith("0 of 45 runs")
    assert "digits" in first
    assert "the same command goes on from there" in rest
    assert "Traceback" not in rest
    assert process.returncode == 130
    lines = out.read_text().splitlines()
    assert 1 <= len(lines) < 45
    assert all(json.loads(line)["purpose"] == "selection" for line in lines)
