"""Models of every kind on tiny networks, their bundles, and what each answers by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.export.bundle import Bundle, save_bundle
from core.ml.inference.engine import Engine

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Made:
    """A model and its bundle."""

    model: AdaptedModel
    bundle: Bundle

    def answer(self, pixels: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return its own logits and features for one image."""
        batch = torch.from_numpy(pixels).unsqueeze(0)
        if batch.dtype == torch.uint8:
            batch = normalise_images(batch, self.model.backbone)
        with torch.no_grad():
            features = self.model.features(batch.to(self.model.backbone.dtype))
            return self.model.head(features)[0].numpy(), features[0].numpy()


@pytest.fixture
def make_model(tiny_backbone, tmp_path) -> Callable[..., Made]:
    """Build a model whose adapters change the answer a lot."""
    backbones: dict[str, LoadedBackbone] = {}
    count = iter(range(10**6))

    def make(
        family: str = "vit",
        kind: AdapterKind = AdapterKind.SEQUENTIAL,
        *,
        hidden_dim: int = 4,
        scale: float = 0.5,
        classes: int = 3,
        strength: float = 0.1,
    ) -> Made:
        seed = next(count)
        if family not in backbones:
            backbones[family] = tiny_backbone(family)
        model = AdaptedModel(
            backbones[family], AdapterSpec(kind, hidden_dim, scale), classes, seed=seed
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(strength * torch.randn(parameter.shape, generator=generator))
        bundle = save_bundle(
            tmp_path / f"model-{seed}",
            model,
            classes=[f"class {index}" for index in range(classes)],
            recipe={},
            metrics={},
            versions={},
        )
        return Made(model, bundle)

    return make


@pytest.fixture
def build_engine(tiny_backbone) -> Callable[..., Engine]:
    def build(**options: Any) -> Engine:
        defaults = {
            "device": CPU,
            "precision": Precision.FP32,
            "load": lambda name: tiny_backbone(name.removeprefix("tiny_")),
        }
        return Engine(**(defaults | options))

    return build


@pytest.fixture
def draw_pixels() -> Callable[[int], list[NDArray[np.uint8]]]:
    def draw(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
        rng = np.random.default_rng(seed)
        return list(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))

    return draw
