"""A front's side of the socket: networks that are in an engine process.

Everything happens on the front's event loop; other threads hand their frames to it. While there is
no engine requests get 503, and the connection is tried again until there is one.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.registry import Collector

from api.calls import Call, hand_back
from api.engine.fetched_metrics import EngineMetrics
from api.engine.framing import Frame, Kind, ProtocolError
from api.engine.link import Link
from api.engine.messages import Wish, describe_pixels, read_error, read_output
from api.networks import Seat
from api.resolution import ServedModel
from core.clock import monotonic_s
from core.errors import DeadlineError, RateLimitedError, UnavailableError
from core.ml.export.bundle import Bundle
from core.ml.inference.batcher import Dropped, Ticket

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0
_GREETING_S = 5.0
#: Of questions that are answered at once, unless the engine hangs.
_ANSWER_S = 2.0
#: A refusal is repeated for so long without asking, so that an overload stays cheap.
_REFUSED_S = 0.05
_MAX_REFUSED = 4096
_MAX_NUMBER = 1 << 32


class EngineUnavailableError(UnavailableError):
    """The engine process is not there, or has gone with the request's images."""

    code = "engine_unavailable"
    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("the engine process cannot be reached now; try again")


@dataclass(eq=False)
class _Resident:
    """A model in the engine, as far as a front has to know it.

    Attributes:
        number: of the call; the engine knows the seat by it.
        backbone: timm name.
        image_px: side of its images.
        preprocess_version: of the preprocessing that its images go through.
        sent: tickets whose outcome the engine owes, by index.
        left: images that have no outcome yet.
    """

    number: int
    backbone: str
    image_px: int
    preprocess_version: int
    left: int
    sent: dict[int, Ticket] = field(default_factory=dict)
    batch_key: None = None


class RemoteNetworks:
    """Networks behind a Unix socket; the face is that of `api.networks.Networks`.

    Args:
        path: of the engine's socket.
        find_rate: images a second that this process decodes; None if unknown.
        weight_of: share of a project relative to others.
    """

    def __init__(
        self,
        path: Path,
        *,
        find_rate: Callable[[], float | None],
        weight_of: Callable[[str], float],
    ) -> None:
        self._path = path
        self._find_rate = find_rate
        self._weight_of = weight_of
        self._precision = "unknown"
        self._loop: asyncio.AbstractEventLoop
        self._connecting: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._number = 0
        self._asked: dict[int, asyncio.Future[Frame]] = {}
        self._seats: dict[int, _Resident] = {}
        self._refused: dict[tuple[str, str], tuple[float, Exception]] = {}

    @property
    def precision(self) -> str:
        """Number format of the engine's networks, `fp32` or `bf16`."""
        return self._precision

    @property
    def collector(self) -> Collector:
        """The engine's metrics."""
        return EngineMetrics(self._read_metrics)

    async def start(self) -> None:
        """Connect, now and whenever the connection is lost; does not wait for an engine."""
        self._loop = asyncio.get_running_loop()
        self._connecting = self._loop.create_task(self._stay_connected())

    def find_fault(self) -> str | None:
        """Return the engine's fault, or that there is no engine; not on the event loop."""
        try:
            fault: str | None = json.loads(self._ask_from_thread("fault"))
        except (UnavailableError, TimeoutError) as error:
            return str(error) or "the engine process does not answer"
        return fault

    def check_admission(self, project: str, model: ServedModel | None) -> None:
        """Raise if there is no engine, or if it has just refused the same."""
        self._get_link()
        if model is None:
            return
        refused = self._refused.get((model.backbone, project))
        if refused is not None and monotonic_s() < refused[0]:
            raise refused[1].with_traceback(None)  # it would grow by every request that it ends

    async def book(self, model: ServedModel, project: str, images: int, timeout_s: float) -> Seat:
        """Have the engine admit a request and load its model; see `Networks`."""
        wish = Wish(
            project,
            self._weight_of(project),
            model.backbone,
            model.key,
            images,
            timeout_s,
            self._find_rate(),
        )
        try:
            frame = await self._request(Kind.BOOK, wish.to_meta(), timeout_s)
        except TimeoutError as error:
            raise DeadlineError("the engine did not answer in time; try again") from error
        except (RateLimitedError, UnavailableError) as error:
            self._note_refusal(model.backbone, project, error)
            raise
        resident = _Resident(
            frame.call,
            model.backbone,
            int(frame.meta["px"]),
            int(frame.meta["preprocess"]),
            left=images,
        )
        if self._link is None:
            raise EngineUnavailableError
        self._seats[frame.call] = resident
        return Seat(model, project, images, resident)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Send decoded images of one seat to the engine; from any thread."""
        now_s = monotonic_s()
        for ticket in tickets:
            ticket.ready_s = now_s
        try:
            self._loop.call_soon_threadsafe(self._send_images, tickets)
        except RuntimeError:  # the loop has ended, and nobody waits on it
            for ticket in tickets:
                ticket.outcome = EngineUnavailableError()
            hand_back(tickets)

    def give_up(self, seat: Seat) -> None:
        """Let the engine drop the seat's images, and take them back."""
        resident: _Resident = seat.resident
        if self._seats.pop(resident.number, None) is not None:
            self._cancel(resident.number)
        tickets = list(resident.sent.values())
        resident.sent.clear()
        for ticket in tickets:
            ticket.outcome = Dropped()
        _take_back(tickets)

    def leave(self, seat: Seat) -> None:
        """End a seat; the engine has ended it by itself if it answered every image."""
        resident: _Resident = seat.resident
        if self._seats.pop(resident.number, None) is not None and resident.left:
            self._cancel(resident.number)

    async def load(self, model: ServedModel, *, is_kept: bool) -> None:
        """Make a model ready in the engine; raises what it raises there."""
        await self._ask("load", model, None, {"is_kept": is_kept})

    async def unload(self, model: ServedModel) -> None:
        """Free what a model takes in the engine."""
        await self._ask("unload", model)

    async def is_ready(self, model: ServedModel) -> bool:
        """Return whether a request for the model would wait for no load."""
        return json.loads(await self._ask("ready", model)) is True

    async def list_resident(self) -> list[tuple[str, str]]:
        """Return the keys of the models in the engine's memory."""
        return [(adapter, config) for adapter, config in json.loads(await self._ask("resident"))]

    async def check(self, bundle: Bundle) -> None:
        """Do nothing: a front has no networks, and the engine checks a model when it loads it."""

    def is_idle(self, backbone: str) -> bool:
        """Return whether the engine has nothing under way on a backbone; not on the event loop."""
        try:
            return json.loads(self._ask_from_thread("idle", {"backbone": backbone})) is True
        except (UnavailableError, TimeoutError):
            return False

    def close(self) -> None:
        """Let go of the engine; from any thread."""
        if self._connecting is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._connecting.cancel)

    async def _stay_connected(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            link = Link(self._take)
            try:
                await self._loop.create_unix_connection(lambda link=link: link, str(self._path))  # type: ignore[misc]  # a default that binds the loop's variable
                hello = await asyncio.wait_for(asyncio.shield(link.greeted), _GREETING_S)
                self._precision = str(hello.meta.get("precision"))
                self._link = link
                logger.info("the engine at %s answers", self._path)
                retry_s = _FIRST_RETRY_S
                await asyncio.shield(link.lost)
                logger.warning("the connection to the engine is lost")
            except (OSError, ProtocolError, TimeoutError) as error:
                logger.info("no engine at %s: %s", self._path, str(error) or type(error).__name__)
            except Exception:  # a front that stopped trying would have to be started again
                logger.exception("the connection to the engine broke")
            finally:
                self._lose(link)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    def _lose(self, link: Link) -> None:
        """Fail whatever waits for an answer of a connection."""
        self._link = None
        link.close()
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(EngineUnavailableError())
        seats, self._seats = self._seats, {}
        tickets = [ticket for resident in seats.values() for ticket in resident.sent.values()]
        for resident in seats.values():
            resident.sent.clear()
        for ticket in tickets:
            ticket.outcome = EngineUnavailableError()
        _take_back(tickets)

    def _get_link(self) -> Link:
        link = self._link
        if link is None or link.is_leaving:
            raise EngineUnavailableError
        return link

    def _take(self, frame: Frame) -> None:
        asked = self._asked.pop(frame.call, None)
        if asked is not None:
            if asked.done():
                return
            if frame.kind is Kind.FAILED:
                asked.set_exception(read_error(frame.meta))
            else:
                asked.set_result(frame)
            return
        resident = self._seats.get(frame.call)
        if resident is None:
            if frame.kind is Kind.BOOKED:  # whoever asked for it has gone
                self._cancel(frame.call)
            return
        ticket = resident.sent.pop(int(frame.meta.get("i", -1)), None)
        if ticket is None:
            raise ProtocolError("the engine answers for an image that it does not have")
        resident.left -= 1
        if frame.kind is Kind.OUTPUT:
            ticket.outcome = read_output(frame)
            ticket.queue_s = float(frame.meta["q"])
            ticket.forward_s = float(frame.meta["f"])
        else:
            ticket.outcome = read_error(frame.meta)
        _take_back([ticket])

    def _send_images(self, tickets: Sequence[Ticket]) -> None:
        returned = []
        for ticket in tickets:
            resident: _Resident = ticket.resident
            link = self._link
            if ticket.call.is_over:
                ticket.outcome = Dropped()
                returned.append(ticket)
            elif link is None or resident.number not in self._seats:
                ticket.outcome = EngineUnavailableError()
                returned.append(ticket)
            else:
                meta, data = describe_pixels(ticket.pixels, ticket.index)
                resident.sent[ticket.index] = ticket
                link.send(Kind.IMAGE, resident.number, meta, data)
            ticket.pixels = None
        _take_back(returned)

    def _cancel(self, number: int) -> None:
        if self._link is not None:
            self._link.send(Kind.CANCEL, number)

    def _note_refusal(self, backbone: str, project: str, error: Exception) -> None:
        if len(self._refused) >= _MAX_REFUSED:
            self._refused.clear()
        self._refused[(backbone, project)] = (monotonic_s() + _REFUSED_S, error)

    async def _request(self, kind: Kind, meta: dict[str, Any], timeout_s: float | None) -> Frame:
        link = self._get_link()
        self._number = number = self._number % (_MAX_NUMBER - 1) + 1
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._asked[number] = future
        # Not `wait_for`: it costs as much as all the rest here.
        timer = timeout_s and self._loop.call_later(timeout_s, _expire, future)
        link.send(kind, number, meta)
        try:
            return await future
        except (TimeoutError, asyncio.CancelledError):
            # If the answer is on its way, or here already, the engine has to be told all the same.
            self._asked.pop(number, None)
            self._cancel(number)
            raise
        finally:
            if timer:
                timer.cancel()

    async def _ask(
        self,
        what: str,
        model: ServedModel | None = None,
        timeout_s: float | None = _ANSWER_S,
        more: Mapping[str, Any] | None = None,
    ) -> bytearray:
        meta: dict[str, Any] = {"what": what, **(more or {})}
        if model is not None:
            meta |= {"backbone": model.backbone, "key": model.key}
        try:
            return (await self._request(Kind.ASK, meta, timeout_s)).data
        except TimeoutError as error:
            raise UnavailableError(
                "the engine process does not answer; try again", code="engine_unavailable"
            ) from error

    def _ask_from_thread(self, what: str, more: Mapping[str, Any] | None = None) -> bytearray:
        asking = asyncio.run_coroutine_threadsafe(self._ask(what, more=more), self._loop)
        try:
            return asking.result(2 * _ANSWER_S)
        except TimeoutError:
            asking.cancel()
            raise

    def _read_metrics(self) -> str | None:
        try:
            return self._ask_from_thread("metrics").decode()
        except (UnavailableError, TimeoutError):
            return None


def _expire(future: "asyncio.Future[Frame]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def _take_back(tickets: Sequence[Ticket]) -> None:
    """Do what `hand_back` does, on the loop already."""
    for ticket in tickets:
        call = ticket.call
        assert isinstance(call, Call)
        call.take(ticket)
