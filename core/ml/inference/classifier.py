"""Answer for many models with few backbones, adapters attached to each in turn.

Requests for models of one backbone take turns on it; models of different backbones run side by
side.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from core.catalog.methods import Precision
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.normalise import normalise_images
from core.ml.export.bundle import Bundle, check_weights, restore_model

BATCH_IMAGES = 64
CACHE_BYTES = 256 * 2**20


@dataclass(eq=False)
class _Resident:
    """A backbone and whose turn it is on it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    backbone: LoadedBackbone | None = None


class Classifier:
    """Class probabilities of images, safe to call from any number of threads.

    Args:
        device: where the networks run.
        weights_dir: folder with backbone weights, searched before the hub.
        precision: of frozen weights and activations.
        cache_bytes: adapters and heads kept attached-ready; the least recently used go first.
        load: gives a frozen backbone by name; for tests.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        weights_dir: Path | None = None,
        precision: Precision = Precision.FP32,
        cache_bytes: int = CACHE_BYTES,
        load: Callable[[str], LoadedBackbone] | None = None,
    ) -> None:
        self._device = device
        self._precision = precision
        self._cache_bytes = cache_bytes
        self._load = load or (lambda name: load_backbone(name, weights_dir=weights_dir))
        self._lock = threading.Lock()
        self._residents: dict[str, _Resident] = {}
        self._models: OrderedDict[tuple[str, str, AdapterSpec], AdaptedModel] = OrderedDict()

    def classify(self, bundle: Bundle, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability of every class for every image.

        Args:
            bundle: the model.
            images: uint8 (images, px, px, 3), resized as the training images were.

        Returns:
            (images, classes), rows summing to 1.

        Raises:
            InvalidError: the images do not have the model's size.
            WeightsMismatchError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone cannot be loaded.
        """
        px = bundle.backbone.image_px
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (px, px, 3):  # noqa: PLR2004
            raise InvalidError(
                f"images are {images.dtype} {images.shape}, not uint8 (n, {px}, {px}, 3)"
            )
        with self._lock:
            resident = self._residents.setdefault(bundle.backbone.name, _Resident())
        with resident.lock, torch.no_grad():
            if resident.backbone is None:
                resident.backbone = self._load_backbone(bundle.backbone.name)
            model = self._get_model(bundle, resident.backbone)
            parts = [
                self._run(model, images[start : start + BATCH_IMAGES])
                for start in range(0, len(images), BATCH_IMAGES)
            ]
        if not parts:
            return np.zeros((0, len(bundle.classes)), dtype=np.float32)
        return np.concatenate(parts)

    def resident_backbones(self) -> list[str]:
        """Return the names of the backbones in memory."""
        with self._lock:
            return [name for name, r in self._residents.items() if r.backbone is not None]

    def _load_backbone(self, name: str) -> LoadedBackbone:
        backbone = self._load(name)
        backbone.place(device=self._device, precision=self._precision)
        return backbone

    def _get_model(self, bundle: Bundle, backbone: LoadedBackbone) -> AdaptedModel:
        """Return the model ready to run; the caller holds the backbone's lock."""
        check_weights(bundle, backbone)
        # The same tensors mean another model where kind or scale differ.
        key = (bundle.backbone.name, bundle.sha256, bundle.spec)
        with self._lock:
            model = self._models.get(key)
            if model is not None:
                self._models.move_to_end(key)
                return model
        model = restore_model(bundle, backbone)
        with self._lock:
            self._models[key] = model
            while len(self._models) > 1 and self._cached_bytes() > self._cache_bytes:
                self._models.popitem(last=False)
        return model

    def _cached_bytes(self) -> int:
        return sum(p.nbytes for model in self._models.values() for p in model.parameters())

    def _run(self, model: AdaptedModel, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.tensor(images, device=self._device)
        logits = model(normalise_images(batch, model.backbone))
        probabilities: NDArray[np.float32] = logits.softmax(dim=1).cpu().numpy()
        return probabilities
