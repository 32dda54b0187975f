"""The same run on a GPU: it learns, and a resumed run ends with the same bytes."""

import pytest
import safetensors.torch
import torch

from core.catalog.methods import AdapterKind, Precision
from core.ml.training.loop import TrainingStoppedError, train
from core.ml.training.observer import SilentObserver
from core.ml.training.resident import ResidentData, build_split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


class StopAt(SilentObserver):
    def __init__(self, stop):
        self.stop, self.step = stop, 0

    def on_step(self, step, total_steps):
        self.step = step

    def should_stop(self):
        return self.step == self.stop


def move(data, device):
    def copy(split):
        images = split.student_images.numpy()
        return build_split(images, split.labels.numpy(), device=device, teacher_images=images)

    return ResidentData(copy(data.train), copy(data.val), copy(data.test), data.fingerprint)


@pytest.mark.parametrize("precision", list(Precision))
def test_learns_and_resumes(tiny_backbone, tiny_plan, tiny_data, tmp_path, precision):
    device = torch.device("cuda")
    plan = tiny_plan(precision=precision, epochs=12, drop_path=0.1)
    data = move(tiny_data(train=48, val=24, test=24), device)

    def run(folder=None, observer=None):
        return train(
            plan,
            data,
            student=tiny_backbone(width=24, seed=0),
            teacher=tiny_backbone(width=12, seed=1),
            device=device,
            observer=observer,
            checkpoint_dir=folder,
        )

    whole = run()
    assert whole.test.accuracy >= 0.75
    with pytest.raises(TrainingStoppedError):
        run(tmp_path, StopAt(13))
    resumed = run(tmp_path)
    assert safetensors.torch.save(resumed.student.state_dict()) == (
        safetensors.torch.save(whole.student.state_dict())
    )


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_every_kind_repeats_itself(tiny_backbone, tiny_plan, tiny_data, kind):
    device = torch.device("cuda")
    plan = tiny_plan(kind=kind, precision=Precision.BF16, epochs=2, drop_path=0.1)
    data = move(tiny_data(train=24), device)

    def run():
        result = train(
            plan,
            data,
            student=tiny_backbone(width=24, seed=0),
            teacher=tiny_backbone(width=12, seed=1),
            device=device,
        )
        return safetensors.torch.save(result.student.state_dict())

    assert run() == run()
