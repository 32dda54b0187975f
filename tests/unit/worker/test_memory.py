"""A device with too little memory for a batch: the trainer goes on with parts of it."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.ml.adapters.adapted import AdaptedModel, Forward
from core.ml.backbones.load import wrap_backbone
from core.ml.training.campaign import CampaignPlan
from tests.unit.core.ml.conftest import build_tiny, build_tiny_data, build_tiny_plan
from worker.reporter import Reporter
from worker.trainer import train_within_memory

BATCH = 8


@pytest.fixture
def training() -> Any:
    """A tiny pair on noise images, in batches of 8: what `worker.build` returns."""
    student, teacher = (
        wrap_backbone(build_tiny("vit", width=width, seed=seed), f"tiny{width}")
        for width, seed in ((24, 0), (12, 1))
    )
    return SimpleNamespace(
        campaign=CampaignPlan(plan=build_tiny_plan(epochs=2, batch_size=BATCH)),
        data=build_tiny_data(train=24, val=12, test=9),
        student=student,
        teacher=teacher,
        device=torch.device("cpu"),
    )


def _shrink_memory(monkeypatch: pytest.MonkeyPatch, *, room: int, from_pass: int = 0) -> list[int]:
    """Let the networks refuse more than `room` images in training; return the sizes seen."""
    seen: list[int] = []
    forward = AdaptedModel.forward_with_hidden

    def limited(self: AdaptedModel, images: torch.Tensor, *args: Any, **kwargs: Any) -> Forward:
        seen.append(len(images))
        if len(images) > room and len(seen) > from_pass:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB\nand more lines")
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(AdaptedModel, "forward_with_hidden", limited)
    return seen


def _reporter(folder: Path) -> Reporter:
    return Reporter(outbox=folder / "outbox", stop=threading.Event(), checkpoint_interval_s=0)


def _memory_logs(output: str) -> list[dict[str, Any]]:
    messages = [json.loads(line) for line in output.splitlines()]
    logs = [message for message in messages if message["type"] == "log"]
    return [log for log in logs if "micro_batch" in log.get("data", {})]


def test_goes_on_with_parts_of_the_batch_and_says_so(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = train_within_memory(training, _reporter(tmp_path), tmp_path / "whole")
    seen = _shrink_memory(monkeypatch, room=2)
    capsys.readouterr()
    result = train_within_memory(training, _reporter(tmp_path), tmp_path / "parts")
    assert seen[0] == BATCH
    assert set(seen[1:]) == {2}
    (log,) = _memory_logs(capsys.readouterr().out)
    assert log["data"] == {"micro_batch": 2, "error": "tried to allocate 1 GiB"}
    for name, value in whole.main.student.state_dict().items():
        assert torch.allclose(value, result.main.student.state_dict()[name], rtol=0, atol=1e-4)


def test_goes_on_from_the_last_checkpoint(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # 24 images in batches of 8, two networks: four passes are two steps.
    seen = _shrink_memory(monkeypatch, room=2, from_pass=4)
    result = train_within_memory(training, _reporter(tmp_path), tmp_path / "run")
    assert result.main.steps == 6
    assert seen[:5] == [BATCH] * 5
    assert len(seen[5:]) == 4 * 4 * 2  # the four steps that were left, in four parts each


def test_too_little_for_the_parts_too(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _shrink_memory(monkeypatch, room=1)
    with pytest.raises(torch.OutOfMemoryError):
        train_within_memory(training, _reporter(tmp_path), tmp_path / "run")
    assert seen == [BATCH, 2]
