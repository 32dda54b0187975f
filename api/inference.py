"""The inference engine of this process: from a model's row and encoded images to class scores.

One of the two modules of the API that load torch; imported only with the `inference` role.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
import numpy as np
import torch
from anyio import CapacityLimiter

from api.schemas.models import ClassScore
from core.clock import monotonic_s
from core.errors import ConflictError, FieldError, InvalidError, UnavailableError
from core.ml.backbones.load import WeightsMismatchError, load_backbone
from core.ml.backbones.precision import resolve_device
from core.ml.data.preprocess import ImageError, preprocess
from core.ml.export.bundle import Bundle, parse_bundle
from core.ml.export.merged import check_mergeable, encode_merged, merge_bundle
from core.ml.inference.classifier import Classifier
from core.platform.db.tables import ModelRow
from core.platform.storage.base import BlobStore
from core.settings import Settings

_BUNDLE_CACHE_BYTES = 64 << 20
#: Requests that may wait for a thread; more would only time out in line.
_MAX_WAITING = 64


class OverloadedError(UnavailableError):
    """More images wait than can be classified in reasonable time."""

    code = "overloaded"


@dataclass(frozen=True)
class EncodedImage:
    """One image of a request.

    Attributes:
        name: what the caller calls it, for error messages.
        data: JPEG, PNG, WebP or BMP.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Answer:
    """The scores of a request's images.

    Attributes:
        scores: for every image its likeliest classes, best first.
        decode_ms: time spent on decoding and resizing.
        forward_ms: time spent in the network, waiting for other requests included.
    """

    scores: list[list[ClassScore]]
    decode_ms: float
    forward_ms: float


class InferenceEngine:
    """Classifies in threads of its own, so that a slow model never holds up the other routes."""

    def __init__(self, settings: Settings, store: BlobStore) -> None:
        """Find the device; backbones are loaded when the first model needs them."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._store = store
        self._max_pixels = settings.max_image_pixels
        self._classifier = Classifier(
            device=resolve_device(settings.device), weights_dir=settings.weights_dir
        )
        self._limiter = CapacityLimiter(max(2, os.cpu_count() or 1))
        self._merge_limiter = CapacityLimiter(1)
        self._weights_dir = settings.weights_dir
        self._lock = threading.Lock()
        self._bundles: OrderedDict[tuple[str, str], Bundle] = OrderedDict()

    def find_fault(self) -> str | None:
        """Return why no image can be classified now, or None."""
        waiting = self._limiter.statistics().tasks_waiting
        return f"{waiting} requests wait" if waiting >= _MAX_WAITING else None

    async def classify(self, row: ModelRow, images: Sequence[EncodedImage], top_k: int) -> Answer:
        """Return each image's `top_k` likeliest classes.

        Args:
            row: the published model.
            images: at least one.
            top_k: classes per image; a model with fewer gives all it has.

        Raises:
            InvalidError: an image cannot be decoded; the message names it.
            OverloadedError: too many requests wait already.
            ConflictError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone is not here.
        """
        if self._limiter.statistics().tasks_waiting >= _MAX_WAITING:
            raise OverloadedError("too many requests wait for classification; try again")
        return await anyio.to_thread.run_sync(
            self._classify, row, images, top_k, limiter=self._limiter
        )

    async def merge(self, row: ModelRow) -> bytes:
        """Return a model written into its network, as a plain timm checkpoint.

        One at a time: each takes memory for several copies of the network.

        Raises:
            UnsupportedAdapterError: its kind of adapter is no linear change of the weights.
            ConflictError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone is not here.
        """
        return await anyio.to_thread.run_sync(self._merge, row, limiter=self._merge_limiter)

    def _merge(self, row: ModelRow) -> bytes:
        bundle = self._get_bundle(row)
        check_mergeable(bundle)
        # Not the resident one, which may be cast, on a GPU, and in use.
        backbone = load_backbone(bundle.backbone.name, weights_dir=self._weights_dir)
        try:
            state = merge_bundle(bundle, backbone)
        except WeightsMismatchError as error:
            raise ConflictError(error.message, code=error.code) from error
        return encode_merged(state, bundle, bundle.classes)

    def _classify(self, row: ModelRow, images: Sequence[EncodedImage], top_k: int) -> Answer:
        bundle = self._get_bundle(row)
        started_s = monotonic_s()
        pixels = np.stack(
            [
                self._decode(image, index, bundle.backbone.image_px)
                for index, image in enumerate(images)
            ]
        )
        decoded_s = monotonic_s()
        try:
            probabilities = self._classifier.classify(bundle, pixels)
        except WeightsMismatchError as error:
            # Not the request's fault, which the error's own family would say.
            raise ConflictError(error.message, code=error.code) from error
        finished_s = monotonic_s()
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        scores = [
            [ClassScore(label=bundle.classes[c], score=float(row_scores[c])) for c in order]
            for row_scores, order in zip(probabilities, best, strict=True)
        ]
        return Answer(
            scores,
            decode_ms=(decoded_s - started_s) * 1000,
            forward_ms=(finished_s - decoded_s) * 1000,
        )

    def _decode(self, image: EncodedImage, index: int, image_px: int) -> np.ndarray:
        try:
            return preprocess(image.data, image_px, max_pixels=self._max_pixels)
        except ImageError as error:
            message = f"{image.name}: {error.message}"
            field = FieldError(f"/{index}", message, error.code)
            raise InvalidError(message, code=error.code, fields=(field,)) from error

    def _get_bundle(self, row: ModelRow) -> Bundle:
        key = (row.adapter_sha256, row.config_sha256)
        with self._lock:
            if key in self._bundles:
                self._bundles.move_to_end(key)
                return self._bundles[key]
        with self._store.open(row.adapter_sha256) as file:
            adapter = file.read()
        with self._store.open(row.config_sha256) as file:
            config = file.read()
        try:
            bundle = parse_bundle(adapter, config)
        except InvalidError as error:
            # This service wrote it: the caller's request is not to blame.
            raise RuntimeError(f"the stored bundle of {row.id} is broken") from error
        with self._lock:
            self._bundles[key] = bundle
            while len(self._bundles) > 1 and self._cached_bytes() > _BUNDLE_CACHE_BYTES:
                self._bundles.popitem(last=False)
        return bundle

    def _cached_bytes(self) -> int:
        return sum(bundle.size_bytes for bundle in self._bundles.values())
