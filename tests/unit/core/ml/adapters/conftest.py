"""Networks written out block by block, so that a kind's formula can be put between the branches."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from core.catalog.backbones import _read_row
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.write_facts import describe_network

IMAGE_PX = 32


@pytest.fixture
def read_images():
    def read(batch=2, seed=3):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, IMAGE_PX, IMAGE_PX, generator=generator)

    return read


@pytest.fixture
def read_facts():
    """The catalog's facts of a network that is already built."""
    return lambda backbone: _read_row(backbone.name, describe_network(backbone.module))


@pytest.fixture
def strengthen():
    """Move every trainable weight far from its initial value."""

    def move(model, seed=2):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return model

    return move


@pytest.fixture
def build_strong(tiny_backbone, strengthen):
    """A model on a float64 network whose adapters are far from their initial values."""

    def build(kind, family="vit", *, hidden_dim=5, scale=0.7, **options):
        backbone = tiny_backbone(family, **options)
        model = strengthen(AdaptedModel(backbone, AdapterSpec(kind, hidden_dim, scale), 3, seed=1))
        backbone.module.double()
        return model

    return build


@pytest.fixture
def write_out():
    """Features of a network whose blocks are `join(index, x, attention, mlp)`.

    `attention` and `mlp` are a block's bare branches, from and to tensors of the stream's shape.
    """
    return _write_out


def _write_out(model, images, join):
    net = model.backbone.module
    x = net.patch_embed(images)
    if isinstance(net, VisionTransformer):
        x = net.norm_pre(net._pos_embed(x))
        for index, block in enumerate(net.blocks):
            x = join(
                index,
                x,
                lambda v, b=block: b.ls1(b.attn(b.norm1(v))),
                lambda v, b=block: b.ls2(b.mlp(b.norm2(v))),
            )
        x = net.norm(x)
        return x[:, 0] if net.global_pool == "token" else net.fc_norm(x[:, 1:].mean(dim=1))
    post_norm = type(net).__name__ == "SwinTransformerV2"
    index = 0
    for layer in net.layers:
        x = layer.downsample(x)
        for block in layer.blocks:
            if post_norm:
                attention = lambda v, b=block: b.norm1(b._attn(v))  # noqa: E731
                mlp = lambda v, b=block: b.norm2(b.mlp(v))  # noqa: E731
            else:
                attention = lambda v, b=block: b._attn(b.norm1(v))  # noqa: E731
                mlp = lambda v, b=block: b.mlp(b.norm2(v))  # noqa: E731
            x = join(index, x, attention, mlp)
            index += 1
    return net.norm(x).mean(dim=(1, 2))


@pytest.fixture
def assert_formula(write_out, read_images):
    """A model's logits must be those of the written-out network, and not those of the bare one."""

    def check(model, join):
        images = read_images().double()
        head = model.head
        with torch.no_grad():
            features = write_out(model, images, join)
            plain = model.backbone.module(images)
            logits = model(images)
        wanted = features @ head.weight.double().T + head.bias.double()
        assert (features - plain).abs().max() > 0.1  # the adapters do something
        assert torch.allclose(logits.double(), wanted, rtol=1e-6, atol=1e-6)

    return check
