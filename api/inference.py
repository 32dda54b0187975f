"""The inference engine of this process: from a model's reference and images to logits and features.

One of the two modules of the API that load torch; imported only with the `inference` role.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import numpy as np
import torch
from anyio import CapacityLimiter
from fastapi import Request
from numpy.typing import NDArray

from core.clock import monotonic_s
from core.errors import ConflictError, FieldError, InvalidError, UnavailableError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.load import LoadedBackbone, WeightsMismatchError, load_backbone
from core.ml.backbones.normalise import normalise_images
from core.ml.backbones.precision import resolve_device, resolve_precision
from core.ml.data.preprocess import ImageError, preprocess
from core.ml.export.bundle import Bundle, parse_bundle, restore_model
from core.ml.export.merged import check_mergeable, encode_merged, merge_bundle
from core.platform.db.engine import Database
from core.platform.models.repository import get_model
from core.platform.storage.base import BlobStore
from core.settings import Settings

#: uint8 (px, px, 3), or float32 (3, px, px) that is normalised already.
Pixels = NDArray[Any]

_MODEL_CACHE_BYTES = 256 << 20
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


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of a request's images.

    Attributes:
        model_id: the model that answered.
        classes: names, in the order of the logits.
        logits: fp32 (images, classes).
        features: fp32 (images, num_features), what the head read.
        decode_ms: time until the last image was decoded and resized.
        queue_ms: longest wait of an image between that and the network.
        forward_ms: time in the network.
    """

    model_id: str
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    decode_ms: float
    queue_ms: float
    forward_ms: float


@dataclass(frozen=True, eq=False)
class ServedModel:
    """What serving needs to know of a published model; detached from the database."""

    id: str
    name: str
    project_id: str
    adapter_sha256: str
    config_sha256: str
    backbone: str
    classes: tuple[str, ...]


class InferenceEngine:
    """Answers in threads of its own, so that a slow model never holds up the other routes."""

    def __init__(self, settings: Settings, store: BlobStore, database: Database) -> None:
        """Find the device; backbones are loaded when the first model needs them."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._store = store
        self._database = database
        self._max_pixels = settings.max_image_pixels
        self._device = resolve_device(settings.device)
        self._precision = resolve_precision("auto", self._device)
        self._limiter = CapacityLimiter(max(2, os.cpu_count() or 1))
        self._merge_limiter = CapacityLimiter(1)
        self._weights_dir = settings.weights_dir
        self._lock = threading.Lock()
        self._backbones: dict[str, LoadedBackbone] = {}
        self._models: OrderedDict[tuple[str, str], AdaptedModel] = OrderedDict()
        self._forward_lock = threading.Lock()

    def find_fault(self) -> str | None:
        """Return why no image can be classified now, or None."""
        waiting = self._limiter.statistics().tasks_waiting
        return f"{waiting} requests wait" if waiting >= _MAX_WAITING else None

    async def resolve(self, project: str, reference: str) -> ServedModel:
        """Return the model that an id or a name means to a project.

        Raises:
            NotFoundError: no such model.
        """
        return await anyio.to_thread.run_sync(self._resolve, project, reference)

    def _resolve(self, project: str, reference: str) -> ServedModel:
        with self._database.read() as session:
            row = get_model(session, reference)
            return ServedModel(
                id=row.id,
                name=row.name,
                project_id=project,
                adapter_sha256=row.adapter_sha256,
                config_sha256=row.config_sha256,
                backbone=row.backbone,
                classes=tuple(row.classes),
            )

    async def predict(
        self,
        model: ServedModel,
        images: Sequence[EncodedImage | Pixels],
        *,
        project: str,
        deadline_s: float | None = None,
        request: Request | None = None,
    ) -> Predictions:
        """Return the model's logits and features of every image.

        Args:
            model: as `resolve` gives it.
            images: at least one.
            project: whose turn this takes.
            deadline_s: seconds that the answer is worth waiting for.
            request: ends the work when its client has gone.

        Raises:
            InvalidError: an image cannot be decoded; the message names it.
            OverloadedError: too many requests wait already.
            ConflictError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone is not here.
        """
        del project, deadline_s, request
        if self._limiter.statistics().tasks_waiting >= _MAX_WAITING:
            raise OverloadedError("too many requests wait for classification; try again")
        return await anyio.to_thread.run_sync(self._predict, model, images, limiter=self._limiter)

    async def load(self, model: ServedModel) -> None:
        """Make a model ready, and keep it so until `unload`; raises what `predict` does."""
        await anyio.to_thread.run_sync(self._get_model, model, limiter=self._limiter)

    async def unload(self, model: ServedModel) -> None:
        """Free what a model takes; a request for it loads it again."""
        with self._lock:
            self._models.pop((model.adapter_sha256, model.config_sha256), None)

    def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""
        return (model.adapter_sha256, model.config_sha256) in self._models

    def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys (adapter, config digests) of the models in memory."""
        return list(self._models)

    async def merge(self, model: ServedModel) -> bytes:
        """Return a model written into its network, as a plain timm checkpoint.

        One at a time: each takes memory for several copies of the network.

        Raises:
            UnsupportedAdapterError: its kind of adapter is no linear change of the weights.
            ConflictError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone is not here.
        """
        return await anyio.to_thread.run_sync(self._merge, model, limiter=self._merge_limiter)

    def _merge(self, model: ServedModel) -> bytes:
        bundle = self._load_bundle(model)
        check_mergeable(bundle)
        # Not the resident one, which may be cast, on a GPU, and in use.
        backbone = load_backbone(bundle.backbone.name, weights_dir=self._weights_dir)
        try:
            state = merge_bundle(bundle, backbone)
        except WeightsMismatchError as error:
            raise ConflictError(error.message, code=error.code) from error
        return encode_merged(state, bundle, bundle.classes)

    def _predict(self, model: ServedModel, images: Sequence[EncodedImage | Pixels]) -> Predictions:
        adapted = self._get_model(model)
        started_s = monotonic_s()
        px = adapted.backbone.image_px
        pixels = [self._decode(image, index, px) for index, image in enumerate(images)]
        decoded_s = monotonic_s()
        with self._forward_lock, torch.no_grad():
            run_s = monotonic_s()
            batch = torch.stack(
                [
                    normalise_images(torch.tensor(p, device=self._device)[None], adapted.backbone)[
                        0
                    ]
                    if p.dtype == np.uint8
                    else torch.tensor(p, device=self._device).to(adapted.backbone.dtype)
                    for p in pixels
                ]
            )
            features = adapted.features(batch)
            logits = adapted.head(features)
        return Predictions(
            model_id=model.id,
            classes=model.classes,
            logits=logits.float().cpu().numpy(),
            features=features.float().cpu().numpy(),
            decode_ms=(decoded_s - started_s) * 1000,
            queue_ms=(run_s - decoded_s) * 1000,
            forward_ms=(monotonic_s() - run_s) * 1000,
        )

    def _decode(self, image: EncodedImage | Pixels, index: int, image_px: int) -> Pixels:
        if not isinstance(image, EncodedImage):
            return image
        try:
            return preprocess(image.data, image_px, max_pixels=self._max_pixels)
        except ImageError as error:
            message = f"{image.name}: {error.message}"
            field = FieldError(f"/{index}", message, error.code)
            raise InvalidError(message, code=error.code, fields=(field,)) from error

    def _get_model(self, model: ServedModel) -> AdaptedModel:
        key = (model.adapter_sha256, model.config_sha256)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
        bundle = self._load_bundle(model)
        name = bundle.backbone.name
        with self._lock:
            if name not in self._backbones:
                backbone = load_backbone(name, weights_dir=self._weights_dir)
                backbone.place(device=self._device, precision=self._precision)
                self._backbones[name] = backbone
            try:
                adapted = restore_model(bundle, self._backbones[name])
            except WeightsMismatchError as error:
                # Not the request's fault, which the error's own family would say.
                raise ConflictError(error.message, code=error.code) from error
            self._models[key] = adapted
            while len(self._models) > 1 and self._cached_bytes() > _MODEL_CACHE_BYTES:
                self._models.popitem(last=False)
        return adapted

    def _load_bundle(self, model: ServedModel) -> Bundle:
        with self._store.open(model.adapter_sha256) as file:
            adapter = file.read()
        with self._store.open(model.config_sha256) as file:
            config = file.read()
        try:
            return parse_bundle(adapter, config)
        except InvalidError as error:
            # This service wrote it: the caller's request is not to blame.
            raise RuntimeError(f"the stored bundle of {model.id} is broken") from error

    def _cached_bytes(self) -> int:
        return sum(p.nbytes for model in self._models.values() for p in model.parameters())
