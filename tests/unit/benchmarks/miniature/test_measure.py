"""Runs give rows with everything in them, the same for the same job, and honest pairs."""

import dataclasses

import pytest

from benchmarks.miniature.jobs import MEASUREMENT, Job, build_key, build_settings
from benchmarks.miniature.measure import measure
from benchmarks.miniature.methods import METHODS, get_method
from benchmarks.miniature.selection import build_selection_job
from benchmarks.miniature.suite import Size, build_task
from core.catalog.pairs import STARTER_STUDENT, STARTER_TEACHER
from core.ml.training.loop import TrainingStoppedError

TINY = Size(train=24, val=8, test=16, epochs=2, batch_size=8)


def run(job):
    return measure(job, cifar=None, should_stop=lambda: False)


def table_job(name, seed=0, **changes):
    settings = build_settings(get_method(name), TINY, learning_rate=1e-2, **changes)
    return Job(MEASUREMENT, "sprites-location", name, seed, settings)


class TestRow:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_has_its_figures(self, name):
        job = table_job(name)
        row = run(job)

        assert build_key(row) == job.key
        assert 0 <= row["val"] <= 1
        # A share of 16 images.
        assert row["test"] * 16 == round(row["test"] * 16)
        assert ("teacher_test" in row) == name.startswith("idat")
        assert ("best_epoch" in row) == (name != "probe")
        assert set(row["versions"]) == {"python", "torch", "timm", "numpy", "scikit-learn"}
        task = build_task("sprites-location", 0, TINY, None)
        assert row["data_sha256"] == task.sha256()

    def test_the_best_epoch_is_that_of_the_best_validation_accuracy(self):
        row = run(table_job("plain-P"))

        assert row["val"] == max(row["val_history"])
        assert row["val_history"][row["best_epoch"] - 1] == row["val"]

    def test_a_job_gives_the_same_figures_again(self):
        first, second = (run(table_job("idat-PS-kl")) for _ in range(2))

        first.pop("cpu_s")
        second.pop("cpu_s")
        assert first == second

    def test_a_selection_run_has_no_test_figures(self):
        row = run(build_selection_job("sprites-location", "P", 1e-2, TINY))

        assert "val" in row
        assert not [name for name in row if name.startswith("test")]

    def test_without_distillation_the_student_is_its_plain_twins_equal(self):
        """With λ = 0 the teacher has no say: same images, start and order give the same student."""
        twin = run(table_job("plain-P"))
        alone = run(table_job("idat-P-mse", loss_weight=0.0))

        assert alone["test_loss"] == pytest.approx(twin["test_loss"], rel=1e-6)
        assert alone["val_history"] == twin["val_history"]

    @pytest.mark.parametrize("loss", ["cosine", "mae", "feature"])
    def test_losses_beside_the_tables_two_are_trained_with(self, loss):
        row = run(table_job(f"idat-P-{loss}"))

        assert "teacher_test" in row
        assert row["settings"]["temperature"] is None

    def test_a_network_can_teach_itself_and_pairs_can_be_reversed(self):
        equals = run(table_job("idat-P-mse", teacher=STARTER_STUDENT))
        reversed_ = run(table_job("idat-P-mse", student=STARTER_TEACHER, teacher=STARTER_STUDENT))

        assert equals["teacher_test_loss"] != equals["test_loss"]
        assert reversed_["test_loss"] != equals["test_loss"]

    def test_a_diverged_run_says_so_and_has_no_accuracy(self):
        # Steps of 10 make every block multiply its input by thousands: soon the sixth overflows.
        job = table_job("plain-S")
        settings = dataclasses.replace(job.settings, learning_rate=10.0, epochs=12)
        row = run(dataclasses.replace(job, settings=settings))

        assert "diverged" in row["error"]
        assert "test" not in row
        assert "val" not in row

    def test_stops_when_asked(self):
        with pytest.raises(TrainingStoppedError):
            measure(table_job("plain-S"), cifar=None, should_stop=lambda: True)
