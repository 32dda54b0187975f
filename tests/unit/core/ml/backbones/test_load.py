import hashlib
import logging
import struct

import pytest
import safetensors.torch
import timm
import torch

from core.ml.backbones import load as load_module
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import (
    UnknownBackboneError,
    WeightsMismatchError,
    WeightsUnavailableError,
    load_backbone,
)

SMALL = "test_vit.r160_in1k"
HUBLESS = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def weights():
    """The tensors of a network with its classifier, as the hub has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return timm.create_model(SMALL).state_dict()


@pytest.fixture
def unreachable_hub(monkeypatch, tmp_path):
    class Session:
        def head(self, *_, **__):
            raise ConnectionError("name resolution failed")

    monkeypatch.setattr(load_module, "get_session", Session)
    monkeypatch.setattr(load_module, "try_to_load_from_cache", lambda *_: None)


class TestLoadBackbone:
    def test_starter_ships_with_the_code(self, unreachable_hub):
        backbone = load_backbone("vit_starter_student_patch8_64")
        assert backbone.block_widths == (192,) * 6
        assert (backbone.image_px, backbone.num_features) == (64, 192)
        assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
        assert not backbone.module.training
        assert not any(p.requires_grad for p in backbone.module.parameters())
        random = load_backbone("vit_starter_student_patch8_64", pretrained=False)
        assert backbone.weights_sha256 != random.weights_sha256

    def test_from_a_local_folder_without_the_classifier(self, tmp_path, weights, unreachable_hub):
        safetensors.torch.save_file(weights, tmp_path / f"{SMALL}.safetensors")
        backbone = load_backbone(SMALL, weights_dir=tmp_path)
        for name, tensor in backbone.module.state_dict().items():
            assert torch.equal(tensor, weights[name])
        assert backbone.module(torch.zeros(1, 3, 160, 160)).shape == (1, backbone.num_features)

    def test_name_of_the_weights_does_not_depend_on_the_file(
        self, tmp_path, weights, unreachable_hub
    ):
        halves = {name: tensor.half() for name, tensor in weights.items()}
        names = []
        for folder, tensors in (
            ("halves", halves),
            ("floats", {name: tensor.float() for name, tensor in reversed(halves.items())}),
            ("headless", {n: t for n, t in halves.items() if not n.startswith("head.")}),
        ):
            (tmp_path / folder).mkdir()
            safetensors.torch.save_file(tensors, tmp_path / folder / f"{SMALL}.safetensors")
            names.append(load_backbone(SMALL, weights_dir=tmp_path / folder).weights_sha256)
        assert len(set(names)) == 1

    def test_missing_tensors_are_refused(self, tmp_path, weights, unreachable_hub):
        weights.pop("norm.weight")
        safetensors.torch.save_file(weights, tmp_path / f"{SMALL}.safetensors")
        with pytest.raises(WeightsMismatchError, match=r"lacks 1 tensors.*norm\.weight"):
            load_backbone(SMALL, weights_dir=tmp_path)

    def test_other_shapes_are_refused(self, tmp_path, weights, unreachable_hub):
        weights["norm.weight"] = torch.zeros(3)
        safetensors.torch.save_file(weights, tmp_path / f"{SMALL}.safetensors")
        with pytest.raises(WeightsMismatchError, match="does not fit"):
            load_backbone(SMALL, weights_dir=tmp_path)

    def test_a_file_that_is_not_safetensors(self, tmp_path, unreachable_hub):
        (tmp_path / f"{SMALL}.safetensors").write_bytes(b"<html>not found</html>")
        with pytest.raises(WeightsMismatchError, match="does not fit"):
            load_backbone(SMALL, weights_dir=tmp_path)

    @pytest.mark.parametrize("has_folder", [True, False])
    def test_unreachable_hub_says_the_way_out(self, tmp_path, unreachable_hub, has_folder):
        with pytest.raises(WeightsUnavailableError) as caught:
            load_backbone(HUBLESS, weights_dir=tmp_path if has_folder else None)
        assert caught.value.code == "weights_unavailable"
        assert caught.value.retryable
        assert f"{HUBLESS}.safetensors" in caught.value.message
        assert "IDAT_WEIGHTS_DIR" in caught.value.message

    def test_unknown_name(self):
        with pytest.raises(UnknownBackboneError, match="resnet_of_dreams") as caught:
            load_backbone("resnet_of_dreams")
        assert caught.value.code == "unknown_backbone"

    def test_random_weights_are_seeded_and_leave_the_global_generator(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        names = [
            load_backbone(SMALL, pretrained=False, seed=seed).weights_sha256 for seed in (1, 1, 2)
        ]
        assert names[0] == names[1] != names[2]
        assert torch.equal(torch.get_rng_state(), before)


class TestDigest:
    def test_by_hand(self):

        tensors = {"b": torch.tensor([1, 2]), "a": torch.tensor([[0.5], [-2.0]]).half()}
        expected = hashlib.sha256(
            b'["a", "float32", [2, 1]]\n'
            + struct.pack("<2f", 0.5, -2.0)
            + b'["b", "int64", [2]]\n'
            + struct.pack("<2q", 1, 2)
        ).hexdigest()
        assert compute_tensors_sha256(tensors) == expected

    @pytest.mark.parametrize(
        "other",
        [
            {"a": torch.tensor([1.0, 2.5])},
            {"b": torch.tensor([1.0, 2.0])},
            {"a": torch.tensor([[1.0, 2.0]])},
            {"a": torch.tensor([1.0, 2.0]).double()},
        ],
    )
    def test_values_names_shapes_and_types_count(self, other):
        assert compute_tensors_sha256({"a": torch.tensor([1.0, 2.0])}) != (
            compute_tensors_sha256(other)
        )

    def test_memory_order_does_not(self):
        square = torch.arange(6.0).reshape(2, 3)
        assert compute_tensors_sha256({"a": square.t().contiguous().t()}) == (
            compute_tensors_sha256({"a": square})
        )


def test_nothing_is_logged_above_info(caplog, tmp_path, weights, unreachable_hub):
    safetensors.torch.save_file(weights, tmp_path / f"{SMALL}.safetensors")
    with caplog.at_level(logging.WARNING):
        load_backbone(SMALL, weights_dir=tmp_path)
    assert not caplog.records
