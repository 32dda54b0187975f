"""Write the table of backbone facts from timm: `python -m core.ml.backbones.write_facts`.

Networks are built on the meta device, so nothing is downloaded and no memory is taken.
"""

import json
import logging
import sys
from typing import Any

import timm
import torch

from core.catalog.backbones import TABLE
from core.catalog.pairs import PAIRS
from core.ml.backbones.blocks import find_blocks
from core.ml.backbones.load import read_num_features, register_bundled

logger = logging.getLogger(__name__)

#: Networks beside those of the pairs: plain and self-supervised ViTs, image-text towers, BEiT,
#: EVA-02, Swin.
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
    "vit_so400m_patch14_siglip_224.webli",
    "deit_tiny_patch16_224.fb_in1k",
    "deit_small_patch16_224.fb_in1k",
    "deit_base_patch16_224.fb_in1k",
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
)


def list_names() -> list[str]:
    """Return the networks of the table: those of the pairs first."""
    register_bundled()
    paired = [name for pair in PAIRS.values() for name in (pair.student, pair.teacher)]
    return list(dict.fromkeys([*paired, *NAMES]))


def read_facts(name: str) -> dict[str, Any]:
    """Return the facts of one network as JSON values."""
    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False, num_classes=0)
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment] # a plain dict
    channels, height, width = config["input_size"]
    assert channels == 3 and height == width, name  # noqa: PLR2004, PT018 - square colour input
    return {
        "family": type(module).__name__,
        "block_widths": [block.width for block in find_blocks(module)],
        "num_features": read_num_features(module),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "image_px": height,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "license": config.get("license") or "",
    }


def write_facts() -> None:
    """Write the table."""
    rows = {name: read_facts(name) for name in list_names()}
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    logger.info("wrote %d networks to %s", len(rows), TABLE)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    write_facts()
