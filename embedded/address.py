"""Where the API listens: the port that the settings ask for, or a free one."""

import errno
import socket
from dataclasses import dataclass

from core.errors import ConflictError
from core.settings import Settings


class PortTakenError(ConflictError):
    """The port that was asked for is in use."""

    code = "port_taken"


@dataclass(frozen=True)
class Address:
    """Where the API listens.

    Attributes:
        port: the port to bind.
        url: base URL for a client on this machine, without a slash at the end.
        note: a sentence for the user where the port is not the one he would expect, or empty.
    """

    port: int
    url: str
    note: str = ""


def choose_address(settings: Settings) -> Address:
    """Choose the port of the API.

    Port 0 means any free one. Port 8000 is only a default: if it is taken, and was not asked for, a
    free one will do.

    Raises:
        PortTakenError: the port was asked for and is in use.
        OSError: the host is no address of this machine.
    """
    if settings.port == 0:
        return _address(settings.host, _find_free_port(settings.host))
    if _is_free(settings.host, settings.port):
        return _address(settings.host, settings.port)
    if "port" in settings.model_fields_set:
        raise PortTakenError(
            f"port {settings.port} of {settings.host} is in use; "
            "set IDAT_PORT to another one, or to 0 for any free one"
        )
    port = _find_free_port(settings.host)
    return _address(
        settings.host, port, f"port {settings.port} is in use, so {port} was taken instead"
    )


def _address(host: str, port: int, note: str = "") -> Address:
    # The wildcard addresses are for binding only; a client on this machine takes loopback.
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    shown = f"[{reachable}]" if ":" in reachable else reachable
    return Address(port, f"http://{shown}:{port}", note)


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _find_free_port(host: str) -> int:
    with _bind(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    probe = socket.socket(family, kind, protocol)
    try:
        # As the server does: connections of an earlier one that linger do not count as "in use".
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError:
        probe.close()
        raise
    return probe
