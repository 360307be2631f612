"""What a browser may do with a service.

A page of another site can send requests to a service that its visitor reaches. With keys such a request lacks the key.
Without keys two headers tell it apart, which a page cannot forge: `Origin` names the page's site, and `Host` names the
host that the browser connected to. A site that lets its own name point to the service's address (DNS rebinding) is seen
by the name in `Host`, which is one of the public DNS.
"""

import ipaddress
import socket
from functools import cache

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vold_proto.v1 import status_pb2

from vold_service.errors import ServiceError

PRIVATE_SUFFIXES = (".local", ".internal", ".localhost", ".lan", ".home.arpa", ".svc")
"""The ends of names that the public DNS has not."""

HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""The headers of every reply that sets no others: it loads nothing, is in no frame, and is kept nowhere."""


class HeadersMiddleware:
    """Adds `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def check_same_site(headers: Headers, *, tls: bool) -> None:
    """Raise PERMISSION_DENIED if another site's page sent a request to a service without keys.

    tls: with TLS the browser itself has compared the name with the certificate. A program need not send either header.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if host and not tls and not is_private_name(_name(host)):
        raise _denied(
            "host",
            f"the Host is {host[:200]!r}, a name of the public DNS: a service without keys answers to its address, to "
            "its machine's name, and to names of private networks; start it with --api-keys, or call it by its address",
        )
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        raise _denied(
            "origin",
            f"the Origin is {origin[:200]!r} and the Host {host[:200]!r}: a service without keys answers its own pages "
            "and programs, no other site's pages; start it with --api-keys",
        )


def is_private_name(name: str) -> bool:
    """Whether a host's name is an address, this machine's name, or one that the public DNS cannot hold."""
    name = name.lower().rstrip(".")
    try:
        ipaddress.ip_address(name.partition("%")[0])
        return True
    except ValueError:
        return "." not in name or name.endswith(PRIVATE_SUFFIXES) or name in _own_names()


def _name(host: str) -> str:
    """The name in HOST or HOST:PORT, without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@cache
def _own_names() -> frozenset[str]:
    return frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})


def _denied(field: str, message: str) -> ServiceError:
    return ServiceError(status_pb2.PERMISSION_DENIED, message, field=field)
