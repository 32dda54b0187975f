"""Tiny random networks and images that every ML test can train on in a second."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from core.catalog.methods import AdapterKind, Precision
from core.ml.backbones.load import LoadedBackbone, wrap_backbone
from core.ml.training.plan import TrainPlan, build_plan
from core.ml.training.resident import ResidentData, build_split

IMAGE_PX = 32
CLASSES = 3


def _perturb(module: nn.Module, seed: int) -> nn.Module:
    """Move every weight off its initial value, so that norms, biases and scales all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def _configure(module: nn.Module, mean: float) -> nn.Module:
    module.pretrained_cfg = {
        "input_size": (3, IMAGE_PX, IMAGE_PX),
        "mean": (mean,) * 3,
        "std": (0.5, 0.4, 0.3),
        "interpolation": "bicubic",
    }
    return module


def build_tiny(family: str, *, width: int = 24, depth: int = 3, seed: int = 0) -> nn.Module:
    """Return a random network of a family, without a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "vit":
            module: nn.Module = VisionTransformer(
                img_size=IMAGE_PX,
                patch_size=8,
                embed_dim=width,
                depth=depth,
                num_heads=3,
                num_classes=0,
                init_values=0.5,
            )
        elif family == "vit_avg":
            module = VisionTransformer(
                img_size=IMAGE_PX,
                patch_size=8,
                embed_dim=width,
                depth=depth,
                num_heads=3,
                num_classes=0,
                global_pool="avg",
            )
        else:
            kind = {"swin": SwinTransformer, "swinv2": SwinTransformerV2}[family]
            module = kind(
                img_size=IMAGE_PX,
                patch_size=2,
                window_size=4,
                embed_dim=12,
                depths=(2, 2),
                num_heads=(2, 4),
                num_classes=0,
                drop_path_rate=0.0,
            )
    return _configure(_perturb(module, seed), mean=0.5 - 0.05 * seed)


@pytest.fixture
def tiny_backbone() -> Callable[..., LoadedBackbone]:
    def build(family: str = "vit", **options: int) -> LoadedBackbone:
        return wrap_backbone(build_tiny(family, **options), f"tiny_{family}")

    return build


@pytest.fixture
def pair(tiny_backbone: Callable[..., LoadedBackbone]) -> tuple[LoadedBackbone, LoadedBackbone]:
    """A student and a smaller teacher, which normalise differently."""
    return tiny_backbone(width=24, seed=0), tiny_backbone(width=12, seed=1)


def build_tiny_plan(**changes: object) -> TrainPlan:
    defaults: dict[str, object] = {
        "num_classes": CLASSES,
        "learning_rate": 2e-2,
        "weight_decay": 1e-3,
        "precision": Precision.FP32,
        "epochs": 3,
        "batch_size": 8,
        "hidden_dim": 4,
        "kind": AdapterKind.PARALLEL,
        "scale": 0.5,
        "drop_path": 0.2,
        "seed": 7,
    }
    return build_plan(**(defaults | changes))


@pytest.fixture
def tiny_plan() -> Callable[..., TrainPlan]:
    return build_tiny_plan


def build_tiny_data(
    *, train: int = 20, val: int = 12, test: int = 9, seed: int = 0
) -> ResidentData:
    """Noise images whose class is the colour channel that is brightest."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> object:
        labels = np.arange(count) % CLASSES
        images = rng.integers(0, 120, (count, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 100
        return build_split(images, labels, device=torch.device("cpu"), teacher_images=images)

    return ResidentData(split(train), split(val), split(test), fingerprint=f"tiny-{seed}")


@pytest.fixture
def tiny_data() -> Callable[..., ResidentData]:
    return build_tiny_data
