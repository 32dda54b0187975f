"""The starter pair: two tiny ViTs whose weights ship with the code, registered with timm.

Import this module once; then `timm.create_model("vit_starter_student_patch8_64",
pretrained=True)` works without a network. How the weights came about: docs/starter.md.
"""

from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

WEIGHTS_DIR = Path(__file__).parent / "starter_weights"

STARTER_TEACHER = "vit_starter_teacher_patch8_64"
STARTER_STUDENT = "vit_starter_student_patch8_64"
#: Tokens' width; everything else is the same in both.
WIDTHS = {STARTER_TEACHER: 96, STARTER_STUDENT: 192}


def weights_path(name: str) -> Path:
    """Return where the float16 safetensors file of a starter backbone lies."""
    return WEIGHTS_DIR / f"{name}.safetensors"


def _cfg(name: str) -> dict[str, Any]:
    return {
        "file": str(weights_path(name)),
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({f"{name}.generated": _cfg(name) for name in WIDTHS})


def _build(name: str, *, pretrained: bool, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401 - timm's own signature
    from timm.models import build_model_with_cfg  # noqa: PLC0415

    shape = {"img_size": 64, "patch_size": 8, "embed_dim": WIDTHS[name], "depth": 6, "num_heads": 3}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **{**shape, **kwargs})


@register_model
def vit_starter_teacher_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401, FBT001, FBT002 - timm's own signature
    """Build the starter teacher: width 96, 0.7 million parameters."""
    return _build(STARTER_TEACHER, pretrained=pretrained, **kwargs)


@register_model
def vit_starter_student_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401, FBT001, FBT002 - timm's own signature
    """Build the starter student: width 192, 2.7 million parameters."""
    return _build(STARTER_STUDENT, pretrained=pretrained, **kwargs)
