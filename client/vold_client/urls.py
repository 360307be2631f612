"""The forms of a service URL, and the address that a URL stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from vold_client.errors import InvalidArgument

URL_FORMS = "grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST[:PORT], https://HOST[:PORT] or unix:PATH"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of one replica. url: as the caller wrote it. target: gRPC's target, or the base URL for HTTP."""

    url: str
    target: str
    http: bool = False
    tls: bool = False


def parse_urls(urls: str | Sequence[str]) -> list[Address]:
    """The addresses of the replicas of one service, from one URL, a list of URLs, or URLs separated by commas.

    Raises InvalidArgument that names the value and the accepted forms.
    """
    parts = urls.split(",") if isinstance(urls, str) else [part for url in urls for part in url.split(",")]
    addresses = [parse_url(url.strip()) for url in parts if url.strip()]
    if not addresses:
        raise _url_error(str(urls), "names no service")
    return addresses


def parse_url(url: str) -> Address:
    """The address of one URL. Raises InvalidArgument as `parse_urls` does."""
    scheme, colon, rest = url.partition(":")
    if scheme == "unix" and colon:
        path = rest.removeprefix("//") if rest.startswith("///") else rest
        if not path or path.startswith("//"):
            raise _url_error(url, "has no path: write unix:relative/path or unix:///absolute/path")
        if path.startswith(("~", "/~")):
            raise _url_error(url, "has a ~, which has no meaning in it: write the whole path")
        return Address(url, f"unix:{path}")
    if scheme == "local" and colon:
        raise _url_error(url, "is started by the trainer, which then calls it through a unix: URL")
    if "://" not in url:
        raise _url_error(url, "has no scheme")
    if scheme not in ("grpc", "grpcs", "http", "https"):
        raise _url_error(url, f"has the scheme {scheme!r}, which is not one of a vold service")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _url_error(url, f"cannot be read ({error})") from error
    if not parts.hostname:
        raise _url_error(url, "has no host")
    if parts.username is not None or parts.password is not None:
        raise InvalidArgument(f"the URL for {parts.hostname} holds credentials: pass api_key=... instead", field="url")
    if parts.query or parts.fragment:
        raise _url_error(url, "has a query or a fragment")
    tls = scheme in ("grpcs", "https")
    if scheme in ("http", "https"):
        if parts.path.rstrip("/").endswith("/v1"):
            raise _url_error(url, "ends in /v1, which the client adds to it: leave that out")
        return Address(url, url.rstrip("/"), http=True, tls=tls)
    if port is None:
        raise _url_error(url, "has no port")
    if parts.path not in ("", "/"):
        raise _url_error(url, f"has the path {parts.path!r}, which gRPC has no use for")
    return Address(url, parts.netloc, tls=tls)


def _url_error(url: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"the URL {url!r} {why}. This client speaks to vold services at {URL_FORMS}; several, with commas between, are "
        "replicas",
        field="url",
    )
