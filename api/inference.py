"""The inference engine of this process: from a model's reference and images to logits and features.

A request's way: admission → the model is pinned, loaded first if need be → images are decoded in
threads → the network's thread takes what is ready, models mixed → the event loop answers. The
networks are in this process, or behind a socket in an engine process (`api.networks`).
One of the modules of the API that load torch; imported only with the `inference` role.
"""

import os
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import torch
from anyio import CapacityLimiter
from fastapi import Request

from api.bundles import merge_model
from api.calls import Call, Predictions, hand_back
from api.engine.client import RemoteNetworks
from api.metrics import ServingMetrics
from api.networks import LocalNetworks, Networks, Seat
from api.onnx_files import OnnxFiles
from api.pixels import EncodedImage, Pixels, check_pixels, decode_image
from api.resolution import ModelResolver, ServedModel
from api.shadows import SHADOW_PROJECT, Shadows
from api.timeouts import read_timeout_s
from core.clock import monotonic_s
from core.errors import InvalidError, RateLimitedError, UnavailableError
from core.ml.export.bundle import Bundle
from core.ml.inference.admission import OverloadedError
from core.ml.inference.batcher import Ticket
from core.ml.inference.decoding import DecodePool
from core.platform.db.engine import Database
from core.platform.storage.base import BlobStore
from core.settings import Settings

__all__ = [
    "EncodedImage", "InferenceEngine", "OverloadedError", "Pixels", "Predictions", "ServedModel",
]  # fmt: skip

_MAX_DECODE_THREADS = 16
_CLOSE_S = 10.0


class InferenceEngine:
    """Answers in threads of its own, so that a slow model never holds up the other routes."""

    def __init__(self, settings: Settings, store: BlobStore, database: Database) -> None:
        """Start the threads, and the loading of the backbones that will be wanted first."""
        self._settings = settings
        self._store = store
        self._resolver = ModelResolver(database)
        self._decoding = DecodePool(
            settings.inference_decode_threads or min(os.cpu_count() or 1, _MAX_DECODE_THREADS),
            self._decode,
            ready=lambda ticket: self.networks.put([ticket]),
            failed=lambda ticket: hand_back([ticket]),
            weight_of=self._resolver.weight_of,
        )
        #: where images go once they are decoded: here, or in an engine process
        self.networks = self._build_networks(database)
        self.metrics = ServingMetrics()
        self.metrics.registry.register(self.networks.collector)
        self._shadows = Shadows(database, predict=self._predict_shadow, is_idle=self._is_idle)
        self._merging = CapacityLimiter(1)
        #: models as ONNX files
        self.onnx_files = OnnxFiles(
            settings.data_dir / "onnx",
            max_bytes=settings.onnx_cache_bytes,
            store=store,
            weights_dir=settings.weights_dir,
        )

    async def start(self) -> None:
        """Begin, on the event loop that requests will run on."""
        await self.networks.start()

    def find_fault(self) -> str | None:
        """Return why no image should be sent here now, or None."""
        return self.networks.find_fault()

    def check_admission(self, project: str, reference: str | None) -> None:
        """Refuse a request before its body is read, if it would be refused after that.

        Args:
            project: whose it is.
            reference: its model, if the path says it. One that is not known yet is let through.

        Raises:
            ProjectOverloadedError: the project has too much under way.
            OverloadedError: everybody together has.
        """
        model = self._resolver.find_known(project, reference) if reference else None
        self.networks.check_admission(project, model)

    async def resolve(self, project: str, reference: str) -> ServedModel:
        """Return the model that an id, a name or `name@alias` means to a project.

        What the database says holds for a second.

        Raises:
            NotFoundError: no such model.
        """
        return await self._resolver.resolve(project, reference)

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
            deadline_s: from now; None for what the request's header says, or the setting, which
                is the most in any case.
            request: one whose client is watched: when it goes, the work ends. Its body must have
                been read.

        Raises:
            InvalidError: an image cannot be used; `fields` point at it as `/<index>`.
            OverloadedError: more images wait than can be answered in time.
            ProjectOverloadedError: this project has too many under way.
            DeadlineError: there was no answer in time.
            ConflictError: the model does not fit the backbone that is here.
            WeightsUnavailableError: the backbone is not here.
        """
        if not images:
            raise InvalidError("there is no image to look at", code="image_missing")
        if deadline_s is None and request is not None:
            deadline_s = read_timeout_s(request.scope)
        longest_s = self._settings.inference_deadline_s
        timeout_s = longest_s if deadline_s is None else min(deadline_s, longest_s)
        due_s = monotonic_s() + timeout_s
        count = len(images)
        try:
            seat = await self.networks.book(model, project, count, timeout_s)
        except (RateLimitedError, UnavailableError) as error:
            self.metrics.count_rejection(error)
            raise
        try:
            call = Call(
                model.id,
                model.classes,
                count,
                precision=self.networks.precision,
                retire=lambda: self.networks.leave(seat),
            )
            tickets = self._build_tickets(call, seat, images, due_s)
        except BaseException:
            self.networks.leave(seat)
            raise
        self._send(tickets)
        try:
            predictions = await call.wait(due_s, timeout_s, request)
        except BaseException as error:
            self.networks.give_up(seat)
            if isinstance(error, Exception):
                self.metrics.count_failure(model.id, error)
            raise
        self.metrics.count_answer(model.id, count, predictions)
        if model.shadow is not None:
            self._shadows.offer(model.shadow, images, predictions)
        return predictions

    async def load(self, model: ServedModel, *, is_kept: bool = True) -> None:
        """Make a model ready; raises what `predict` does about the model.

        Args:
            model: as `resolve` gives it.
            is_kept: whether it stays in memory until `unload`, whatever else is wanted there.

        Raises:
            ConflictError: `bank_full`: the models that are kept already leave no room for it.
        """
        await self.networks.load(model, is_kept=is_kept)

    async def unload(self, model: ServedModel) -> None:
        """Free what a model takes; a request for it loads it again."""
        await self.networks.unload(model)

    async def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""
        return await self.networks.is_ready(model)

    async def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys (adapter, config digests) of the models in memory."""
        return await self.networks.list_resident()

    async def check(self, bundle: Bundle) -> None:
        """Look whether a bundle answers here; see `api.bundles.check_bundle`."""
        await self.networks.check(bundle)

    async def merge(self, model: ServedModel) -> bytes:
        """Return a model as a plain timm checkpoint; see `api.bundles.merge_model`.

        One at a time: each takes memory for several copies of the network.
        """
        weights_dir = self._settings.weights_dir
        return await anyio.to_thread.run_sync(
            merge_model, self._store, model, weights_dir, limiter=self._merging
        )

    def close(self) -> None:
        """End the threads; what is still under way is finished first, within some seconds."""
        self._shadows.close(_CLOSE_S)
        self._resolver.close()
        self._decoding.close(_CLOSE_S)
        self.networks.close()

    def _build_networks(self, database: Database) -> Networks:
        path = self._settings.resolved_engine_socket
        if path is not None:
            if self._settings.threads:
                torch.set_num_threads(self._settings.threads)  # decoding resizes with torch
            return RemoteNetworks(
                path, find_rate=self._decoding.find_rate, weight_of=self._resolver.weight_of
            )
        return LocalNetworks(
            self._settings,
            self._store,
            database,
            deliver=hand_back,
            find_rate=self._decoding.find_rate,
            weight_of=self._resolver.weight_of,
        )

    async def _predict_shadow(self, model: ServedModel, images: Sequence[Any]) -> Predictions:
        return await self.predict(model, images, project=SHADOW_PROJECT)

    def _is_idle(self, model: ServedModel) -> bool:
        return self.networks.is_idle(model.backbone)

    def _build_tickets(
        self,
        call: Call,
        seat: Seat,
        images: Sequence[EncodedImage | Pixels],
        due_s: float,
    ) -> list[Ticket]:
        resident, project = seat.resident, seat.project
        tickets = []
        for index, image in enumerate(images):
            pixels = None
            if not isinstance(image, EncodedImage):
                check_pixels(image, index, resident.image_px)
                pixels = image
            tickets.append(
                Ticket(
                    call, index, project, resident, resident.batch_key, due_s, image, pixels=pixels
                )
            )
        return tickets

    def _send(self, tickets: list[Ticket]) -> None:
        encoded = [ticket for ticket in tickets if ticket.pixels is None]
        if encoded:
            self._decoding.put(encoded)
        if len(encoded) < len(tickets):
            self.networks.put([ticket for ticket in tickets if ticket.pixels is not None])

    def _decode(self, ticket: Ticket) -> Pixels:
        max_pixels = self._settings.max_image_pixels
        return decode_image(ticket.source, ticket.index, ticket.resident, max_pixels=max_pixels)
