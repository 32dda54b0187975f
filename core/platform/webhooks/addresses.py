"""Which addresses a delivery may connect to: the public ones, and those that the operator allows.

Whoever may create an endpoint makes our workers send requests. Without this they would reach what
only our hosts can reach: loopback services, the cloud's metadata address, the internal network.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: What Python 3.11's `is_global` lets pass and no receiver lives at: protocol assignments, the
#: dead 6to4 relays, and IPv6 ranges that only wrap an IPv4 address or name nothing.
_NEVER = tuple(
    ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
#: NAT64: an IPv4 address in the last 32 bits.
_NAT64 = IPv6Network("64:ff9b::/96")
_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")


def is_public(address: Address) -> bool:
    """Return whether an address is one of the public internet, seen through its wrappings."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if any(address.version == network.version and address in network for network in _NEVER):
        return False
    return address.is_global and not address.is_multicast and not address.is_unspecified


@dataclass(frozen=True)
class AllowedHosts:
    """Hosts and networks that may be connected to although they are not public.

    Attributes:
        names: host names in lower case; whatever address one has is allowed.
        networks: addresses that are allowed, whatever their name.
    """

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_settings(cls, entries: Iterable[str]) -> Self:
        """Read host names, addresses and CIDRs.

        Raises:
            ValueError: an entry is none of them.
        """
        names, networks = set(), []
        for entry in entries:
            try:
                networks.append(ip_network(entry.strip("[]")))
            except ValueError:
                name = entry.lower().rstrip(".")
                if not is_host_name(name):
                    raise ValueError(
                        f"{entry!r} is neither a host name nor an address nor a network like "
                        "10.1.0.0/16 (whose host bits are zero)"
                    ) from None
                names.add(name)
        return cls(frozenset(names), tuple(networks))

    def allows_name(self, host: str) -> bool:
        """Return whether every address of this host is allowed."""
        return host.rstrip(".") in self.names

    def allows(self, host: str, address: Address) -> bool:
        """Return whether a connection to this address of this host is allowed."""
        return self.allows_name(host) or self.holds(address) or is_public(address)

    def holds(self, address: Address) -> bool:
        """Return whether the operator has named this address or a network around it."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(
            address.version == network.version and address in network for network in self.networks
        )


def is_host_name(host: str) -> bool:
    """Return whether a text in lower case is a host's name, and no way to write an address.

    `2130706433`, `0x7f000001` and `127.1` are addresses to resolvers; a name whose last label
    begins like a number is therefore refused.
    """
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):  # noqa: PLR2004 - of the DNS
        return False
    last = host.rstrip(".").rpartition(".")[2]
    return not (last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last))


def find_address(host: str) -> Address | None:
    """Return the address that a URL's host is, in the usual notation, or None."""
    try:
        return ip_address(host)
    except ValueError:
        return None
