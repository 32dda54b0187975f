"""Mona against its formula, with three convolutions one by one."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.load import wrap_backbone

KIND = AdapterKind.MONA


def convolve(part, image):
    """(batch, h, rows, columns) through the published operator."""
    total = sum(
        functional.conv2d(image, conv.weight, conv.bias, padding=size // 2, groups=image.shape[1])
        for conv, size in zip(part.depthwise, (3, 5, 7), strict=True)
    )
    image = image + total / 3
    return image + functional.conv2d(image, part.pointwise.weight, part.pointwise.bias)


def apply_mona(part, x, prefix):
    """M(x), for (batch, tokens, d) with a square of patches or (batch, rows, columns, d)."""
    part = part.double()
    shape = x.shape
    x = x.reshape(shape[0], -1, shape[-1])
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * part.norm.weight + part.norm.bias
    p = (normed * part.gain_norm + x * part.gain) @ part.down.weight.T + part.down.bias
    pieces = []
    for token in range(prefix):  # each is an image of one pixel
        pixel = p[:, token].reshape(shape[0], -1, 1, 1)
        pieces.append(convolve(part, pixel).reshape(shape[0], 1, -1))
    side = math.isqrt(x.shape[1] - prefix)
    image = p[:, prefix:].reshape(shape[0], side, side, -1).permute(0, 3, 1, 2)
    convolved = convolve(part, image).permute(0, 2, 3, 1)
    pieces.append(convolved.reshape(shape[0], side * side, -1))
    h = torch.cat(pieces, dim=1)
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return (x + h @ part.up.weight.T + part.up.bias).reshape(shape)


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_equals_the_formula(build_strong, assert_formula, family):
    model = build_strong(KIND, family, scale=0.3)  # which this kind ignores
    prefix = 0 if "swin" in family else 1

    def join(index, x, attention, mlp):
        part = model.adapters[index]
        y = apply_mona(part.after_attention, x + attention(x), prefix)
        return apply_mona(part.after_mlp, y + mlp(y), prefix)

    assert_formula(model, join)


@pytest.mark.parametrize("registers", [0, 3])
def test_the_class_token_alone_is_enough_in_the_last_block(strengthen, read_images, registers):
    """Every prefix token is an image of its own, so trimming the last block changes nothing."""
    network = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        reg_tokens=registers,
    )
    network.pretrained_cfg = {"input_size": (3, 32, 32)}
    backbone = wrap_backbone(network, "tiny_vit")
    model = strengthen(AdaptedModel(backbone, AdapterSpec(KIND, 5), 3, seed=1))
    backbone.module.double()
    images = read_images().double()
    with torch.no_grad():
        short = model(images)
        whole = model.forward_with_hidden(images, layers=(1,), all_tokens=True)
    assert whole.hidden[0].shape[1] == 17 + registers
    assert torch.allclose(short, whole.logits, rtol=1e-6, atol=1e-6)


def test_needs_a_grid(tiny_backbone):
    backbone = tiny_backbone()
    blind = [forget_grid(block) for block in backbone.blocks]
    object.__setattr__(backbone, "blocks", tuple(blind))
    with pytest.raises(UnsupportedAdapterError, match=r"mona .* VisionTransformer .*height"):
        AdaptedModel(backbone, AdapterSpec(KIND, 4), 3, seed=0)


def forget_grid(block):
    values = {name: getattr(block, name) for name in block.__dataclass_fields__}
    return type(block)(**(values | {"grid": None}))


def test_count_of_a_module_with_64_dimensions():
    """133 d + 9,728, as the paper's tables imply."""
    for width in (24, 96, 768):
        block = ADAPTER_METHODS[KIND].build_block(width, AdapterSpec(KIND, 64))
        count = sum(parameter.numel() for parameter in block.parameters())
        assert count == 2 * (133 * width + 9_728)


def test_starts_as_torch_starts_its_layers(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 64), 3, seed=0)
    for block in model.adapters:
        for part in (block.after_attention, block.after_mlp):
            assert torch.equal(part.gain_norm, torch.full((24,), 1e-6))
            assert (part.gain == 1).all()
            assert (part.norm.weight == 1).all()
            assert not part.norm.bias.any()
            fans = {part.down: 24, part.up: 64, part.pointwise: 64}
            fans |= {part.depthwise[i]: size**2 for i, size in enumerate((3, 5, 7))}
            for layer, inputs in fans.items():
                weight, bound = layer.weight.detach(), 1 / math.sqrt(inputs)
                assert weight.abs().max() <= bound
                assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
                assert 0.8 * bound < layer.bias.abs().max() <= bound
