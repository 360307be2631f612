"""The files and connections that the process may have open, and the share of them that callers may take.

A process without a free descriptor accepts no connection, from anybody. So the limit is raised at the start, each face
takes less than half of it, and one address takes at most half of the HTTP face's share. gRPC cannot count connections
by address: there the share is of all callers, and connections without a call are closed (vold_service.grpc).
"""

import ipaddress
import logging
import resource
from collections import Counter
from dataclasses import dataclass, field

WANTED = 65_536
RESERVED = 256
"""Descriptors for what is no connection: models, caches, workers, logs."""

log = logging.getLogger("vold.connections")


def raise_limit() -> int:
    """Raise the limit of open files to `WANTED`, or as far as the system allows. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return WANTED if soft == resource.RLIM_INFINITY else soft


def connections_of_a_face() -> int:
    """The most connections that one face should hold."""
    return max(16, (raise_limit() - RESERVED) // 2)


@dataclass(slots=True)
class ConnectionCount:
    """The open connections of a listener, by address. total: of all; half of it may come from one address."""

    total: int
    _by_address: Counter[str] = field(default_factory=Counter)
    _refused: int = 0

    def admit(self, host: str) -> str | None:
        """Count a connection from `host`. Returns the address to `release`; None if it has too many, or all have."""
        address = _network(host)
        if self._by_address[address] >= self.total // 2 or self._by_address.total() >= self.total:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:  # 1, 2, 4, 8...
                log.warning(
                    "closed a connection of %s, which has %d of %d (%d closed so far)",
                    *(address, self._by_address[address], self._by_address.total(), self._refused),
                )
            return None
        self._by_address[address] += 1
        return address

    def release(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def _network(host: str) -> str:
    """The IPv4 address, or the IPv6 network of 64 bits that one machine usually has to itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
