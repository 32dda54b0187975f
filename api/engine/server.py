"""The engine's side of the socket: what fronts ask, asked of the networks of this process.

One queue, one admission and one bank for the images of all fronts. A front that goes takes its
images with it; one that breaks the protocol is cut off and hurts nobody else.
"""

import asyncio
import socket
from collections import OrderedDict

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.openmetrics.exposition import generate_latest

from api.engine.connection import Call, Connection
from api.engine.framing import Kind
from api.networks import Networks
from core.ml.inference.batcher import Ticket

_MAX_WEIGHTS = 8192


class EngineServer:
    """Takes fronts in; `deliver`, `find_rate` and `weight_of` are for the networks behind it."""

    def __init__(self) -> None:
        self.is_leaving = False
        self.connections: set[Connection] = set()
        self.networks: Networks
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server
        self._weights: OrderedDict[str, float] = OrderedDict()
        self._registry = CollectorRegistry()
        ProcessCollector(namespace="idat_engine", registry=self._registry)
        fronts = Gauge("idat_engine_fronts", "Processes connected.", registry=self._registry)
        fronts.set_function(lambda: len(self.connections))

    async def open(self, networks: Networks, listener: socket.socket) -> None:
        """Take fronts in from now on.

        Args:
            networks: that deliver to this server.
            listener: bound and listening.
        """
        self._loop = asyncio.get_running_loop()
        self.networks = networks
        self._registry.register(networks.collector)
        self._server = await self._loop.create_unix_server(lambda: Connection(self), sock=listener)

    def leave(self) -> None:
        """Take nothing new, and say so; what has been booked is finished."""
        self.is_leaving = True
        for connection in self.connections:
            connection.send(Kind.LEAVING)

    @property
    def is_idle(self) -> bool:
        """Whether nothing that was booked is still under way."""
        return not any(connection.is_busy for connection in self.connections)

    async def close(self) -> None:
        """End all connections."""
        self._server.close()
        for connection in tuple(self.connections):
            connection.close()
        await asyncio.sleep(0)

    def deliver(self, tickets: list[Ticket]) -> None:
        """Send outcomes to their fronts; from any thread, with one wake-up of the loop."""
        self._loop.call_soon_threadsafe(_take_back, tickets)

    def find_rate(self) -> float | None:
        """Return the images a second that all fronts together decode, as far as known."""
        rates = [c.decode_rate for c in tuple(self.connections) if c.decode_rate is not None]
        return sum(rates) if rates else None

    def weight_of(self, project: str) -> float:
        """Return a project's share, as the front that booked last has said."""
        return self._weights.get(project, 1.0)

    def note_weight(self, project: str, weight: float) -> None:
        """Remember a project's share."""
        self._weights[project] = weight
        self._weights.move_to_end(project)
        if len(self._weights) > _MAX_WEIGHTS:
            self._weights.popitem(last=False)

    def read_metrics(self) -> bytes:
        """Return the metrics of this process, in OpenMetrics' text."""
        text: bytes = generate_latest(self._registry)  # type: ignore[no-untyped-call]  # of the library
        return text


def _take_back(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        call = ticket.call
        assert isinstance(call, Call)
        call.take(ticket)
