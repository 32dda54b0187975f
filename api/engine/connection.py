"""One front, as the engine sees it: its seats, the images in them, and what else it asks."""

import asyncio
import json
import logging
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Protocol, cast

from api.engine.framing import (
    VERSION,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    check_hello,
    encode,
)
from api.engine.messages import Wish, describe_error, pack_output, read_key, read_pixels
from api.networks import Networks, Seat
from api.pixels import check_pixels
from api.resolution import ServedModel
from core.clock import monotonic_s
from core.errors import AppError, InvalidError, UnavailableError
from core.ml.inference.batcher import Ticket

logger = logging.getLogger(__name__)

#: A front that reads so little is cut off.
_MAX_UNREAD_BYTES = 128 << 20
#: Bookings and questions of a front that are being answered at once.
_MAX_TASKS = 16_384
#: A call whose front has forgotten it ends so long after its deadline.
_LATE_S = 1.0


class Host(Protocol):
    """What all fronts of an engine share."""

    is_leaving: bool
    connections: "set[Connection]"
    networks: Networks

    def note_weight(self, project: str, weight: float) -> None:
        """Remember a project's share."""

    def read_metrics(self) -> bytes:
        """Return the metrics of this process, in OpenMetrics' text."""


class Call:
    """A seat and its images; all but `is_over` is the loop's."""

    __slots__ = ("answered", "connection", "due_s", "is_over", "number", "seat", "seen", "timer")

    def __init__(self, connection: "Connection", number: int, seat: Seat, timeout_s: float) -> None:
        self.connection = connection
        self.number = number
        self.seat = seat
        self.due_s = monotonic_s() + timeout_s
        self.is_over = False
        self.seen: set[int] = set()
        self.answered = 0
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(timeout_s + _LATE_S, self.end)

    def end(self) -> None:
        """Take no further image; the seat is left when none is on its way any more."""
        if self.is_over:
            return
        self.is_over = True
        self.timer.cancel()
        self.connection.calls.pop(self.number, None)
        if self.answered == len(self.seen):
            self._leave()

    def take(self, ticket: Ticket) -> None:
        """Send an image's outcome on."""
        self.answered += 1
        if not self.is_over:
            self.connection.send_outcome(self.number, ticket)
            if self.answered == self.seat.images:
                self.end()
        elif self.answered == len(self.seen):
            self._leave()

    def _leave(self) -> None:
        self.connection.server.networks.leave(self.seat)


class Connection(asyncio.Protocol):
    """One front."""

    def __init__(self, server: Host) -> None:
        self.server = server
        self.calls: dict[int, Call] = {}
        self.decode_rate: float | None = None
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_greeted = False
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def is_busy(self) -> bool:
        """Whether anything of this front is under way."""
        return bool(self.calls or self._tasks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        # Not asked with isinstance: uvloop's transports are no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)
        self.send(
            Kind.HELLO, meta={"version": VERSION, "precision": self.server.networks.precision}
        )
        if self.server.is_leaving:
            self.send(Kind.LEAVING)

    def data_received(self, data: bytes) -> None:
        """Do what complete frames say; cut off who breaks the protocol."""
        try:
            for frame in self._reader.feed(data):
                if not self._is_greeted:
                    check_hello(frame)
                    self._is_greeted = True
                else:
                    self._take(frame)
        except ProtocolError as error:
            logger.warning("a front is cut off: %s", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what this front has under way."""
        del exc
        self._transport = None
        self.server.connections.discard(self)
        for task in tuple(self._tasks.values()):
            task.cancel()
        for call in tuple(self.calls.values()):
            call.end()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def send(
        self, kind: Kind, call: int = 0, meta: Mapping[str, Any] | None = None, data: bytes = b""
    ) -> None:
        """Send a frame, unless the front has gone."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(encode(kind, call, meta, len(data)) + data)
        if transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            logger.warning("a front is cut off: it does not read its answers")
            transport.abort()

    def send_outcome(self, call: int, ticket: Ticket) -> None:
        """Send the output of an image, or its error."""
        output = ticket.outcome
        if isinstance(output, BaseException):
            self.send(Kind.FAILED, call, {"i": ticket.index, **describe_error(output)})
            return
        meta = {
            "i": ticket.index,
            "n": len(output.logits),
            "q": ticket.queue_s,
            "f": ticket.forward_s,
        }
        self.send(Kind.OUTPUT, call, meta, pack_output(output))

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.IMAGE:
            self._take_image(frame)
        elif frame.kind is Kind.BOOK:
            wish = Wish.from_meta(frame.meta)
            self.decode_rate = wish.decode_rate
            self._spawn(frame.call, self._book(frame.call, wish))
        elif frame.kind is Kind.CANCEL:
            self._cancel(frame.call)
        elif frame.kind is Kind.ASK:
            self._spawn(frame.call, self._answer(frame.call, frame.meta))
        else:
            raise ProtocolError(f"fronts do not send {frame.kind.name}")

    def _spawn(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        if number in self._tasks or number in self.calls or len(self._tasks) >= _MAX_TASKS:
            coroutine.close()
            raise ProtocolError("a call's number is in use, or there are too many calls")
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[number] = task
        task.add_done_callback(partial(self._forget, number))

    def _forget(self, number: int, _task: "asyncio.Task[None]") -> None:
        del self._tasks[number]

    def _cancel(self, number: int) -> None:
        task, call = self._tasks.get(number), self.calls.get(number)
        if task is not None:
            task.cancel()
        if call is not None:
            call.end()

    async def _book(self, number: int, wish: Wish) -> None:
        networks = self.server.networks
        try:
            if self.server.is_leaving:
                raise UnavailableError(  # noqa: TRY301 - told as those of the networks are
                    "the engine is about to stop; try again", code="engine_unavailable"
                )
            self.server.note_weight(wish.project, wish.weight)
            model = _build_model(wish.backbone, wish.key, wish.project)
            seat = await networks.book(model, wish.project, wish.images, wish.timeout_s)
        except Exception as error:  # noqa: BLE001 - it is the front that raises it
            self._send_error(number, error)
            return
        resident = seat.resident
        self.calls[number] = Call(self, number, seat, wish.timeout_s)
        self.send(
            Kind.BOOKED,
            number,
            {"px": resident.image_px, "preprocess": resident.preprocess_version},
        )

    def _take_image(self, frame: Frame) -> None:
        index, pixels = read_pixels(frame)
        call = self.calls.get(frame.call)
        if call is None:
            return  # it was cancelled, or too late, while this was on its way
        if index in call.seen or not 0 <= index < call.seat.images:
            raise ProtocolError(f"image {index} of a call has not been booked, or came before")
        call.seen.add(index)
        resident = call.seat.resident
        ticket = Ticket(
            call, index, call.seat.project, resident, resident.batch_key, call.due_s, None, pixels
        )
        try:
            check_pixels(pixels, index, resident.image_px)
        except InvalidError as error:
            ticket.outcome = error
            call.take(ticket)
        else:
            self.server.networks.put([ticket])

    async def _answer(self, number: int, meta: Mapping[str, Any]) -> None:
        try:
            self.send(Kind.ANSWER, number, data=await self._find_answer(meta))
        except Exception as error:  # noqa: BLE001 - it is the front that raises it
            self._send_error(number, error)

    async def _find_answer(self, meta: Mapping[str, Any]) -> bytes:
        server, networks = self.server, self.server.networks
        what = meta.get("what")
        if what == "metrics":
            return await asyncio.to_thread(server.read_metrics)
        answer: object = None
        if what == "fault":
            leaving = "the engine is about to stop" if server.is_leaving else None
            answer = leaving or networks.find_fault()
        elif what == "resident":
            answer = await networks.list_resident()
        elif what == "idle":
            answer = networks.is_idle(str(meta.get("backbone")))
        else:
            backbone = str(meta.get("backbone"))
            try:
                model = _build_model(backbone, read_key(meta.get("key"), backbone), "")
            except ValueError as error:
                raise InvalidError(str(error)) from error
            if what == "load":
                await networks.load(model, is_kept=meta.get("is_kept") is True)
            elif what == "unload":
                await networks.unload(model)
            elif what == "ready":
                answer = await networks.is_ready(model)
            else:
                raise InvalidError(f"the engine cannot be asked for {what!r}")
        return json.dumps(answer).encode()

    def _send_error(self, number: int, error: Exception) -> None:
        if not isinstance(error, AppError):
            logger.error("a front's wish failed", exc_info=error)
        self.send(Kind.FAILED, number, describe_error(error))


def _build_model(backbone: str, key: tuple[str, str], project: str) -> ServedModel:
    """Return what the networks need of a model; its name and classes are known to the fronts."""
    return ServedModel(
        id=key[0][:12] or backbone,
        name="",
        project_id=project,
        adapter_sha256=key[0],
        config_sha256=key[1],
        backbone=backbone,
        classes=(),
    )
