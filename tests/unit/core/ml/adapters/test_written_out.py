"""The written-out networks are those of timm, so what is compared with them means something."""

import pytest
import torch

from tests.unit.core.ml.adapters.written_out import double_state, written_out_features


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_timm(tiny_backbone, read_images, family):
    network = tiny_backbone(family).module.double()
    images = read_images().double()
    features = written_out_features(network, double_state(network), images)
    with torch.no_grad():
        assert torch.allclose(features, network(images), rtol=1e-10, atol=1e-10)
