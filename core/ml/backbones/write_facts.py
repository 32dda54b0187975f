"""Write the tables of backbone facts from timm: `python -m core.ml.backbones.write_facts`.

Every network that timm has weights for is built once, on the meta device, so nothing is downloaded
and no memory is taken. It takes some minutes.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import timm
import torch
from torch import nn

from core.catalog.backbones import TABLE, UNSUPPORTED_TABLE
from core.catalog.licenses import NOT_STATED
from core.catalog.pairs import PAIRS
from core.ml.backbones.blocks import ResidualBlock, UnsupportedBackboneError, find_blocks
from core.ml.backbones.load import read_num_features, register_bundled
from core.ml.backbones.parts import find_biases, find_operations

logger = logging.getLogger(__name__)

#: Networks that are listed beside those of the pairs, a few of every family: plain and
#: self-supervised ViTs, image-text towers, BEiT, EVA-02, DINOv3, then the pyramids.
NAMES = (
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k",
    "vit_small_patch32_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch32_224.augreg_in21k",
    "vit_base_patch8_224.augreg_in21k",
    "vit_large_patch16_224.augreg_in21k",
    "vit_base_patch16_224.orig_in21k",
    "vit_base_patch32_224.orig_in21k",
    "vit_large_patch16_224.orig_in21k",
    "vit_large_patch32_224.orig_in21k",
    "vit_huge_patch14_224.orig_in21k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_base_patch16_224.mae",
    "vit_large_patch16_224.mae",
    "vit_small_patch16_224.dino",
    "vit_base_patch16_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_large_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_large_patch16_dinov3.lvd1689m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_clip_224.openai",
    "vit_large_patch14_clip_224.openai",
    "vit_base_patch32_clip_224.laion2b",
    "vit_base_patch16_clip_224.laion2b",
    "vit_large_patch14_clip_224.laion2b",
    "vit_base_patch16_siglip_224.webli",
    "vit_base_patch16_siglip_256.webli",
    "vit_large_patch16_siglip_256.webli",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_base_patch16_siglip_256.v2_webli",
    "vit_large_patch16_siglip_256.v2_webli",
    "vit_so400m_patch14_siglip_224.webli",
    "vit_base_patch16_siglip_gap_224.v2_webli",
    "aimv2_large_patch14_224.apple_pt",
    "aimv2_large_patch14_224.apple_pt_dist",
    "naflexvit_base_patch16_gap.e300_s576_in1k",
    "vit_relpos_small_patch16_224.sw_in1k",
    "vit_relpos_medium_patch16_rpn_224.sw_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "deit_small_patch16_224.fb_in1k",
    "deit_base_patch16_224.fb_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit_small_distilled_patch16_224.fb_in1k",
    "deit_base_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "deit3_large_patch16_224.fb_in22k_ft_in1k",
    "beit_base_patch16_224.in22k_ft_in22k",
    "beit_large_patch16_224.in22k_ft_in22k",
    "beitv2_base_patch16_224.in1k_ft_in22k",
    "beitv2_large_patch16_224.in1k_ft_in22k",
    "eva02_tiny_patch14_224.mim_in22k",
    "eva02_small_patch14_224.mim_in22k",
    "eva02_base_patch14_224.mim_in22k",
    "eva02_large_patch14_224.mim_in22k",
    "swin_tiny_patch4_window7_224.ms_in22k",
    "swin_small_patch4_window7_224.ms_in22k",
    "swin_base_patch4_window7_224.ms_in22k",
    "swin_large_patch4_window7_224.ms_in22k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small_patch4_window7_224.ms_in1k",
    "swin_base_patch4_window7_224.ms_in1k",
    "swinv2_tiny_window8_256.ms_in1k",
    "swinv2_small_window8_256.ms_in1k",
    "swinv2_base_window8_256.ms_in1k",
    "swinv2_base_window12_192.ms_in22k",
    "swinv2_large_window12_192.ms_in22k",
    "pvt_v2_b0.in1k",
    "pvt_v2_b1.in1k",
    "pvt_v2_b2.in1k",
    "pvt_v2_b3.in1k",
    "pvt_v2_b4.in1k",
    "pvt_v2_b5.in1k",
    "twins_pcpvt_small.in1k",
    "twins_svt_small.in1k",
    "twins_svt_base.in1k",
    "davit_tiny.msft_in1k",
    "davit_small.msft_in1k",
    "davit_base.msft_in1k",
    "maxvit_tiny_tf_224.in1k",
    "maxvit_base_tf_224.in21k",
    "hiera_tiny_224.mae",
    "hiera_small_224.mae",
    "hiera_base_224.mae",
    "hiera_small_abswin_256.sbb2_e200_in12k",
    "mvitv2_tiny.fb_in1k",
    "mvitv2_small.fb_in1k",
    "mvitv2_base.fb_in1k",
    "mvitv2_base_cls.fb_inw21k",
    "convnext_tiny.fb_in22k",
    "convnext_small.fb_in22k",
    "convnext_base.fb_in22k",
    "convnext_large.fb_in22k",
    "convnext_tiny.dinov3_lvd1689m",
    "convnextv2_tiny.fcmae_ft_in22k_in1k",
    "convnextv2_base.fcmae_ft_in22k_in1k",
)


def list_names() -> list[str]:
    """Return the networks that are listed: those of the pairs first."""
    register_bundled()
    paired = [name for pair in PAIRS.values() for name in (pair.student, pair.teacher)]
    return list(dict.fromkeys([*paired, *NAMES]))


def read_facts(name: str) -> dict[str, Any]:
    """Return the facts of one network as JSON values.

    Raises:
        UnsupportedBackboneError: adapters have no places in it.
    """
    with torch.device("meta"):
        return describe_network(timm.create_model(name, pretrained=False, num_classes=0))


def describe_network(module: nn.Module) -> dict[str, Any]:
    """Return the facts of a network without a classifier as JSON values.

    Lists with a number for every block are written as runs of equal ones, [value, blocks].

    Raises:
        UnsupportedBackboneError: adapters have no places in it.
    """
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment] # a plain dict
    channels, height, width = config["input_size"]
    if (channels, height) != (3, width):
        raise UnsupportedBackboneError(
            f"this {type(module).__name__} is not supported: it reads {channels} channels of "
            f"{height} x {width} pixels, not square colour images"
        )
    blocks = find_blocks(module)
    widths = [block.width for block in blocks]
    input_widths = [block.input_width for block in blocks]
    facts = {
        "family": type(module).__name__,
        "block_widths": _runs(widths),
        "input_widths": _runs(input_widths),
        "heads": _runs(block.heads for block in blocks),
        "num_features": read_num_features(module),
        "parameters": _count(module.parameters()),
        "bias_parameters": _count(find_biases(module).values()),
        "ssf_parameters": _ssf_parameters(module, blocks),
        "lora_parameters_per_rank": _lora_parameters_per_rank(blocks),
        "image_px": height,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "license": config.get("license") or NOT_STATED,
        "layout": blocks[0].layout.value,
        "prefix_tokens": blocks[0].prefix_tokens,
        "post_norm": any(block.is_post_norm for block in blocks),
        "has_qkv": all(block.qkv is not None for block in blocks),
        "has_fc": all(block.fc1 is not None and block.fc2 is not None for block in blocks),
        "has_attention_branch": all(block.attention_input is not None for block in blocks),
        "prompts": all(block.takes_prompts for block in blocks),
        "grid": all(block.grid is not None for block in blocks),
    }
    if input_widths == widths:
        del facts["input_widths"]
    return facts


def read_all() -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Return the facts of every network, and for each reason the architectures it keeps out."""
    listed = list_names()
    rows: dict[str, dict[str, Any]] = {
        name: {**read_facts(name), "listed": True} for name in listed
    }
    refused: dict[str, str] = {}  # by architecture: its weights do not matter
    for name in sorted(timm.list_pretrained()):
        architecture = name.partition(".")[0]
        if name in rows or architecture in rows or architecture in refused:
            continue
        try:
            rows[name] = read_facts(name)
        except UnsupportedBackboneError as error:
            refused[architecture] = error.message
    reasons: dict[str, list[str]] = {}
    for architecture, reason in refused.items():
        reasons.setdefault(reason, []).append(architecture)
    return rows, reasons


def write_facts() -> None:
    """Write both tables."""
    rows, reasons = read_all()
    TABLE.write_text(_as_lines(rows), encoding="utf-8")
    UNSUPPORTED_TABLE.write_text(_as_lines(reasons), encoding="utf-8")
    logger.info("wrote %d networks to %s", len(rows), TABLE)


def _as_lines(table: Mapping[str, object]) -> str:
    """Return a JSON object with one line for each key."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _runs(values: Iterable[int]) -> list[list[int]]:
    return [[value, len(list(run))] for value, run in groupby(values)]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _ssf_parameters(module: nn.Module, blocks: Sequence[ResidualBlock]) -> int | None:
    operations = find_operations(module, blocks)
    return None if operations is None else 2 * sum(map(_channels, operations.values()))


def _channels(operation: nn.Module) -> int:
    """Return the output channels of a linear layer, a convolution or a norm."""
    weight = operation.weight
    assert isinstance(weight, nn.Parameter), "norms of the known families have weights"
    return int(weight.shape[0])


def _lora_parameters_per_rank(blocks: Sequence[ResidualBlock]) -> int | None:
    layers = [block.qkv for block in blocks]
    if any(layer is None for layer in layers):
        return None
    return sum(layer.in_features + layer.out_features for layer in layers if layer is not None)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    write_facts()
