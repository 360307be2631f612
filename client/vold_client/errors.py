"""One hierarchy of errors: what a service answered, and what kept it from answering."""

# ruff: noqa: N818  (the names are those of the wire's codes)
import json
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from vold_proto.v1 import status_pb2

STATUS_METADATA = "vold-status-bin"


class VoldError(Exception):
    """A call, or one item of it, that was not served.

    code: the wire's name for what went wrong ("INVALID_ARGUMENT", ...). message: what is wrong, the value and the
    remedy. field: the path of the field at fault ("completions[3].ids"), or "". retry_seconds: when the service
    suggests coming back, 0 where it says nothing. url: who was asked, "" where the client itself refused.
    """

    code = "INTERNAL"

    def __init__(self, message: str, *, field: str = "", retry_seconds: float = 0.0, url: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_seconds = retry_seconds
        self.url = url

    def __str__(self) -> str:
        asked = f" [{self.url}]" if self.url else ""
        named = f"{self.field}: " if self.field and self.field not in self.message else ""
        return f"{self.code}: {named}{self.message}{asked}"


class InvalidArgument(VoldError):
    """The request is wrong; sending it again will not help."""

    code = "INVALID_ARGUMENT"


class Unauthenticated(VoldError):
    """No API key, or one that the service does not know; or a certificate that one side does not trust."""

    code = "UNAUTHENTICATED"


class PermissionDenied(VoldError):
    """The API key does not allow this."""

    code = "PERMISSION_DENIED"


class NotFound(VoldError):
    """No such model or verifier, or no such service at this address."""

    code = "NOT_FOUND"


class ResourceExhausted(VoldError):
    """Over a limit for now. Retried."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(VoldError):
    """The call's time ran out."""

    code = "DEADLINE_EXCEEDED"


class Unavailable(VoldError):
    """Nobody answers there, or not yet, or no longer. Retried."""

    code = "UNAVAILABLE"


class IdentityChanged(VoldError):
    """The teacher is not the one that was expected, or replicas are not the same teacher."""

    code = "FAILED_PRECONDITION"


class Cancelled(VoldError):
    """The service dropped the request because its caller was gone."""

    code = "CANCELLED"


class Internal(VoldError):
    """A fault of the service, or a reply that does not fit its request."""

    code = "INTERNAL"


def again(error: VoldError, *, message: str | None = None, field: str | None = None) -> VoldError:
    """The same error as a new object, to be raised in another task, with another message or field where given."""
    return type(error)(
        error.message if message is None else message,
        field=error.field if field is None else field,
        retry_seconds=error.retry_seconds,
        url=error.url,
    )


def exceeded(url: str) -> DeadlineExceeded:
    return DeadlineExceeded("no answer within the call's time: allow a longer timeout or send less", url=url)


_BROKEN_OFF = ("Socket closed", "Connection reset", "disconnected", "recvmsg", "EOF occurred", "ReadError")
"""How it reads, on gRPC and on HTTP, that the other end closed a connection where a handshake was to come."""


_OF_ANOTHER_HOST = ("Hostname Verification", "is not in peer certificate")
"""How newer and older versions of gRPC say that a certificate is for another host."""


def unreachable(reason: str, url: str) -> VoldError:
    """The error behind a connection that did not come about, or broke before an answer: Unavailable, which is
    retried, but Unauthenticated where the service's certificate is refused, which no waiting mends.
    """
    if any(words in reason for words in ("CERTIFICATE_VERIFY_FAILED", *_OF_ANOTHER_HOST)):
        return Unauthenticated(f"the service's certificate is refused: {_certificate_fault(reason)}", url=url)
    if "WRONG_VERSION_NUMBER" in reason:
        hint = "it does not speak TLS: write grpc:// or http://, or start it with --tls-cert"
    elif not any(word in reason for word in _BROKEN_OFF):
        hint = "is the service running there?"
    elif url.startswith(("grpcs:", "https:")):
        hint = "is the service running there? If it asks for a client certificate, give tls.cert and tls.key"
    elif url.startswith("unix:"):
        hint = "is the service running there?"
    else:
        hint = "is the service running there? If it speaks TLS, write grpcs:// or https://"
    return Unavailable(f"cannot be reached ({reason}): {hint}", url=url)


def _certificate_fault(reason: str) -> str:
    if "expired" in reason:
        return "it has expired; ask the operator to renew it"
    if "not yet valid" in reason:
        return "it is not valid yet; compare the clocks of both machines"
    if any(words in reason for words in (*_OF_ANOTHER_HOST, "mismatch", "not valid for")):
        return "it is for another host; use a URL with a name that the certificate has"
    return "no CA that is trusted here has signed it; give the CA's file as tls.ca"


RETRIED = (Unavailable, ResourceExhausted)

_KINDS: dict[str, type[VoldError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        ResourceExhausted,
        DeadlineExceeded,
        Unavailable,
        IdentityChanged,
        Cancelled,
        Internal,
    )
}

# gRPC's own codes that are not in the list of the wire contract.
_GRPC_KINDS: dict[str, type[VoldError]] = {
    "OUT_OF_RANGE": InvalidArgument,
    "ABORTED": Unavailable,
    # The caller's own cancellation never gets here: asyncio raises CancelledError for it. What remains is a
    # server that cut its calls short to stop.
    "CANCELLED": Unavailable,
}

_HTTP_KINDS: dict[int, type[VoldError]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: NotFound,
    409: IdentityChanged,
    429: ResourceExhausted,
    499: Cancelled,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def from_status(status: status_pb2.Status, url: str = "") -> VoldError | None:
    """The error that a Status message stands for, or None for OK."""
    if status.code == status_pb2.OK:
        return None
    name = status_pb2.Code.Name(status.code) if status.code in status_pb2.Code.values() else "INTERNAL"
    return _KINDS[name](status.message, field=status.field, retry_seconds=status.retry_seconds, url=url)


def from_grpc(error: grpc.aio.AioRpcError, url: str) -> VoldError:
    """The error behind a failed RPC: from the Status in its trailing metadata, else from gRPC's own code."""
    metadata: Any = error.trailing_metadata()  # absent where the call never reached a server
    for key, value in metadata or ():
        if key == STATUS_METADATA and isinstance(value, bytes):
            try:
                known = from_status(status_pb2.Status.FromString(value), url)
            except DecodeError:
                known = None
            if known is not None:
                return known
    code, details = error.code().name, error.details() or "no details"
    if code == "UNIMPLEMENTED":
        return NotFound(f"no such service here ({details}): is this the URL of a service of another kind?", url=url)
    if code == "UNAVAILABLE":
        return unreachable(details, url)
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        # gRPC's word for an oversized message. Sending it again will not make it smaller.
        return InvalidArgument(f"the request is too large for the service ({details}): send smaller batches", url=url)
    if code == "INTERNAL" and ("Internal error from Core" in details or "RST_STREAM" in details):
        # A write onto a stream that has just broken; a fault of the service itself comes with a Status.
        return Unavailable(f"the connection broke off ({details})", url=url)
    if code == "DEADLINE_EXCEEDED":
        return exceeded(url)
    kind = _GRPC_KINDS.get(code) or _KINDS.get(code, Internal)
    return kind(f"{details} (gRPC {code})", url=url)


def from_http(status_code: int, content_type: str, body: bytes, url: str) -> VoldError:
    """The error behind an HTTP reply that is no success: from its Status body (protobuf, or JSON where the service
    refused before it knew what the caller speaks), else from the status code."""
    if content_type.startswith("application/x-protobuf"):
        try:
            known = from_status(status_pb2.Status.FromString(body), url)
        except DecodeError:
            known = None
        if known is not None:
            return known
    if content_type.startswith("application/json") and (known := _from_json(body, url)) is not None:
        return known
    text = body[:200].decode("utf-8", "replace").strip()
    kind = _HTTP_KINDS.get(status_code, InvalidArgument if 400 <= status_code < 500 else Internal)
    if kind is NotFound:
        return NotFound(f"HTTP {status_code} ({text}): is this the URL of a service of another kind?", url=url)
    return kind(f"HTTP {status_code}: {text}", url=url)


def _from_json(body: bytes, url: str) -> VoldError | None:
    try:
        error = json.loads(body)["error"]
        kind, message, field = _KINDS[error["code"]], str(error["message"]), str(error.get("field", ""))
        return kind(message, field=field, retry_seconds=float(error.get("retry_seconds", 0.0)), url=url)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not ours: a proxy's page, say
