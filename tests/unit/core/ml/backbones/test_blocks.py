"""What `find_blocks` says of every family, against what a forward of it shows."""

from collections import Counter

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from core.catalog.backbones import StreamLayout
from core.ml.backbones.blocks import UnsupportedBackboneError, find_blocks
from core.ml.backbones.parts import find_biases, find_final_norm, find_patch_projection

PARTS = (
    "norm1",
    "attn",
    "drop_path1",
    "norm2",
    "mlp",
    "drop_path2",
    "qkv",
    "attn_proj",
    "fc1",
    "fc2",
    "attention_input",
    "mlp_input",
)


def read_images(expected, batch=2):
    size = expected.image_px
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3)).double()


class Trace:
    """What went into and out of every module of a network in one forward, in order."""

    def __init__(self, network, images):
        self.calls = Counter()
        self.inputs, self.outputs, self.order = {}, {}, []
        handles = [part.register_forward_hook(self._see) for part in network.modules()]
        with torch.no_grad():
            self.features = network(images)
        for handle in handles:
            handle.remove()

    def _see(self, module, inputs, output):
        self.calls[module] += 1
        self.inputs[module] = inputs[0]
        self.outputs[module] = output[0] if isinstance(output, tuple) else output
        self.order.append(module)


@pytest.fixture(scope="module")
def trace(network, expected):
    return Trace(network, read_images(expected))


@pytest.fixture(scope="module")
def blocks(network):
    return find_blocks(network)


def channels_last(x, channels_first):
    return x.permute(0, 2, 3, 1) if channels_first else x


class TestBlocks:
    def test_are_all_there_in_the_order_in_which_they_run(self, blocks, trace, expected):
        assert len(blocks) == expected.blocks
        modules = [block.module for block in blocks]
        assert [module for module in trace.order if module in set(modules)] == modules

    def test_widths_and_layout_are_those_of_the_tensors(self, blocks, trace):
        for block in blocks:
            before, after = trace.inputs[block.module], trace.outputs[block.module]
            assert channels_last(before, block.channels_first).shape[-1] == block.input_width
            assert channels_last(after, block.channels_first).shape[-1] == block.width
            assert after.ndim == (3 if block.layout is StreamLayout.TOKENS else 4)
            assert block.channels_first == (block.layout is StreamLayout.CHANNELS_FIRST)

    def test_prefix_and_grid_are_all_tokens(self, blocks, trace, family):
        for block in blocks:
            after = channels_last(trace.outputs[block.module], block.channels_first)
            if family.startswith("hiera"):
                assert (block.grid, block.prefix_tokens) == (None, 0)
            elif block.layout is StreamLayout.TOKENS:
                rows, columns = block.grid
                assert after.shape[1] == block.prefix_tokens + rows * columns
            else:
                assert block.prefix_tokens == 0
                assert after.shape[1:3] == block.grid

    def test_branches_add_up_to_the_stream(self, blocks, trace):
        """z is y and the end of the MLP branch; y is x and the end of the attention branch."""
        for block in blocks:
            first = block.branches_channels_first
            y = channels_last(trace.inputs[block.mlp_input], first)
            branch = channels_last(trace.outputs[block.drop_path2], first)
            z = channels_last(trace.outputs[block.module], block.channels_first)
            assert y.shape == branch.shape
            assert (y + branch - z.reshape(y.shape)).abs().max() < 1e-12
            if block.attention_input is None:
                continue
            x = channels_last(trace.inputs[block.attention_input], first)
            branch = channels_last(trace.outputs[block.drop_path1], first)
            assert x.shape == branch.shape
            total = x + branch
            if hasattr(block.module, "cpe2"):  # DaViT's convolution between the branches
                rows, columns = block.grid
                image = total.transpose(1, 2).unflatten(2, (rows, columns))
                with torch.no_grad():
                    total = block.module.cpe2(image).flatten(2).transpose(1, 2)
            assert (total.reshape(y.shape) - y).abs().max() < 1e-12

    def test_parts_are_called_once_a_pass(self, blocks, trace):
        for block in blocks:
            for part in PARTS:
                module = getattr(block, part)
                assert module is None or trace.calls[module] == 1, (block.name, part)

    def test_no_part_is_missing_that_a_hook_could_reach(self, blocks, trace):
        for block in blocks:
            for part, owner, name in (
                ("qkv", block.attn, "qkv"),
                ("attn_proj", block.attn, "proj"),
                ("fc1", block.mlp, "fc1"),
                ("fc2", block.mlp, "fc2"),
            ):
                child = getattr(owner, name, None)
                reachable = isinstance(child, nn.Linear) and trace.calls[child] > 0
                assert (getattr(block, part) is not None) == reachable, (block.name, part)

    def test_qkv_makes_three_widths_of_the_input(self, blocks):
        for block in blocks:
            if block.qkv is not None:
                assert block.qkv.in_features == block.input_width
                assert block.qkv.out_features == 3 * block.width

    def test_only_the_norm_before_them_feeds_attention_and_mlp(self, blocks, trace):
        """In pre-norm blocks norm(x) goes into the branch, in post-norm ones x itself."""
        for block in blocks:
            if block.attention_input is None:
                continue
            if block.is_post_norm:
                assert trace.inputs[block.mlp] is trace.inputs[block.mlp_input]
                assert trace.order.index(block.attn) < trace.order.index(block.norm1)
            else:
                normed = trace.outputs[block.norm2]
                assert torch.equal(trace.inputs[block.mlp], normed)
                assert trace.order.index(block.norm1) < trace.order.index(block.attn)

    def test_prompts_are_taken_where_it_is_said_and_nowhere_else(
        self, network, blocks, trace, expected
    ):
        if blocks[0].layout is not StreamLayout.TOKENS:
            assert not blocks[0].takes_prompts
            return
        prefix = blocks[0].prefix_tokens

        def insert(_, inputs):
            x = inputs[0]
            prompts = torch.ones(x.shape[0], 5, x.shape[2], dtype=x.dtype)
            return (torch.cat([x[:, :prefix], prompts, x[:, prefix:]], dim=1), *inputs[1:])

        def remove(_, __, output):
            assert output.shape[1] == trace.outputs[blocks[-1].module].shape[1] + 5
            return torch.cat([output[:, :prefix], output[:, prefix + 5 :]], dim=1)

        handles = [
            blocks[0].module.register_forward_pre_hook(insert),
            blocks[-1].module.register_forward_hook(remove),
        ]
        try:
            with torch.no_grad():
                if blocks[0].takes_prompts:
                    prompted = network(read_images(expected))
                    assert prompted.shape == trace.features.shape
                    assert (prompted - trace.features).abs().max() > 1e-6
                else:
                    with pytest.raises((RuntimeError, AssertionError, ValueError)):
                        network(read_images(expected))
        finally:
            for handle in handles:
                handle.remove()


class TestParts:
    def test_projection_and_final_norm_run_once(self, network, trace, family):
        projection, norm = find_patch_projection(network), find_final_norm(network)
        if norm is None:  # the last stage has it, or its place is in front of the pooling
            assert family in {"pvtv2", "pvtv2_linear", "convnext_conv_mlp"}
        else:
            assert trace.calls[norm] == 1
            assert norm.weight.numel() == trace.features.shape[-1]
        if projection is None:
            assert family.startswith(("convnext", "davit", "maxvit", "twins"))
        else:
            assert trace.calls[projection] == 1

    def test_every_bias_is_found(self, network):
        """A parameter of one dimension is a weight of a norm, a scale of a layer, or a bias."""
        biases = find_biases(network)
        scales = {"weight", "gamma", "gamma_1", "gamma_2", "alpha"}
        vectors = {name: p for name, p in network.named_parameters() if p.ndim == 1}
        left = {name for name in vectors if name.rpartition(".")[2] not in scales}
        assert set(biases) == left


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet18", "ResNet is not supported: it is made of convolutions"),
            ("mixer_s16_224", "MlpMixer is not supported: .* without attention"),
            ("focalnet_tiny_srf", "FocalNet is not supported: .* without attention"),
            ("efficientvit_b0", "EfficientVit is not supported: .* without attention"),
            ("xcit_nano_12_p16_224", "Xcit is not supported: its blocks have a third branch"),
            ("cait_xxs24_224", "Cait is not supported: one drop-path module ends both"),
            ("crossvit_tiny_240", "CrossVit is not supported: it has two streams"),
            ("mobilevit_xxs", "ByobNet is not supported"),
            ("pit_ti_224", "PoolingVisionTransformer is not supported: adapters have places in"),
            ("vit_base_patch16_xp_224", "this VisionTransformer is not supported: .* one branch"),
            ("vit_small_patch16_18x2_224", "this VisionTransformer .* several attention branches"),
            ("mvitv2_large", "this MultiScaleVit .* changes the width of the stream"),
            ("test_coatnet", "this MaxxVit is not supported: the blocks of CoAtNet"),
            ("maxvit_tiny_pm_256", "this MaxxVit is not supported: .* two attentions"),
        ],
    )
    def test_names_family_and_reason(self, name, message):
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
        with pytest.raises(UnsupportedBackboneError, match=message):
            find_blocks(network)

    def test_a_class_of_the_same_name_with_other_blocks(self):
        class Block(nn.Module):
            def forward(self, x):
                return x

        network = VisionTransformer(
            img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=3, num_classes=0
        )
        network.blocks = nn.Sequential(Block())
        with pytest.raises(UnsupportedBackboneError, match=r"none of vision_transformer\.Block"):
            find_blocks(network)


class TestGrid:
    def test_follows_the_image_size(self):
        with torch.device("meta"):
            network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
        assert {block.grid for block in find_blocks(network)} == {(37, 37)}
        assert {block.grid for block in find_blocks(network, 224)} == {(16, 16)}

    def test_a_vit_leaves_a_margin_out(self):
        with torch.device("meta"):
            network = timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0)
            tokens = network.patch_embed(torch.empty(1, 3, 384, 384))
        (grid,) = {block.grid for block in find_blocks(network)}
        assert grid == (27, 27)
        assert tokens.shape[1] == 27 * 27

    def test_is_unknown_where_the_patches_of_a_pyramid_do_not_fill_the_image(self):
        with torch.device("meta"):
            network = timm.create_model("pvt_v2_b0", num_classes=0)
        assert [block.grid for block in find_blocks(network, 100)][:2] == [(25, 25)] * 2
        assert find_blocks(network, 100)[-1].grid is None
