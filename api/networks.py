"""The networks as a request meets them: a seat is booked, images are put, their outputs come back.

`LocalNetworks` has them in this process. `api.engine.client` has the same face for those of an
engine process, and `api.engine.server` gives fronts what is here.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio.to_thread
import torch
from prometheus_client.registry import Collector

from api.bundles import check_bundle, make_resident
from api.lanes import Lane, Lanes
from api.network_metrics import NetworkMetrics
from api.resolution import ServedModel
from api.warm_up import WarmUp
from core.errors import ConflictError, DeadlineError
from core.ml.backbones.precision import resolve_device, resolve_precision
from core.ml.export.bundle import Bundle
from core.ml.inference.batcher import Ticket
from core.ml.inference.engine import Engine, Resident
from core.ml.inference.residency import Residency
from core.platform.db.engine import Database
from core.platform.storage.base import BlobStore
from core.settings import Settings

_CLOSE_S = 10.0

Deliver = Callable[[list[Ticket]], None]


@dataclass(frozen=True, eq=False)
class Seat:
    """A request that has been admitted, and its model, which stays in memory meanwhile.

    Attributes:
        model: which one.
        project: whose turn its images take.
        images: how many will be put at most.
        resident: the model, for the tickets: it says how images have to be.
    """

    model: ServedModel
    project: str
    images: int
    resident: Any


class Networks(Protocol):
    """Networks here or in another process. Coroutines run on the process's one event loop."""

    @property
    def precision(self) -> str:
        """Number format of the networks."""

    @property
    def collector(self) -> Collector:
        """Their metrics."""

    async def start(self) -> None:
        """Begin, on the event loop that everything else will run on."""

    def find_fault(self) -> str | None:
        """Return why no image should be sent here, or None; blocks, so not on the event loop."""

    def check_admission(self, project: str, model: ServedModel | None) -> None:
        """Raise what `book` would raise, as far as that is known without waiting."""

    async def book(self, model: ServedModel, project: str, images: int, timeout_s: float) -> Seat:
        """Admit a request, and load its model if need be; each seat owes one `leave`.

        Raises:
            OverloadedError: more images wait than can be answered in time.
            ProjectOverloadedError: this project has too many under way.
            DeadlineError: the model was not loaded in time.
            ConflictError: the model does not fit the backbone that is here.
            UnavailableError: the networks cannot be reached.
        """

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue decoded images of one seat; from any thread. They come back with an outcome."""

    def give_up(self, seat: Seat) -> None:
        """Nobody waits for the seat's images any more."""

    def leave(self, seat: Seat) -> None:
        """End a seat of which no image is on its way."""

    async def load(self, model: ServedModel, *, is_kept: bool) -> None:
        """Make a model ready, for good if it is kept."""

    async def unload(self, model: ServedModel) -> None:
        """Free what a model takes."""

    async def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""

    async def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys of the models in memory."""

    async def check(self, bundle: Bundle) -> None:
        """Let a bundle answer for its certificate, where its backbone is at hand."""

    def is_idle(self, backbone: str) -> bool:
        """Return whether nothing is under way on a backbone; blocks."""

    def close(self) -> None:
        """End; what is under way is finished first, within some seconds."""


class LocalNetworks:
    """Networks in this process: engine, bank, residency, and a lane for each backbone.

    Args:
        settings: of the process.
        store: where bundles are read from.
        database: tells which backbones will be wanted.
        deliver: takes tickets that have their outcome, in a network's thread.
        find_rate: images a second that decoding brings; None if unknown.
        weight_of: share of a project relative to others.
    """

    def __init__(
        self,
        settings: Settings,
        store: BlobStore,
        database: Database,
        *,
        deliver: Deliver,
        find_rate: Callable[[], float | None],
        weight_of: Callable[[str], float],
    ) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = resolve_device(settings.device)
        precision = resolve_precision(settings.inference_precision, device)
        self._precision: str = precision.value
        self._settings = settings
        self._deliver = deliver
        self._find_rate = find_rate
        self._weight_of = weight_of
        self.engine = Engine(
            device=device,
            precision=precision,
            weights_dir=settings.weights_dir,
            max_batch=settings.inference_max_batch,
        )
        self.residency: Residency[ServedModel] = Residency(
            lambda model: make_resident(self.engine, store, model),
            self.engine.evict,
            max_bytes=settings.inference_bank_bytes,
        )
        self.lanes = Lanes(self._build_lane)
        self._metrics = NetworkMetrics(self._precision, self.residency, self.lanes.list_all)
        self._warm_up = WarmUp(self.engine.prepare, database, settings.warm_backbones)

    @property
    def precision(self) -> str:
        """Number format of the networks: `fp32` or `bf16`."""
        return self._precision

    @property
    def collector(self) -> Collector:
        """Their metrics."""
        return self._metrics.registry

    async def start(self) -> None:
        """Do nothing: the threads run already."""

    def find_fault(self) -> str | None:
        """Return why no image should be sent here now, or None."""
        faults = [
            self._warm_up.find_fault(),
            *(lane.find_fault() for lane in self.lanes.list_all()),
        ]
        return "; ".join(fault for fault in faults if fault) or None

    def check_admission(self, project: str, model: ServedModel | None) -> None:
        """Raise what `book` would about the queue; a model not known yet is let through."""
        lane = self.lanes.find(model.backbone) if model else None
        if lane is not None:
            lane.admission.check(project)

    async def book(self, model: ServedModel, project: str, images: int, timeout_s: float) -> Seat:
        """Admit a request, and load its model if need be; see `Networks`."""
        admission = self.lanes.get(model.backbone).admission
        admission.enter(project, images)
        try:
            resident = await self._pin(model, timeout_s)
        except BaseException:
            admission.leave(project, images)
            raise
        return Seat(model, project, images, resident)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue decoded images of one seat for their network; from any thread."""
        self.lanes.get(tickets[0].resident.backbone).batcher.put(tickets)

    def give_up(self, seat: Seat) -> None:
        """Do nothing: the batcher looks whether a call is over."""

    def leave(self, seat: Seat) -> None:
        """Count a request out, and let go of its model."""
        self.residency.unpin(seat.model.key)
        self.lanes.get(seat.model.backbone).admission.leave(seat.project, seat.images)

    async def load(self, model: ServedModel, *, is_kept: bool) -> None:
        """Make a model ready.

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

    async def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""
        return self.residency.is_resident(model.key)

    async def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys (adapter, config digests) of the models in memory."""
        return self.residency.list_keys()

    async def check(self, bundle: Bundle) -> None:
        """Look whether a bundle answers here; see `api.bundles.check_bundle`."""
        await anyio.to_thread.run_sync(check_bundle, self.engine, bundle)

    def is_idle(self, backbone: str) -> bool:
        """Return whether nothing is under way on a backbone."""
        lane = self.lanes.find(backbone)
        return lane is None or lane.admission.images == 0

    def count_images(self) -> int:
        """Return the images under way on all backbones."""
        return sum(lane.admission.images for lane in self.lanes.list_all())

    def close(self) -> None:
        """End the threads; what is still under way is finished first, within some seconds."""
        self._warm_up.close()
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

    def _let_go(self, model: ServedModel, done: "asyncio.Future[Any]") -> None:
        """Give back the pin of a load that nobody waited for to its end."""
        if not done.cancelled() and done.exception() is None:
            self.residency.unpin(model.key)

    def _build_lane(self, backbone: str) -> Lane:
        return Lane(
            backbone,
            self._settings,
            forward=self.engine.forward,
            deliver=self._hand_over,
            cores=self.engine.cores,
            find_rate=self._find_rate,
            weight_of=self._weight_of,
        )

    def _hand_over(self, tickets: list[Ticket]) -> None:
        images = sum(ticket.forward_s > 0 for ticket in tickets)
        if images:
            first = tickets[0]
            self._metrics.observe_batch(first.resident.backbone, images, first.forward_s)
        self._deliver(tickets)
