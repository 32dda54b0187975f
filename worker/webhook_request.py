"""One POST to a webhook's receiver, within limits that the receiver cannot stretch.

The whole exchange has one deadline: every wait on the socket gets what is left of it, so that a
reply of one byte a second ends as soon as one that never begins. Redirects are not followed, and no
proxy of the environment is asked: the address that was checked is the one that is spoken to.
"""

import io
import socket
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from http.client import HTTPConnection, HTTPException

from core.clock import monotonic_s
from core.platform.webhooks.addresses import Address
from core.platform.webhooks.targets import Target

#: Most bytes of a reply, headers included, that are read.
MAX_REPLY_BYTES = 64 * 1024
#: Of a host's addresses; the deadline is shared among them until one can be connected to.
_MAX_ADDRESSES = 4
_READ_BYTES = 8192


class RequestFailedError(Exception):
    """No whole reply came; the message says why, for the endpoint's owner."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _ReplyTooLargeError(OSError):
    """The reply is longer than anybody needs for saying yes."""


def post(
    target: Target,
    addresses: Sequence[Address],
    *,
    headers: Mapping[str, str],
    body: bytes,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> int:
    """Send a body, read the reply to its end, and return its status.

    Args:
        target: where to.
        addresses: of its host, checked; none else is connected to.
        headers: of the request, without `Host` and `Content-Length`.
        body: what is sent.
        timeout_s: for all of it together, seconds.
        tls: who is trusted, None for the system's authorities. The name is verified in any case.

    Raises:
        RequestFailedError: there was no connection, no whole reply in time, or too much of one.
    """
    deadline_s = monotonic_s() + timeout_s
    status: int | None = None
    try:
        with _connect(target, addresses[:_MAX_ADDRESSES], deadline_s, tls) as raw:
            connection = HTTPConnection(target.host, target.port)
            connection.sock = _TimedSocket(raw, deadline_s)
            connection.request("POST", target.path, body, {**headers, "Host": target.authority})
            reply = connection.getresponse()
            status = reply.status
            reply.read()
            return status
    except _ReplyTooLargeError as error:
        raise RequestFailedError(str(error), status) from error
    except TimeoutError as error:
        raise RequestFailedError(
            f"no whole reply within {timeout_s:.0f} seconds", status
        ) from error
    except ssl.SSLError as error:
        raise RequestFailedError(f"no trusted connection: {error}", status) from error
    except (OSError, HTTPException) as error:
        reason = str(error) or "the connection ended"
        raise RequestFailedError(f"{type(error).__name__}: {reason}", status) from error


def _connect(
    target: Target, addresses: Sequence[Address], deadline_s: float, tls: ssl.SSLContext | None
) -> socket.socket:
    """Connect to the first address that lets us, with what is left of the time shared evenly."""
    for number, address in enumerate(addresses):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left_s(deadline_s) / (len(addresses) - number))
            connection.connect((str(address), target.port))
            if target.scheme == "http":
                return connection
            connection.settimeout(_left_s(deadline_s))
            context = _system_trust() if tls is None else tls
            # Certificates name hosts without the dot that ends a name which is absolute.
            return context.wrap_socket(connection, server_hostname=target.host.rstrip("."))
        except OSError:
            connection.close()
            if number == len(addresses) - 1:
                raise
    raise OSError("the host has no address")


@cache
def _system_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - monotonic_s()
    if left_s <= 0:
        raise TimeoutError
    return left_s


class _TimedSocket:
    """A socket as `http.client` uses one, with the deadline and the reply's limit built in."""

    def __init__(self, raw: socket.socket, deadline_s: float) -> None:
        self._raw = raw
        self._deadline_s = deadline_s

    def sendall(self, content: bytes) -> None:
        """Send everything before the deadline."""
        view = memoryview(content)
        while view:
            self._raw.settimeout(_left_s(self._deadline_s))
            view = view[self._raw.send(view) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the reply's bytes."""
        return io.BufferedReader(_TimedReader(self._raw, self._deadline_s), _READ_BYTES)

    def close(self) -> None:
        """Do nothing: `http.client` closes before the body is read; `post` closes afterwards."""


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, deadline_s: float) -> None:
        self._raw = raw
        self._deadline_s = deadline_s
        self._read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview[int]", /) -> int:  # type: ignore[override]
        self._raw.settimeout(_left_s(self._deadline_s))
        count = self._raw.recv_into(buffer)
        self._read_bytes += count
        if self._read_bytes > MAX_REPLY_BYTES:
            raise _ReplyTooLargeError(f"the reply is longer than {MAX_REPLY_BYTES // 1024} kB")
        return count
