"""The proxies that the environment names, which HTTP clients and gRPC use unasked, for errors of calls."""

import ipaddress
import os
import urllib.request
from urllib.parse import urlsplit

_HTTP = {"http": ("http_proxy", "all_proxy"), "https": ("https_proxy", "all_proxy")}
_GRPC = ("grpc_proxy", "https_proxy", "http_proxy")
"""The variables of each client, the first that is set counts. gRPC reads no capital letters."""


def proxy_remedy(url: str) -> str:
    """What to change where a call of `url` fails that a proxy may be in the way of, or ought to be on the way of; "" if
    the environment names none. It names variables, never their values, which may hold a password.
    """
    scheme, colon, rest = url.rpartition("+")[2].partition("://")
    host = urlsplit(f"//{rest}").hostname if colon else None
    if not host:
        return ""
    if scheme in _HTTP:
        names = [name for lower in _HTTP[scheme] for name in (lower, lower.upper())]
    else:
        names = [*_GRPC] if scheme.startswith("grpc") else []
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return ""
    if not urllib.request.proxy_bypass_environment(host):  # type: ignore[attr-defined]
        return f"{name} sends the call through a proxy; if {host} is to be reached without it, add {host} to NO_PROXY"
    if _is_of_this_machine(host):
        return ""
    return f"NO_PROXY keeps the call from the proxy of {name}; if {host} is behind it, take {host} out of NO_PROXY"


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
