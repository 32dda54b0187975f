"""A run that is interrupted anywhere ends with the same bytes as one that is not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from core.catalog.methods import Precision
from core.ml.training.checkpoint import CheckpointFolder, CheckpointMismatchError, Snapshot
from core.ml.training.loop import TrainingStoppedError, train
from core.ml.training.observer import SilentObserver

CPU = torch.device("cpu")
KILLED_RUN = Path(__file__).with_name("killed_run.py")
ROOT = Path(__file__).parents[5]
# 20 images in batches of 8: three steps an epoch, nine in all.
STEPS = 9


class StopAt(SilentObserver):
    """Asks to stop after some step."""

    def __init__(self, stop: int) -> None:
        self.stop, self.step, self.checkpoints = stop, 0, []

    def on_step(self, step, total_steps):
        self.step = step

    def on_checkpoint(self, path, step):
        self.checkpoints.append((path, step))

    def should_stop(self):
        return self.step == self.stop


def run(plan, data, tiny_backbone, folder=None, observer=None):
    student, teacher = tiny_backbone(width=24, seed=0), tiny_backbone(width=12, seed=1)
    return train(
        plan,
        data,
        student=student,
        teacher=teacher,
        device=CPU,
        observer=observer,
        checkpoint_dir=folder,
    )


def read_bytes(result):
    return [safetensors.torch.save(m.state_dict()) for m in (result.student, result.teacher)]


def read_history(result):
    return [{**m.to_json(), "images_per_s": None} for m in result.history]


class TestResume:
    @pytest.mark.parametrize("precision", list(Precision))
    @pytest.mark.parametrize(
        "stop",
        [
            pytest.param(1, id="first step"),
            pytest.param(5, id="mid-epoch"),
            pytest.param(6, id="boundary, before the epoch is evaluated"),
            pytest.param(7, id="first step of an epoch"),
            pytest.param(STEPS - 1, id="last step but one"),
            pytest.param(STEPS, id="last step"),
        ],
    )
    def test_same_bytes(  # noqa: PLR0917 - fixtures
        self, tmp_path, tiny_backbone, tiny_plan, tiny_data, stop, precision
    ):
        plan, data = tiny_plan(precision=precision), tiny_data()
        whole = run(plan, data, tiny_backbone)
        observer = StopAt(stop)
        with pytest.raises(TrainingStoppedError):
            run(plan, data, tiny_backbone, tmp_path, observer)
        assert [step for _, step in observer.checkpoints] == [stop]
        later = StopAt(-1)
        resumed = run(plan, data, tiny_backbone, tmp_path, later)
        assert read_bytes(resumed) == read_bytes(whole)
        assert read_history(resumed) == read_history(whole)
        assert (resumed.best_epoch, resumed.val, resumed.test, resumed.teacher_test) == (
            whole.best_epoch,
            whole.val,
            whole.test,
            whole.teacher_test,
        )
        assert resumed.steps == STEPS

    def test_a_run_stopped_after_every_step(self, tmp_path, tiny_backbone, tiny_plan, tiny_data):
        plan, data = tiny_plan(), tiny_data()
        for stop in range(1, STEPS + 1):
            with pytest.raises(TrainingStoppedError):
                run(plan, data, tiny_backbone, tmp_path, StopAt(stop))
        result = run(plan, data, tiny_backbone, tmp_path)
        assert read_bytes(result) == read_bytes(run(plan, data, tiny_backbone))

    @pytest.mark.slow
    def test_a_process_killed_in_mid_epoch(self, tmp_path, tiny_backbone, tiny_plan, tiny_data):
        """It checkpoints after step 4 and dies during step 6, so step 5 is lost and done again."""
        command = [sys.executable, str(KILLED_RUN), str(tmp_path), str(torch.get_num_threads())]
        ended = subprocess.run(command, cwd=ROOT, check=False, timeout=240)
        assert ended.returncode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000004.safetensors"]
        resumed = run(tiny_plan(), tiny_data(), tiny_backbone, tmp_path)
        assert read_bytes(resumed) == read_bytes(run(tiny_plan(), tiny_data(), tiny_backbone))

    def test_another_plan_or_dataset_is_refused(
        self, tmp_path, tiny_backbone, tiny_plan, tiny_data
    ):
        with pytest.raises(TrainingStoppedError):
            run(tiny_plan(), tiny_data(), tiny_backbone, tmp_path, StopAt(2))
        with pytest.raises(CheckpointMismatchError):
            run(tiny_plan(seed=8), tiny_data(), tiny_backbone, tmp_path)
        with pytest.raises(CheckpointMismatchError):
            run(tiny_plan(), tiny_data(seed=1), tiny_backbone, tmp_path)


class TestCheckpointFolder:
    def build(self, step):
        return Snapshot(step, {"w": torch.full((3,), float(step))}, {"epochs_done": step})

    def test_keeps_two_and_returns_the_newest(self, tmp_path):
        folder = CheckpointFolder(tmp_path / "new", "f")
        for step in (1, 5, 30):
            folder.save(self.build(step))
        assert len(list((tmp_path / "new").iterdir())) == 2
        latest = folder.find_latest()
        assert (latest.step, latest.values) == (30, {"epochs_done": 30})
        assert torch.equal(latest.tensors["w"], torch.full((3,), 30.0))

    def test_none_at_first(self, tmp_path):
        assert CheckpointFolder(tmp_path, "f").find_latest() is None

    @pytest.mark.parametrize("damage", ["bit", "cut", "empty"])
    def test_falls_back_when_the_newest_is_damaged(self, tmp_path, damage):
        folder = CheckpointFolder(tmp_path, "f")
        folder.save(self.build(1))
        path = folder.save(self.build(2))
        data = bytearray(path.read_bytes())
        if damage == "bit":
            data[-1] ^= 1
        path.write_bytes({"bit": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
        assert folder.find_latest().step == 1

    def test_a_half_written_file_is_not_a_checkpoint(self, tmp_path):
        (tmp_path / "checkpoint-000000009.safetensors.partial").write_bytes(b"half")
        assert CheckpointFolder(tmp_path, "f").find_latest() is None

    def test_another_fingerprint(self, tmp_path):
        CheckpointFolder(tmp_path, "f").save(self.build(1))
        with pytest.raises(CheckpointMismatchError, match="another plan"):
            CheckpointFolder(tmp_path, "g").find_latest()
