"""One connection from a front to the engine."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

from api.engine.framing import (
    VERSION,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    check_hello,
    encode,
)

logger = logging.getLogger(__name__)

_SEND_BUFFER_BYTES = 4 << 20


class Link(asyncio.Protocol):
    """Greets, reads frames, and tells when it is over.

    Args:
        take: takes every frame after the greeting, but for `LEAVING`.
    """

    def __init__(self, take: Callable[[Frame], None]) -> None:
        loop = asyncio.get_running_loop()
        #: the engine's greeting, or the `ProtocolError` that it was instead
        self.greeted: asyncio.Future[Frame] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        #: the engine finishes what it has, and takes nothing new
        self.is_leaving = False
        self._take = take
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        # Not asked with isinstance: uvloop's transports are no subclass.
        self._transport = cast(asyncio.Transport, transport)
        # An image goes in one call to the kernel then, as far as the kernel allows so much.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES
        )
        self.send(Kind.HELLO, meta={"version": VERSION})

    def data_received(self, data: bytes) -> None:
        """Pass complete frames on; an engine that breaks the protocol is left."""
        try:
            for frame in self._reader.feed(data):
                if not self.greeted.done():
                    check_hello(frame)
                    self.greeted.set_result(frame)
                elif frame.kind is Kind.LEAVING:
                    self.is_leaving = True
                else:
                    self._take(frame)
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            logger.error("the engine is left: %s", error)  # noqa: TRY400 - no fault of this process
            self._fail(ProtocolError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell."""
        del exc
        self._transport = None
        self._fail(ProtocolError("the connection ended before the greeting"))
        if not self.lost.done():
            self.lost.set_result(None)

    def send(
        self,
        kind: Kind,
        call: int = 0,
        meta: Mapping[str, Any] | None = None,
        data: memoryview | bytes = b"",
    ) -> None:
        """Send a frame, unless the connection is over."""
        if self._transport is None or self._transport.is_closing():
            return
        head = encode(kind, call, meta, len(data))
        if data:
            self._transport.writelines((head, data))
        else:
            self._transport.write(head)

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def _fail(self, error: ProtocolError) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()  # looked at: it may be that nobody waits
        self.close()
