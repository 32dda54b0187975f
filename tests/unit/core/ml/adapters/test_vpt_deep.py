"""VPT-deep against the paper's way to say it: slots that are kept and refilled."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.backbones.load import wrap_backbone

KIND = AdapterKind.VPT_DEEP
SPEC = AdapterSpec(KIND, 4)


def build_vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    sizes |= options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VisionTransformer(num_classes=0, **sizes)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    network.pretrained_cfg = {"input_size": (3, 32, 32)}
    return wrap_backbone(network, "tiny_vit")


def keep_and_refill(model, images):
    """The slots go through the whole network; each block's prompts replace what is in them."""
    net = model.backbone.module
    prefix, slots = net.num_prefix_tokens, model.spec.hidden_dim
    x = net.norm_pre(net._pos_embed(net.patch_embed(images)))
    for index, block in enumerate(net.blocks):
        prompts = model.adapters[index].tokens.double().expand(len(x), -1, -1)
        behind = x[:, prefix:] if index == 0 else x[:, prefix + slots :]
        x = block(torch.cat((x[:, :prefix], prompts, behind), dim=1))
    x = net.norm(x)
    if net.global_pool == "token":
        features = x[:, 0]
    else:
        features = net.fc_norm(x[:, prefix + slots :].mean(dim=1))
    return features


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.5, "reg_tokens": 2},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"pre_norm": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_equals_slots_that_are_refilled(strengthen, read_images, options):
    backbone = build_vit(**options)
    model = strengthen(AdaptedModel(backbone, SPEC, 3, seed=1))
    backbone.module.double()
    images = read_images().double()
    with torch.no_grad():
        features = keep_and_refill(model, images)
        plain = backbone.module(images)
        logits = model(images)
    assert (features - plain).abs().max() > 0.01  # the prompts do something
    wanted = features @ model.head.weight.double().T + model.head.bias.double()
    assert torch.allclose(logits.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_tenth_of_the_prompts_values_is_dropped_for_each_image_alone():
    (prompts,) = build_prompts(tokens=30)
    stream = torch.zeros(8, 5, 24)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dropped = prompts(stream, draws)
        whole = prompts(stream)
    assert torch.equal(whole, prompts.tokens.detach().expand(8, -1, -1))
    kept = dropped != 0
    assert torch.allclose(dropped[kept], whole[kept] / 0.9)
    assert float((~kept).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert not torch.equal(kept[0], kept[1])


def build_prompts(tokens):
    model = AdaptedModel(build_vit(depth=1), AdapterSpec(KIND, tokens), 3, seed=0)
    return model.adapters


def test_blocks_in_front_see_the_prompts_and_nobody_behind_does(build_strong, read_images):
    model = build_strong(KIND, hidden_dim=4)
    inside, outside = [], []
    for block in model.backbone.module.blocks:
        block.attn.register_forward_hook(lambda _, inputs, __: inside.append(inputs[0].shape[1]))
        block.register_forward_pre_hook(lambda _, inputs: outside.append(inputs[0].shape[1]))
    forward = model.forward_with_hidden(read_images().double(), layers=(0, 2), all_tokens=True)
    assert inside == [21, 21, 21]
    assert outside == [17, 17, 17]
    assert [tuple(hidden.shape) for hidden in forward.hidden] == [(2, 17, 24)] * 2


def test_starts_at_the_papers_uniform_distribution(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 200), 3, seed=0)
    bound = math.sqrt(6 / (3 * 8 * 8 + 24))  # patches of 8 pixels, width 24
    for prompts in model.adapters:
        tokens = prompts.tokens.detach()
        assert tokens.abs().max() <= bound
        assert tokens.abs().max() > 0.99 * bound
        assert tokens.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("family", ["swin", "swinv2"])
def test_refuses_windows(tiny_backbone, family):
    with pytest.raises(UnsupportedAdapterError, match=r"vpt_deep .* SwinTransformer.*windows"):
        AdaptedModel(tiny_backbone(family), SPEC, 3, seed=0)
