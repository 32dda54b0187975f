"""The paper's three placements in every family, against each family's block written out."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.adapters.drop_path import sample_drop_path
from core.ml.adapters.inject import attached
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import wrap_backbone

S, P, PS = AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED
SCALE = 0.7
#: Families in which blocks have one branch, or pool and widen the stream in front of the first.
WITHOUT_PS = ("convnext", "hiera", "mvitv2")


class Formula:
    """One block with an adapter, from its children: x to z in channels-last form."""

    def __init__(self, kind, adapter, first_keep, second_keep):
        self.kind, self.adapter = kind, adapter
        self.first_keep, self.second_keep = first_keep, second_keep

    def a(self, x):
        down, up = self.adapter.down, self.adapter.up
        h = x @ down.weight.double().T + down.bias.double()
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        return h @ up.weight.double().T + up.bias.double()

    def attend(self, x, branch):
        """Y: the stream x, the attention branch and, in PS, the adapter of x."""
        y = x + by_image(self.first_keep, x) * branch
        return y + SCALE * self.a(x) if self.kind is PS else y

    def finish(self, y, branch):
        """Z: the stream y, the MLP branch and the adapter of y; in S the adapter of both."""
        z = y + by_image(self.second_keep, y) * branch
        return z + self.a(z) if self.kind is S else z + SCALE * self.a(y)


def by_image(keep, x):
    return keep.double().view(-1, *[1] * (x.ndim - 1))


def vit(b, f, x, **_):
    y = f.attend(x, b.ls1(b.attn(b.norm1(x))))
    return f.finish(y, b.ls2(b.mlp(b.norm2(y))))


def vit_post_norm(b, f, x, **_):
    y = f.attend(x, b.norm1(b.attn(x)))
    return f.finish(y, b.norm2(b.mlp(y)))


def relpos(b, f, x, *, shared_rel_pos):
    y = f.attend(x, b.ls1(b.attn(b.norm1(x), shared_rel_pos=shared_rel_pos)))
    return f.finish(y, b.ls2(b.mlp(b.norm2(y))))


def relpos_post_norm(b, f, x, *, shared_rel_pos):
    y = f.attend(x, b.norm1(b.attn(x, shared_rel_pos=shared_rel_pos)))
    return f.finish(y, b.norm2(b.mlp(y)))


def gamma(parameter):
    return 1.0 if parameter is None else parameter


def beit(b, f, x, *, shared_rel_pos_bias):
    y = f.attend(x, gamma(b.gamma_1) * b.attn(b.norm1(x), shared_rel_pos_bias=shared_rel_pos_bias))
    return f.finish(y, gamma(b.gamma_2) * b.mlp(b.norm2(y)))


def eva(b, f, x, *, rope, **_):
    y = f.attend(x, gamma(b.gamma_1) * b.attn(b.norm1(x), rope=rope))
    return f.finish(y, gamma(b.gamma_2) * b.mlp(b.norm2(y)))


def eva_post_norm(b, f, x, *, rope, **_):
    y = f.attend(x, b.norm1(b.attn(x, rope=rope)))
    return f.finish(y, b.norm2(b.mlp(y)))


def swin(b, f, x):
    y = f.attend(x, b._attn(b.norm1(x)))
    return f.finish(y, b.mlp(b.norm2(y)))


def swinv2(b, f, x):
    y = f.attend(x, b.norm1(b._attn(x)))
    return f.finish(y, b.norm2(b.mlp(y)))


def pvtv2(b, f, x, size):
    y = f.attend(x, b.attn(b.norm1(x), size))
    return f.finish(y, b.mlp(b.norm2(y), size))


def twins(b, f, x, size):
    y = f.attend(x, b.attn(b.norm1(x), size))
    return f.finish(y, b.mlp(b.norm2(y)))


def davit_channel(b, f, image):
    rows, columns = image.shape[2:]
    x = b.cpe1(image).flatten(2).mT
    y = f.attend(x, b.attn(b.norm1(x)))
    y = b.cpe2(y.mT.unflatten(2, (rows, columns))).flatten(2).mT
    return f.finish(y, b.mlp(b.norm2(y))).mT.unflatten(2, (rows, columns))


def davit_spatial(b, f, image):
    """Windows of 7 x 7, the last ones of a row and a column filled up with zeros."""
    (rows, columns), side = image.shape[2:], b.window_size[0]
    x = b.cpe1(image).flatten(2).mT
    normed = b.norm1(x).unflatten(1, (rows, columns))
    attended = torch.zeros_like(normed)
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            inside = normed[:, top : top + side, left : left + side]
            window = normed.new_zeros(len(normed), side, side, normed.shape[-1])
            window[:, : inside.shape[1], : inside.shape[2]] = inside
            out = b.attn(window.flatten(1, 2)).unflatten(1, (side, side))
            attended[:, top : top + side, left : left + side] = out[
                :, : inside.shape[1], : inside.shape[2]
            ]
    y = f.attend(x, attended.flatten(1, 2))
    y = b.cpe2(y.mT.unflatten(2, (rows, columns))).flatten(2).mT
    return f.finish(y, b.mlp(b.norm2(y))).mT.unflatten(2, (rows, columns))


def maxvit(b, f, x):
    y = f.attend(x, b.ls1(b._partition_attn(b.norm1(x))))
    return f.finish(y, b.ls2(b.mlp(b.norm2(y))))


def last(x):
    return x.permute(0, 2, 3, 1)


def first(x):
    return x.permute(0, 3, 1, 2)


def maxvit_nchw(b, f, x):
    y = first(f.attend(last(x), last(b.ls1(b._partition_attn(b.norm1(x))))))
    return first(f.finish(last(y), last(b.ls2(b.mlp(b.norm2(y))))))


def hiera(b, f, x):
    """Where a stage begins, the shortcut is projected (or not) and pooled over q_stride tokens."""
    normed = b.norm1(x)
    if b.do_expand:
        groups = (b.proj(normed) if b.proj is not None else x).unflatten(1, (b.attn.q_stride, -1))
        x = groups.amax(dim=1)
        if b.proj is None:
            x = torch.cat([x, groups.mean(dim=1)], dim=-1)
    y = f.attend(x, b.ls1(b.attn(normed)))
    return f.finish(y, b.ls2(b.mlp(b.norm2(y))))


def mvitv2(b, f, x, size):
    normed = b.norm1(x)
    shortcut = x if b.shortcut_proj_attn is None else b.shortcut_proj_attn(normed)
    if b.shortcut_pool_attn is not None:
        prefix = 1 if b.has_cls_token else 0
        image = shortcut[:, prefix:].mT.unflatten(2, tuple(size))
        pooled = b.shortcut_pool_attn(image).flatten(2).mT
        shortcut = torch.cat([shortcut[:, :prefix], pooled], dim=1)
    branch, _ = b.attn(normed, size)
    y = f.attend(shortcut, branch)
    return f.finish(y, b.mlp(b.norm2(y)))


def convnext(b, f, x):
    hidden = b.conv_dw(x)
    branch = last(b.mlp(b.norm(hidden))) if b.use_conv_mlp else b.mlp(b.norm(last(hidden)))
    return first(f.finish(last(x), branch * gamma(b.gamma)))


FORMULAS = {
    "vision_transformer.Block": vit,
    "vision_transformer.ResPostBlock": vit_post_norm,
    "vision_transformer_relpos.RelPosBlock": relpos,
    "vision_transformer_relpos.ResPostRelPosBlock": relpos_post_norm,
    "beit.Block": beit,
    "eva.EvaBlock": eva,
    "eva.EvaBlockPostNorm": eva_post_norm,
    "swin_transformer.SwinTransformerBlock": swin,
    "swin_transformer_v2.SwinTransformerV2Block": swinv2,
    "pvt_v2.Block": pvtv2,
    "twins.Block": twins,
    "davit.SpatialBlock": davit_spatial,
    "davit.ChannelBlock": davit_channel,
    "maxxvit.PartitionAttentionCl": maxvit,
    "maxxvit.PartitionAttention2d": maxvit_nchw,
    "hiera.HieraBlock": hiera,
    "mvitv2.MultiScaleBlock": mvitv2,
    "convnext.ConvNeXtBlock": convnext,
}


def build_strong(backbone, kind):
    """An adapted model whose adapters are far from their small initial values."""
    model = AdaptedModel(backbone, AdapterSpec(kind, 5, SCALE), 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def record(model, images, keep):
    """Run an adapted network; return each block's arguments and, adapters included, its output."""
    calls = {}

    def see(module, args, kwargs, output):
        calls[module] = (args, kwargs, output[0] if isinstance(output, tuple) else output)

    with attached(model.backbone, model.adapters, model.spec, keep=keep):
        handles = [
            block.module.register_forward_hook(see, with_kwargs=True)
            for block in model.backbone.blocks
        ]
        features = model.backbone.module(images)
        for handle in handles:
            handle.remove()
    return calls, features


@pytest.fixture(scope="module")
def backbone(network, family):
    return wrap_backbone(network, f"tiny_{family}")


@pytest.fixture(scope="module")
def images(expected):
    generator = torch.Generator().manual_seed(3)
    side = expected.image_px
    return torch.randn(2, 3, side, side, generator=generator).double()


@pytest.fixture(scope="module")
def plain(backbone, images):
    with torch.no_grad():
        return backbone.module(images)


@pytest.mark.parametrize("kind", [S, P, PS])
def test_equals_the_formula_of_the_family(backbone, images, plain, family, kind):
    if kind is PS and family.startswith(WITHOUT_PS):
        with pytest.raises(UnsupportedAdapterError, match=type(backbone.module).__name__):
            build_strong(backbone, kind)
        return
    before = compute_tensors_sha256(backbone.module.state_dict())
    model = build_strong(backbone, kind)
    keep = sample_drop_path(0.6, len(backbone.blocks), 2, torch.Generator().manual_seed(11))
    assert (keep == 0).any()
    with torch.no_grad():
        calls, features = record(model, images, keep)
        for index, block in enumerate(backbone.blocks):
            args, kwargs, output = calls[block.module]
            kind_of_block = type(block.module)
            key = f"{kind_of_block.__module__.rpartition('.')[2]}.{kind_of_block.__name__}"
            formula = Formula(kind, model.adapters[index], *keep[2 * index : 2 * index + 2])
            wanted = FORMULAS[key](block.module, formula, *args, **kwargs)
            assert (wanted - output).abs().max() <= 1e-6 * wanted.abs().max(), block.name
        assert (features - plain).abs().max() > 1e-3  # the adapters do something
        shortened = model.features(images, keep)  # the last block for the class token alone
        assert torch.allclose(shortened, features.float(), rtol=1e-5, atol=1e-6)
    assert not any(part._forward_hooks for part in backbone.module.modules())
    assert not any(part._forward_pre_hooks for part in backbone.module.modules())
    assert compute_tensors_sha256(backbone.module.state_dict()) == before
