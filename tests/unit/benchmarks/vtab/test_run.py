"""Both protocols for real, on the starter pair; and what is left when a run is cut."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.vtab.__main__ import main
from benchmarks.vtab.watch import RunWatcher
from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision
from core.catalog.pairs import STARTER_STUDENT, STARTER_TEACHER
from core.ml.backbones.load import load_backbone
from core.ml.data.preprocess import preprocess
from core.ml.training.loop import train
from core.ml.training.plan import build_plan
from core.ml.training.resident import ResidentData, build_split

ROOT = Path(__file__).parents[4]
CPU = torch.device("cpu")
CLASSES = 3
#: Six blocks of width 192 (student) and 96 (teacher), bottlenecks of 4, a head of 3 classes.
STUDENT = {"adapter": 6 * (2 * 192 * 4 + 4 + 192), "head": 3 * 193}
TEACHER = {"adapter": 6 * (2 * 96 * 4 + 4 + 96), "head": 3 * 97}


@pytest.fixture
def run(vtab_root, tmp_path, expected, fast):
    """Return a function that runs the command and returns exit code and rows."""

    def call(*arguments, out="results.jsonl", mode="strict"):
        path = tmp_path / out
        options = ["--datasets", "kitti", "--mode", mode, "--out", str(path), *fast, *arguments]
        code = main(["run", str(vtab_root), *options], expected=expected)
        rows = path.read_text().splitlines() if path.exists() else []
        return code, [json.loads(line) for line in rows]

    return call


def read_split(root, name):
    """Decode a list without the benchmark's own code."""
    lines = (root / "kitti" / f"{name}.txt").read_text().split()
    images = [preprocess((root / "kitti" / path).read_bytes(), 64) for path in lines[::2]]
    stacked = np.stack(images)
    return build_split(stacked, np.array(lines[1::2], int), device=CPU, teacher_images=stacked)


def train_directly(root, *, train_on, val, test, rate, epochs, seed=42):
    """Train iDAT-P-mse as the benchmark should, without the benchmark."""
    plan = build_plan(
        method=MethodType.IDAT,
        kind=AdapterKind.PARALLEL,
        num_classes=CLASSES,
        learning_rate=rate,
        weight_decay=5e-5,
        precision=Precision.FP32,
        epochs=epochs,
        batch_size=8,
        warmup_epochs=0,
        seed=seed,
        loss=DistillationLoss.MSE,
    )
    return train(
        dataclasses.replace(plan, drop_last=True),
        ResidentData(
            read_split(root, train_on),
            val and read_split(root, val),
            test and read_split(root, test),
            "direct",
        ),
        student=load_backbone(STARTER_STUDENT),
        teacher=load_backbone(STARTER_TEACHER),
        device=CPU,
    )


def without_times(row):
    """Leave out what a second run may say otherwise."""
    kept = {k: v for k, v in row.items() if k not in ("seconds", "finished_at")}
    if "selection" in kept:
        kept["selection"] = [{**each, "seconds": None} for each in kept["selection"]]
    return kept


class TestStrict:
    def test_chooses_refits_and_tests(self, run, vtab_root):
        code, rows = run(
            *("--methods", "linear_probe", "iDAT-P-mse", "--seeds", "1", "2"),
            *("--learning-rates", "0.01", "0.02"),
        )
        assert code == 0
        assert [(row["method"], row["seed"]) for row in rows] == [
            ("linear_probe", 1),
            ("linear_probe", 2),
            ("iDAT-P-mse", 1),
            ("iDAT-P-mse", 2),
        ]
        for row in rows:
            assert (row["dataset"], row["mode"], row["status"]) == ("vtab-kitti", "strict", "ok")
            best = max(row["selection"], key=lambda c: (c["val_accuracy"], -c["val_loss"]))
            assert row["learning_rate"] == best["learning_rate"]
            assert row["epochs_run"] == best["epochs"]
            assert row["test"]["images"] == 20
            assert (20 * row["test"]["accuracy"]) % 1 == pytest.approx(0, abs=1e-9)
            assert row["test"]["last_epoch_accuracy"] == row["test"]["accuracy"]
            assert len(row["data_digest"]) == 64
        probe, idat = rows[0], rows[2]
        assert probe["trainable_parameters"] == {
            "student": {"adapter": 0, "head": 579, "total": 579}
        }
        assert idat["trainable_parameters"] == {
            "student": STUDENT | {"total": sum(STUDENT.values())},
            "teacher": TEACHER | {"total": sum(TEACHER.values())},
        }
        # The choice has a seed of its own, and is made once.
        assert rows[2]["selection"] == rows[3]["selection"]
        chosen = train_directly(
            vtab_root, train_on="train800", val="val200", test=None, rate=0.02, epochs=2, seed=0
        )
        assert idat["selection"][1]["val_accuracy"] == chosen.val.accuracy
        assert idat["selection"][1]["val_loss"] == pytest.approx(chosen.val.loss, rel=1e-5)

    def test_the_refit_is_on_all_thousand(self, run, vtab_root, tmp_path):
        code, (row,) = run(
            *("--methods", "iDAT-P-mse", "--seeds", "42", "--learning-rates", "0.02"),
            *("--epochs", "1"),
        )
        assert code == 0
        direct = train_directly(
            vtab_root, train_on="train800val200", val=None, test="test", rate=0.02, epochs=1
        )
        assert row["test"]["accuracy"] == direct.test.accuracy
        assert row["test"]["teacher_last_epoch_accuracy"] == direct.teacher_test.accuracy
        assert not list((tmp_path / "results.jsonl.work" / "checkpoints").iterdir())

    def test_rows_that_are_there_are_not_computed_again(self, run, tmp_path, capsys):
        options = ("--methods", "linear_probe", "--learning-rates", "0.02")
        _, before = run(*options, "--seeds", "1")
        written = (tmp_path / "results.jsonl").read_bytes()
        assert run(*options, "--seeds", "1") == (0, before)
        assert (tmp_path / "results.jsonl").read_bytes() == written
        assert "1 rows, 1 of them in" in capsys.readouterr().out
        _, rows = run(*options, "--seeds", "1", "2")
        assert [row["seed"] for row in rows] == [1, 2]
        _, rows = run(*options, "--seeds", "1", "--epochs", "3")
        assert [row["settings"]["epochs"] for row in rows] == [2, 2, 3]


class TestPaper:
    def test_tests_every_epoch(self, run, vtab_root):
        code, (row,) = run("--methods", "iDAT-P-mse", "--epochs", "3", mode="paper")
        assert code == 0
        assert (row["seed"], row["learning_rate"], row["epochs_run"]) == (42, 1e-2, 3)
        test, by_epoch = row["test"], row["test"]["accuracy_by_epoch"]
        assert test["accuracy"] == test["last_epoch_accuracy"] == by_epoch[-1]
        assert test["best_on_test_accuracy"] == max(by_epoch)
        assert by_epoch[test["best_on_test_epoch"] - 1] == max(by_epoch)
        direct = train_directly(
            vtab_root, train_on="train800val200", val="test", test=None, rate=1e-2, epochs=3
        )
        assert by_epoch == [metrics.val_accuracy for metrics in direct.history]

    def test_the_probe_too(self, run):
        code, (row,) = run("--methods", "linear_probe", "--epochs", "4", mode="paper")
        assert code == 0
        assert len(row["test"]["accuracy_by_epoch"]) == 4
        # Features of a pretrained network tell three directions of a grating apart.
        assert row["test"]["accuracy"] >= 0.8


class TestCut:
    OPTIONS = ("--methods", "iDAT-P-mse", "--seeds", "7", "--learning-rates", "0.02")

    @pytest.fixture
    def whole(self, run):
        _, (row,) = run(*self.OPTIONS, out="whole.jsonl")
        return row

    # Six steps choose the rate, in two epochs of 24 / 8; then four of each epoch refit.
    @pytest.mark.slow
    @pytest.mark.parametrize("step", [5, 8], ids=["while choosing", "while refitting"])
    def test_a_killed_run_goes_on(self, run, whole, fast, vtab_root, step):
        out = vtab_root.parent / "results.jsonl"
        options = ["--datasets", "kitti", "--out", str(out), *fast, *self.OPTIONS]
        script = Path(__file__).with_name("killed_run.py")
        arguments = [str(step), "run", str(vtab_root), *options, "--checkpoint-every-s", "0"]
        ended = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=ROOT, check=False, timeout=240
        )
        assert ended.returncode == -signal.SIGKILL
        assert out.read_bytes() == b""
        work_dir = vtab_root.parent / "results.jsonl.work"
        (checkpoints,) = (work_dir / "checkpoints").iterdir()
        names = sorted(path.name for path in checkpoints.iterdir())
        taken = step - 1 if step < 7 else step - 7
        assert names[-1] == f"checkpoint-{taken:09d}.safetensors"

        code, (row,) = run(*self.OPTIONS)
        assert code == 0
        assert without_times(row) == without_times(whole)
        assert not list((work_dir / "checkpoints").iterdir())

    def test_ctrl_c_leaves_a_clean_state(self, run, whole, tmp_path, monkeypatch, capsys):
        class Interrupting(RunWatcher):
            def on_step(self, step, total_steps):
                super().on_step(step, total_steps)
                if step == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            patch.setattr("benchmarks.vtab.learners.RunWatcher", Interrupting)
            assert run(*self.OPTIONS) == (130, [])
        assert "The same command goes on from here" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is before
        work_dir = tmp_path / "results.jsonl.work"
        (checkpoints,) = (work_dir / "checkpoints").iterdir()
        assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-000000002.safetensors"]
        left = [path.name for path in work_dir.rglob("*") if path.name.startswith(".")]
        assert left == []
        code, (row,) = run(*self.OPTIONS)
        assert (code, without_times(row)) == (0, without_times(whole))


class TestImages:
    def test_are_decoded_once_and_shared(self, run, tmp_path, vtab_root):
        options = ("--methods", "linear_probe", "--learning-rates", "0.02")
        run(*options, "--seeds", "1")
        folder = tmp_path / "results.jsonl.work" / "images"
        written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert sorted(name.rsplit("-", 1)[0] for name in written) == [
            "kitti-test-64",
            "kitti-train800-64",
            "kitti-train800val200-64",
            "kitti-val200-64",
        ]
        (test,) = folder.glob("kitti-test-*")
        expected = read_split(vtab_root, "test").student_images.numpy()
        assert np.array_equal(np.load(test), expected)
        run(*options, "--seeds", "2")
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written

    def test_may_be_dropped(self, run, tmp_path):
        options = ("--methods", "linear_probe", "--seeds", "1", "--learning-rates", "0.02")
        assert run(*options, "--drop-images")[0] == 0
        assert not list((tmp_path / "results.jsonl.work" / "images").iterdir())

    def test_bad_ones_are_all_named(self, run, vtab_root, tmp_path, capsys):
        for name in ("000003.jpg", "000011.jpg"):
            (vtab_root / "kitti" / "images" / "train800" / name).write_bytes(b"no image")
        assert run("--methods", "linear_probe") == (2, [])
        error = capsys.readouterr().err
        assert "kitti/train800.txt:4: images/train800/000003.jpg: The content is not" in error
        assert "kitti/train800.txt:12: images/train800/000011.jpg: The content is not" in error
        folder = tmp_path / "results.jsonl.work" / "images"
        assert not [path for path in folder.iterdir() if "train800-" in path.name]


class TestRefusals:
    def test_two_runs_at_once(self, run, tmp_path, capsys):
        import fcntl  # noqa: PLC0415 - only here

        with (tmp_path / "results.jsonl").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert run("--methods", "linear_probe") == (2, [])
        assert "another run is writing" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--seeds", "-1"), "a seed is a whole number from 0"),
            (("--methods", "adapt"), "there is no method 'adapt'"),
            (("--hidden-dim", "0"), "hidden_dim is 0"),
            (("--temperature", "0"), "temperature must be above 0"),
            (("--device", "gpu"), "there is no device 'gpu'"),
            (("--device", "cuda:99"), "torch sees no device 'cuda:99' here"),
            (("--batch-size", "100"), "training images do not fill one batch of 100"),
        ],
    )
    def test_nonsense(self, run, capsys, options, message):
        code, rows = run(*options)
        assert (code, rows) == (2, [])
        assert message in capsys.readouterr().err

    def test_unknown_network(self, vtab_root, tmp_path, expected, capsys):
        options = ["--datasets", "kitti", "--student", "vit_of_nobody", "--methods", "S"]
        arguments = ["run", str(vtab_root), "--out", str(tmp_path / "r.jsonl"), *options]
        assert main(arguments, expected=expected) == 2
        assert "no network called 'vit_of_nobody'" in capsys.readouterr().err
