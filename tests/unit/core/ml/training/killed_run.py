"""A training process that checkpoints after its fourth step and is killed in its sixth."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path.cwd()))

from core.ml.backbones.load import wrap_backbone
from core.ml.training.loop import train
from core.ml.training.observer import SilentObserver


class Doomed(SilentObserver):
    step = 0

    def on_step(self, step, total_steps):
        self.step = step
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    def should_checkpoint(self):
        return self.step == 4


def load_builders():
    path = Path(__file__).parents[1] / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    tiny = load_builders()
    train(
        tiny.build_tiny_plan(),
        tiny.build_tiny_data(),
        student=wrap_backbone(tiny.build_tiny("vit", width=24, seed=0), "tiny_vit"),
        teacher=wrap_backbone(tiny.build_tiny("vit", width=12, seed=1), "tiny_vit"),
        device=torch.device("cpu"),
        observer=Doomed(),
        checkpoint_dir=Path(sys.argv[1]),
    )
