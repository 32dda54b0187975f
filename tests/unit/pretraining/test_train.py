"""The loop: repeatable by steps, resumable, exportable."""

import pytest
import timm
import torch
from safetensors.torch import load_file

pytest.importorskip("numba")

from pretraining import targets
from pretraining import train as training
from pretraining.checkpoint import Average, backbone_weights
from pretraining.export import export
from pretraining.model import NAMES, Pretrainer


@pytest.fixture(autouse=True)
def _small_targets(monkeypatch):
    monkeypatch.setattr(training, "TARGET_IMAGES", 200)
    monkeypatch.setattr(targets, "ATOMS", 24)


def run(out, *extra: str) -> None:
    arguments = ["--model", "teacher", "--batch", "4", "--out", str(out), *extra]
    training.train(training.parse_arguments(arguments))


class TestTrain:
    @pytest.mark.slow
    def test_stopped_and_resumed_sees_the_same_images(self, tmp_path):
        run(tmp_path / "whole", "--steps", "4")
        first = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
        assert first["step"] == 4
        run(tmp_path / "whole", "--steps", "4", "--resume")
        again = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
        assert again["step"] == 4
        run(tmp_path / "whole", "--steps", "6", "--resume")
        more = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
        assert more["step"] == 6
        assert more["spent_s"] > first["spent_s"]
        name = "backbone.blocks.0.attn.qkv.weight"
        assert torch.equal(first["model"][name], again["model"][name])
        assert not torch.equal(first["model"][name], more["model"][name])

    @pytest.mark.slow
    def test_exported_weights_load_strictly(self, tmp_path):
        run(tmp_path, "--steps", "2")
        out = tmp_path / "teacher.safetensors"
        export("teacher", tmp_path / "checkpoint.pt", out, averaged=True)
        state = load_file(out)
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
        timm.create_model(NAMES["teacher"], num_classes=0).load_state_dict(state)
        expected = backbone_weights(tmp_path / "checkpoint.pt", averaged=True)
        torch.testing.assert_close(
            state["pos_embed"].float(), expected["pos_embed"], atol=1e-3, rtol=1e-3
        )


class TestAverage:
    def test_moves_towards_the_weights_and_stays_on_constant_ones(self):
        module = torch.nn.Linear(2, 1)
        average = Average(module)
        start = average.state_dict()["weight"].clone()
        average.update(module, 400)
        assert torch.equal(average.state_dict()["weight"], start)
        with torch.no_grad():
            module.weight += 1
        average.update(module, 4 * 10**6)
        torch.testing.assert_close(average.state_dict()["weight"], start + 0.004)


class TestPretrainer:
    def test_dropped_patches_have_no_influence(self):
        torch.manual_seed(0)
        model = Pretrainer("teacher", 3, 2).eval()
        images = torch.randn(2, 3, 64, 64)
        kept = torch.tensor([[0, 9, 18], [1, 2, 3]])
        changed = images.clone()
        changed[:, :, 32:, 32:] = 0  # patches 36 and later, none kept
        with torch.no_grad():
            torch.testing.assert_close(model.tokens(images, kept), model.tokens(changed, kept))

    def test_all_patches_give_the_backbones_own_features(self):
        torch.manual_seed(0)
        model = Pretrainer("teacher", 3, 2).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model.tokens(images, None)[:, 0], model.backbone(images))
