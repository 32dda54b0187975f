"""The inference engine of this process: from a model's reference and images to logits and features.

A request's way: admission → the model is pinned, loaded first if need be → images are decoded in
threads → the network's thread takes what is ready, models mixed → the event loop answers.
One of the modules of the API that load torch; imported only with the `inference` role.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import torch
from anyio import CapacityLimiter
from fastapi import Request

from api.bundles import check_bundle, make_resident, merge_model
from api.calls import Call, Predictions, hand_back
from api.lanes import Lane, Lanes
from api.metrics import ServingMetrics
from api.onnx_files import OnnxFiles
from api.pixels import EncodedImage, Pixels, check_pixels, decode_image
from api.resolution import ModelResolver, ServedModel
from api.shadows import SHADOW_PROJECT, Shadows
from api.timeouts import read_timeout_s
from api.warm_up import WarmUp
from core.clock import monotonic_s
from core.errors import ConflictError, DeadlineError, InvalidError
from core.ml.backbones.precision import resolve_device, resolve_precision
from core.ml.export.bundle import Bundle
from core.ml.inference.admission import OverloadedError
from core.ml.inference.batcher import Ticket
from core.ml.inference.decoding import DecodePool
from core.ml.inference.engine import Engine, Resident
from core.ml.inference.residency import Residency
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
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = resolve_device(settings.device)
        precision = resolve_precision(settings.inference_precision, device)
        #: number format of the networks: `fp32` or `bf16`
        self.precision: str = precision.value
        self._settings = settings
        self._store = store
        self._engine = Engine(
            device=device,
            precision=precision,
            weights_dir=settings.weights_dir,
            max_batch=settings.inference_max_batch,
        )
        self.metrics = ServingMetrics(precision=self.precision)
        self._resolver = ModelResolver(database)
        self.residency: Residency[ServedModel] = Residency(
            lambda model: make_resident(self._engine, self._store, model),
            self._engine.evict,
            max_bytes=settings.inference_bank_bytes,
        )
        self._decoding = DecodePool(
            settings.inference_decode_threads or min(os.cpu_count() or 1, _MAX_DECODE_THREADS),
            self._decode,
            ready=lambda ticket: self.lanes.get(ticket.resident.backbone).batcher.put([ticket]),
            failed=lambda ticket: hand_back([ticket]),
            weight_of=self._resolver.weight_of,
        )
        self.lanes = Lanes(self._build_lane)
        self._shadows = Shadows(database, predict=self._predict_shadow, is_idle=self._is_idle)
        self._merging = CapacityLimiter(1)
        #: models as ONNX files
        self.onnx_files = OnnxFiles(
            settings.data_dir / "onnx",
            max_bytes=settings.onnx_cache_bytes,
            store=store,
            weights_dir=settings.weights_dir,
        )
        self._warm_up = WarmUp(self._engine.prepare, database, settings.warm_backbones)
        self.metrics.watch(self.residency, self.lanes.list_all)

    def find_fault(self) -> str | None:
        """Return why no image should be sent here now, or None."""
        faults = [
            self._warm_up.find_fault(),
            *(lane.find_fault() for lane in self.lanes.list_all()),
        ]
        return "; ".join(fault for fault in faults if fault) or None

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
        lane = self.lanes.find(model.backbone) if model else None
        if lane is not None:
            lane.admission.check(project)

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
            deadline_s = read_timeout_s(request.headers)
        longest_s = self._settings.inference_deadline_s
        timeout_s = longest_s if deadline_s is None else min(deadline_s, longest_s)
        due_s = monotonic_s() + timeout_s
        lane = self.lanes.get(model.backbone)
        count = len(images)
        try:
            lane.admission.enter(project, count)
        except Exception as error:
            self.metrics.count_rejection(error)
            raise
        try:
            resident = await self._pin(model, timeout_s)
            try:
                call = Call(
                    model.id,
                    model.classes,
                    count,
                    precision=self.precision,
                    retire=lambda: self._retire(lane, model, project, count),
                )
                tickets = self._build_tickets(call, resident, images, project, due_s)
            except BaseException:
                self.residency.unpin(model.key)
                raise
        except BaseException:
            lane.admission.leave(project, count)
            raise
        self._send(lane, tickets)
        try:
            predictions = await call.wait(due_s - monotonic_s(), request)
        except Exception as error:
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
        await self._pin(model, None)
        try:
            if is_kept and not self.residency.keep(model.key):
                raise ConflictError(
                    "the models that are kept in memory leave no room for this one; unload some, "
                    "or raise IDAT_INFERENCE_BANK_BYTES",
                    code="bank_full",
                )
        finally:
            self.residency.unpin(model.key)

    async def unload(self, model: ServedModel) -> None:
        """Free what a model takes; a request for it loads it again."""
        self.residency.drop(model.key)

    def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""
        return self.residency.is_resident(model.key)

    def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys (adapter, config digests) of the models in memory."""
        return self.residency.list_keys()

    async def check(self, bundle: Bundle) -> None:
        """Look whether a bundle answers here; see `api.bundles.check_bundle`."""
        await anyio.to_thread.run_sync(check_bundle, self._engine, bundle)

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
        self._warm_up.close()
        self._resolver.close()
        self._decoding.close(_CLOSE_S)
        for lane in self.lanes.list_all():
            lane.batcher.close(_CLOSE_S)
        self.residency.close()

    async def _pin(self, model: ServedModel, timeout_s: float | None) -> Resident:
        resident: Resident | None = self.residency.pin(model.key)
        if resident is not None:
            return resident
        loading = self.residency.load(model.key, model)
        waiting = asyncio.wrap_future(loading)
        try:
            # Shielded: others may wait for the same load when this request is cancelled or late.
            loaded: Resident = await asyncio.wait_for(asyncio.shield(waiting), timeout_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is error:
                raise  # the load's own
            waiting.add_done_callback(lambda done: self._let_go(model, done))
            if isinstance(error, TimeoutError):
                raise DeadlineError("the model was not loaded in time; try again") from error
            raise
        return loaded

    async def _predict_shadow(self, model: ServedModel, images: Sequence[Any]) -> Predictions:
        return await self.predict(model, images, project=SHADOW_PROJECT)

    def _is_idle(self, model: ServedModel) -> bool:
        lane = self.lanes.find(model.backbone)
        return lane is None or lane.admission.images == 0

    def _let_go(self, model: ServedModel, done: "asyncio.Future[Any]") -> None:
        """Give back the pin of a load that nobody waited for to its end."""
        if not done.cancelled() and done.exception() is None:
            self.residency.unpin(model.key)

    def _build_lane(self, backbone: str) -> Lane:
        return Lane(
            backbone,
            self._settings,
            forward=self._engine.forward,
            deliver=self._deliver,
            find_rate=self._decoding.find_rate,
            weight_of=self._resolver.weight_of,
        )

    def _deliver(self, tickets: list[Ticket]) -> None:
        images = sum(ticket.forward_s > 0 for ticket in tickets)
        if images:
            first = tickets[0]
            self.metrics.observe_batch(first.resident.backbone, images, first.forward_s)
        hand_back(tickets)

    def _retire(self, lane: Lane, model: ServedModel, project: str, images: int) -> None:
        self.residency.unpin(model.key)
        lane.admission.leave(project, images)

    def _build_tickets(
        self,
        call: Call,
        resident: Resident,
        images: Sequence[EncodedImage | Pixels],
        project: str,
        due_s: float,
    ) -> list[Ticket]:
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

    def _send(self, lane: Lane, tickets: list[Ticket]) -> None:
        encoded = [ticket for ticket in tickets if ticket.pixels is None]
        if encoded:
            self._decoding.put(encoded)
        if len(encoded) < len(tickets):
            lane.batcher.put([ticket for ticket in tickets if ticket.pixels is not None])

    def _decode(self, ticket: Ticket) -> Pixels:
        max_pixels = self._settings.max_image_pixels
        return decode_image(ticket.source, ticket.index, ticket.resident, max_pixels=max_pixels)
