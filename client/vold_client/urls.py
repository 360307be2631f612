"""What a service URL may look like, and what it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from vold_client.errors import InvalidArgument

FORMS = "grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST[:PORT], https://HOST[:PORT] or unix:PATH"


@dataclass(frozen=True, slots=True)
class Address:
    """One replica. url: as given. target: gRPC's name for it, or the base URL for HTTP."""

    url: str
    target: str
    http: bool = False
    tls: bool = False


def parse_urls(urls: str | Sequence[str]) -> list[Address]:
    """One URL, several in a list, or several with commas between: the replicas of one service.

    Raises InvalidArgument that names the value and the accepted forms.
    """
    several = urls.split(",") if isinstance(urls, str) else [part for url in urls for part in url.split(",")]
    addresses = [parse_url(url.strip()) for url in several if url.strip()]
    if not addresses:
        raise _wrong(str(urls), "names no service")
    return addresses


def parse_url(url: str) -> Address:
    """See `parse_urls`."""
    scheme, colon, rest = url.partition(":")
    if scheme == "unix" and colon:
        path = rest.removeprefix("//") if rest.startswith("///") else rest
        if not path or path.startswith("//"):
            raise _wrong(url, "has no path: write unix:relative/path or unix:///absolute/path")
        return Address(url, f"unix:{path}")
    if scheme == "local" and colon:
        raise _wrong(url, "is started by the trainer, which then calls it through a unix: URL")
    if "://" not in url:
        raise _wrong(url, "has no scheme")
    if scheme not in ("grpc", "grpcs", "http", "https"):
        raise _wrong(url, f"has the scheme {scheme!r}, which is not one of a vold service")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _wrong(url, f"cannot be read ({error})") from error
    if not parts.hostname:
        raise _wrong(url, "has no host")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument(f"the URL for {parts.hostname} holds credentials: pass api_key=... instead", field="url")
    if parts.query or parts.fragment:
        raise _wrong(url, "has a query or a fragment")
    tls = scheme in ("grpcs", "https")
    if scheme in ("http", "https"):
        return Address(url, url.rstrip("/"), http=True, tls=tls)
    if port is None:
        raise _wrong(url, "has no port")
    if parts.path not in ("", "/"):
        raise _wrong(url, f"has the path {parts.path!r}, which gRPC has no use for")
    return Address(url, parts.netloc, tls=tls)


def _wrong(url: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the URL {url!r} {why}. This client speaks to vold services at {FORMS}; several, with commas between, are "
        "replicas",
        field="url",
    )
