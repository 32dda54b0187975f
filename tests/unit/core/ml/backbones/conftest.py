"""The smallest instance of every family of networks that adapters have places in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torch import nn


@dataclass(frozen=True)
class Tiny:
    """How to build one: a timm name or a function, what to make smaller, the side of its images."""

    source: str | Callable[[int], nn.Module]
    image_px: int
    blocks: int
    options: dict[str, Any] = field(default_factory=dict)


def _vit(name: str, image_px: int, **options: Any) -> Tiny:
    return Tiny(name, image_px, 2, {"embed_dim": 24, "depth": 2, "num_heads": 3, **options})


_FOUR = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "embed_dims": (8, 16, 16, 32)}
_SWIN = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
_HIERA = {"embed_dim": 16, "stages": (1, 2, 1, 1)}
_CONVNEXT = {"dims": (8, 16, 16, 24), "depths": (1, 2, 1, 1)}


def _maxvit(num_classes: int, *, nchw: bool) -> nn.Module:
    return MaxxVit(
        MaxxVitCfg(
            embed_dim=(8, 16),
            depths=(1, 1),
            block_type=("M", "M"),
            stem_width=8,
            transformer_cfg=MaxxVitTransformerCfg(
                dim_head=4, window_size=4, grid_size=4, use_nchw_attn=nchw
            ),
        ),
        img_size=64,
        num_classes=num_classes,
    )


def _mvitv2(num_classes: int, *, cls: bool) -> nn.Module:
    return MultiScaleVit(
        MultiScaleVitCfg(depths=(1, 2, 2), embed_dim=8, num_heads=1, use_cls_token=cls),
        img_size=(64, 64),
        num_classes=num_classes,
    )


TINY = {
    "vit": _vit("vit_tiny_patch16_224", 64),
    "vit_post_norm": _vit("vit_base_patch16_rpn_224", 64),
    "deit": _vit("deit_tiny_patch16_224", 64),
    "deit_distilled": _vit("deit_tiny_distilled_patch16_224", 64),
    "deit3": _vit("deit3_small_patch16_224", 64),
    "mae": _vit("vit_base_patch16_224.mae", 64),
    "dinov2": _vit("vit_small_patch14_dinov2", 56),
    "dinov2_reg": _vit("vit_small_patch14_reg4_dinov2", 56),
    "dinov2_giant": _vit("vit_giant_patch14_dinov2", 56),
    "clip": _vit("vit_base_patch16_clip_224.openai", 64),
    "siglip": _vit("vit_base_patch16_siglip_224", 64),
    "siglip_gap": _vit("vit_base_patch16_siglip_gap_224", 64),
    "aimv2": _vit("aimv2_large_patch14_224", 56),
    "relpos": _vit("vit_relpos_small_patch16_224", 64),
    "relpos_post_norm": _vit("vit_relpos_medium_patch16_rpn_224", 64),
    "naflex": _vit("naflexvit_base_patch16_gap", 64, pos_embed_grid_size=(4, 4)),
    "beit": _vit("beit_base_patch16_224", 64),
    "beitv2": _vit("beitv2_base_patch16_224", 64),
    "eva02_packed": _vit("eva02_tiny_patch14_224", 56, img_size=56),
    "eva02": _vit("eva02_base_patch14_224", 56, img_size=56),
    "eva_post_norm": _vit("eva02_enormous_patch14_clip_224", 56, img_size=56),
    "rope": _vit("vit_small_patch16_rope_224", 64),
    "dinov3": _vit("vit_small_patch16_dinov3", 64),
    "dinov3_qkv_bias": _vit("vit_small_patch16_dinov3_qkvb", 64),
    "swin": Tiny("swin_tiny_patch4_window7_224", 64, 4, _SWIN),
    "swinv2": Tiny("swinv2_tiny_window8_256", 64, 4, _SWIN),
    "pvtv2": Tiny("pvt_v2_b0", 64, 4, _FOUR),
    "pvtv2_linear": Tiny("pvt_v2_b2_li", 64, 4, _FOUR),
    "twins_svt": Tiny("twins_svt_small", 64, 6, {**_FOUR, "depths": (2, 1, 1, 2)}),
    "twins_pcpvt": Tiny("twins_pcpvt_small", 64, 4, _FOUR),
    "davit": Tiny("davit_tiny", 64, 8, _FOUR),
    "maxvit": Tiny(partial(_maxvit, nchw=False), 64, 4),
    "maxvit_nchw": Tiny(partial(_maxvit, nchw=True), 64, 4),
    "hiera": Tiny("hiera_tiny_224", 64, 5, _HIERA),
    "hiera_abswin": Tiny("hiera_small_abswin_256", 64, 5, _HIERA),
    "mvitv2": Tiny(partial(_mvitv2, cls=False), 64, 5),
    "mvitv2_cls": Tiny(partial(_mvitv2, cls=True), 64, 5),
    "convnext": Tiny("convnext_tiny", 64, 5, _CONVNEXT),
    "convnext_conv_mlp": Tiny("convnext_tiny_hnf", 64, 5, _CONVNEXT),
    "convnextv2": Tiny("convnextv2_tiny", 64, 5, _CONVNEXT),
}


def build_family(family: str, num_classes: int = 0) -> nn.Module:
    """Return a random network of a family in eval mode, with every weight off its initial value."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = create(family, num_classes)
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def create(family: str, num_classes: int) -> nn.Module:
    tiny = TINY[family]
    size = {"input_size": (3, tiny.image_px, tiny.image_px)}
    if callable(tiny.source):
        network = tiny.source(num_classes)
        statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
        network.pretrained_cfg = {**size, **statistics}
        return network
    return timm.create_model(
        tiny.source, num_classes=num_classes, pretrained_cfg_overlay=size, **tiny.options
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes a `family`, and does not say which, once for each of them."""
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = any(mark.args[0] == "family" for mark in marks)
    if "family" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("family", TINY, scope="module")


@pytest.fixture(scope="module")
def expected(family: str) -> Tiny:
    return TINY[family]


@pytest.fixture(scope="module")
def network(family: str) -> nn.Module:
    """One network for all tests of a file: leave it as it was."""
    return build_family(family).double()


@pytest.fixture
def build_network() -> Callable[..., nn.Module]:
    return build_family


@pytest.fixture
def registered(family: str) -> str:
    """A name under which timm builds the family's smallest instance."""
    name = f"tiny_{family}"
    if not timm.is_model(name):

        def entrypoint(*, num_classes: int = 7, **_: object) -> nn.Module:
            return create(family, num_classes)

        entrypoint.__name__ = name
        timm.models.register_model(entrypoint)
    return name
