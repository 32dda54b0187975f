"""Weights of every family from a local folder: what was saved with a classifier runs without it."""

import pytest
import safetensors.torch
import torch

from core.ml.backbones.load import WeightsMismatchError, load_backbone


@pytest.fixture
def source(build_network, family):
    return build_network(family, num_classes=7)


def save(network, folder, name):
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in network.state_dict().items()},
        folder / f"{name}.safetensors",
    )


def test_features_are_those_in_front_of_the_classifier(tmp_path, source, registered, expected):
    save(source, tmp_path, registered)
    backbone = load_backbone(registered, weights_dir=tmp_path)
    side = expected.image_px
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = source.forward_head(source.forward_features(images), pre_logits=True)
        features = backbone.module(images)
    assert features.shape == (2, backbone.num_features)
    assert torch.allclose(features, wanted, rtol=1e-5, atol=1e-6)
    assert (backbone.image_px, len(backbone.blocks)) == (side, expected.blocks)


def test_a_missing_tensor_of_the_last_block_is_refused(tmp_path, source, registered):
    backbone = load_backbone(registered, pretrained=False)
    missing = f"{backbone.blocks[-1].name}.mlp.fc2.weight"
    state = source.state_dict()
    assert missing in state
    kept = {key: tensor.contiguous() for key, tensor in state.items() if key != missing}
    safetensors.torch.save_file(kept, tmp_path / f"{registered}.safetensors")
    with pytest.raises(WeightsMismatchError, match="lacks 1 tensors"):
        load_backbone(registered, weights_dir=tmp_path)
