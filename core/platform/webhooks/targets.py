"""Where an endpoint's URL leads: taken apart, resolved once, and every address checked.

The addresses that were checked are those that are connected to. Resolving again at the connection
would let a name that was public at the check be a private one a moment later (DNS rebinding).
"""

import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from core.errors import AppError
from core.platform.webhooks.addresses import Address, AllowedHosts, find_address, is_host_name

MAX_URL_LENGTH = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Below this lie mail, file sharing and other protocols that a POST could be made to speak.
_FIRST_FREE_PORT = 1024
#: Printable ASCII but the backslash, which some take for a slash; other letters are to be encoded.
_CHARACTERS = re.compile(r"[\x21-\x5b\x5d-\x7e]+")

#: Host and port -> its addresses as text; raises OSError.
Resolver = Callable[[str, int], Sequence[str]]


class TargetError(AppError):
    """A URL, or the address behind it, that no delivery may go to."""

    code = "webhook_url_not_allowed"


class UnresolvedHostError(TargetError):
    """The host's name has no address now."""

    code = "webhook_host_unresolved"


@dataclass(frozen=True)
class Target:
    """A URL in the parts that a connection needs.

    Attributes:
        scheme: `http` or `https`.
        host: in lower case, IPv6 without brackets.
        port: the port.
        path: with the query, at least `/`.
        authority: the header `Host`.
    """

    scheme: str
    host: str
    port: int
    path: str
    authority: str


def parse_target(url: str, allowed: AllowedHosts) -> Target:
    """Take a URL apart, and refuse what its text alone shows to be wrong.

    Raises:
        TargetError: its scheme, form, port or literal address is not allowed.
    """
    if len(url) > MAX_URL_LENGTH or not _CHARACTERS.fullmatch(url):
        raise TargetError(
            f"must be a URL of at most {MAX_URL_LENGTH} characters, in ASCII: spaces and other "
            "letters percent-encoded in the path, in punycode in the host"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise TargetError(f"is not a URL: {error}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise TargetError("must begin with https:// or http://")
    if "@" in parts.netloc:
        raise TargetError("must not hold a user name or a password; the signature tells who sends")
    if parts.fragment or "#" in url:
        raise TargetError("must not have a fragment")
    if not host:
        raise TargetError("names no host")
    address = find_address(host)
    if address is None and not is_host_name(host):
        raise TargetError(f"{host!r} is neither a host name nor an address in the usual notation")
    if address is not None and not allowed.allows(host, address):
        raise _not_public(host, address)
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    _check_port(host, address, port, allowed)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority = f"[{host}]" if ":" in host else host
    if port != _DEFAULT_PORTS[parts.scheme]:
        authority += f":{port}"
    return Target(parts.scheme, host, port, path, authority)


def resolve_target(
    target: Target, allowed: AllowedHosts, *, timeout_s: float, resolver: Resolver | None = None
) -> list[Address]:
    """Return the addresses to connect to, every one of them checked.

    Args:
        target: where to.
        allowed: what the operator allows beyond the public addresses.
        timeout_s: how long the name service may take, seconds.
        resolver: another than the system's.

    Raises:
        UnresolvedHostError: the host has no address now, or the name service is silent.
        TargetError: an address is not allowed; one such is enough, as its name's owner chose it.
    """
    literal = find_address(target.host)
    if literal is not None:
        addresses: list[Address] = [literal]
    else:
        texts = _resolve_in_time(target, timeout_s, resolver or _ask_the_system)
        addresses = [ip_address(text) for text in dict.fromkeys(texts)]
    if not addresses:
        raise UnresolvedHostError(f"{target.host} has no address")
    for address in addresses:
        if not allowed.allows(target.host, address):
            raise _not_public(target.host, address)
    return addresses


def _check_port(host: str, address: Address | None, port: int, allowed: AllowedHosts) -> None:
    if port >= _FIRST_FREE_PORT or port in _DEFAULT_PORTS.values():
        return
    # What the operator names is the operator's to judge.
    is_named = allowed.allows_name(host) or (address is not None and allowed.holds(address))
    if port == 0 or not is_named:
        raise TargetError(f"port {port} is not allowed: use 80, 443 or one from 1024 on")


def _not_public(host: str, address: Address) -> TargetError:
    # Which address a name has in here is nobody's business.
    is_literal = str(address) == host
    problem = f"{host} is not a public address" if is_literal else f"{host} is not a public host"
    return TargetError(f"{problem}; the operator can allow it with IDAT_WEBHOOK_ALLOWED_HOSTS")


def _ask_the_system(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _resolve_in_time(target: Target, timeout_s: float, resolver: Resolver) -> Sequence[str]:
    """Ask in a thread: the C library has no limit of ours, and a silent name service many tries."""
    answers: list[Sequence[str]] = []
    faults: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            answers.append(resolver(target.host, target.port))
        except (OSError, UnicodeError) as error:
            faults.append(error)

    thread = threading.Thread(target=ask, name=f"resolve {target.host}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if answers:
        return answers[0]
    reason = faults[0] if faults else f"the name service did not answer in {timeout_s:.0f} s"
    raise UnresolvedHostError(f"{target.host} cannot be resolved: {reason}")
