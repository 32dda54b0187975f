"""Runs whose predictions are known because they were written down."""

from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.analysis.predictions import Predictions
from core.ml.backbones.load import LoadedBackbone, wrap_backbone
from core.ml.data.manifest import Manifest, ManifestItem, build_manifest
from core.ml.training.resident import ResidentData, build_split
from core.types import Split

PX = 16


def make_backbone(*, seed: int = 0, width: int = 12) -> LoadedBackbone:
    """A tiny random ViT with a class token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = VisionTransformer(
            img_size=PX, patch_size=8, embed_dim=width, depth=2, num_heads=2, num_classes=0
        )
    module.pretrained_cfg = {"input_size": (3, PX, PX), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return wrap_backbone(module, f"made_{width}")


def make_model(*, classes: int, seed: int = 0, width: int = 12) -> AdaptedModel:
    """A tiny untrained model."""
    spec = AdapterSpec(AdapterKind.PARALLEL, 2)
    return AdaptedModel(make_backbone(width=width), spec, classes, seed=seed)


def make_manifest(classes: int, labels: dict[Split, list[int]]) -> Manifest:
    """Images named `SPLIT/ROW.png` with these labels."""
    items = [
        ManifestItem(f"{split.value}/{row:05d}.png", label, split, "0" * 64, PX, PX)
        for split, given in labels.items()
        for row, label in enumerate(given)
    ]
    names = sorted(f"class {index:03d}" for index in range(classes))
    return build_manifest(names, items, seed=0, preprocess_version=1)


def make_inputs(
    classes: int,
    labels: dict[Split, list[int]],
    logits: dict[Role, dict[Split, Any]],
    **changes: Any,
) -> AnalysisInputs:
    """Inputs whose models say what `logits` has, without being run."""
    rng = np.random.default_rng(0)

    def split(name: Split) -> Any:
        if not labels.get(name):
            return None
        images = rng.integers(0, 255, (len(labels[name]), PX, PX, 3), dtype=np.uint8)
        return build_split(
            images, np.array(labels[name]), device=torch.device("cpu"), teacher_images=images
        )

    said = {
        (role, name): Predictions(np.array(values, np.float64), np.array(labels[name], np.int64))
        for role, by_split in logits.items()
        for name, values in by_split.items()
    }
    fields: dict[str, Any] = {
        "models": {role: make_model(classes=classes, seed=n) for n, role in enumerate(logits)},
        "data": ResidentData(*(split(name) for name in Split), fingerprint="made"),
        "manifest": make_manifest(classes, {name: labels.get(name, []) for name in Split}),
        "histories": {Role.STUDENT: []},
        "best_epoch": 0,
        "seed": 3,
        "_predictions": said,
    }
    return AnalysisInputs(**(fields | changes))


def draw_logits(labels: list[int], classes: int, *, seed: int, skill: float = 2.0) -> np.ndarray:
    """Noisy logits that favour the right class."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill
    return logits
