"""The error hierarchy: errors that a service returned, and errors of reaching a service."""

# ruff: noqa: N818  (the classes have the names of the wire's codes)
import json
import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from vold_proto.proxies import proxy_remedy
from vold_proto.v1 import status_pb2

STATUS_METADATA = "vold-status-bin"


class VoldError(Exception):
    """A call, or one item of a call, that failed.

    code: the wire's error code ("INVALID_ARGUMENT", ...). message: what is wrong, the value and the remedy. field: the
    path of the field at fault ("completions[3].ids"), or "". retry_seconds: the retry delay that the service suggests,
    0 for none. url: the service's; "" if the client refused the call before sending it. reason: which rule of the
    service refused the call: "quota" (a limit of the caller's tenant), "queue_full" (the service is busy), "invalid",
    "auth" and others; "" if the service gives none.
    """

    code = "INTERNAL"

    def __init__(
        self, message: str, *, field: str = "", retry_seconds: float = 0.0, url: str = "", reason: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_seconds = retry_seconds
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        url = f" [{self.url}]" if self.url else ""
        field = f"{self.field}: " if self.field and self.field not in self.message else ""
        return f"{self.code}: {field}{self.message}{url}"


class InvalidArgument(VoldError):
    """The request is wrong. A retry does not help."""

    code = "INVALID_ARGUMENT"


class Unauthenticated(VoldError):
    """The API key is missing or unknown to the service, or one side does not trust the other's certificate."""

    code = "UNAUTHENTICATED"


class CertificateRefused(Unauthenticated):
    """This side does not trust the service's certificate."""


class PermissionDenied(VoldError):
    """The API key does not allow the request."""

    code = "PERMISSION_DENIED"


class NotFound(VoldError):
    """The service has no such model or verifier, or there is no such service at this address."""

    code = "NOT_FOUND"


class ResourceExhausted(VoldError):
    """The request is over a limit at this time: its tenant's, if `reason` is "quota", or the service's. Retried."""

    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(VoldError):
    """The call's deadline passed."""

    code = "DEADLINE_EXCEEDED"


class Unavailable(VoldError):
    """The service cannot be reached, is starting, or is stopping. Retried."""

    code = "UNAVAILABLE"


class IdentityChanged(VoldError):
    """The teacher is not the expected one, or the replicas are not the same teacher."""

    code = "FAILED_PRECONDITION"


class Cancelled(VoldError):
    """The service dropped the request because the caller had disconnected."""

    code = "CANCELLED"


class Internal(VoldError):
    """The service failed, or its reply does not fit the request."""

    code = "INTERNAL"


def copy_error(error: VoldError, *, message: str | None = None, field: str | None = None) -> VoldError:
    """A copy of the error, to raise in another task; with another message or field if one is given."""
    return type(error)(
        error.message if message is None else message,
        field=error.field if field is None else field,
        retry_seconds=error.retry_seconds,
        url=error.url,
        reason=error.reason,
    )


def deadline_exceeded(url: str) -> DeadlineExceeded:
    return DeadlineExceeded("no answer within the call's time: allow a longer timeout or send less", url=url)


_CONNECTION_CLOSED = ("Socket closed", "Connection reset", "disconnected", "recvmsg", "EOF occurred", "ReadError")
"""Texts of gRPC and httpx for a connection that the other side closed before the handshake."""

_WRONG_HOST = ("Hostname Verification", "is not in peer certificate")
"""Texts of newer and older versions of gRPC for a certificate of another host."""


def connection_error(reason: str, url: str) -> VoldError:
    """The error for a connection that cannot be opened, or that breaks before the reply.

    Unavailable, which is retried; but CertificateRefused, where a retry does not help, if the service's certificate is.
    """
    if any(words in reason for words in ("CERTIFICATE_VERIFY_FAILED", *_WRONG_HOST)):
        return CertificateRefused(f"the service's certificate is refused: {_certificate_fault(reason)}", url=url)
    if "WRONG_VERSION_NUMBER" in reason:
        hint = "it does not speak TLS: write grpc:// or http://, or start it with --tls-cert"
    elif any(words in reason for words in ("http1.x server", "Failed parsing HTTP/2")):
        hint = "it does not speak gRPC: write http://, or give the service's gRPC port"
    elif "illegal request line" in reason:
        hint = "it does not speak HTTP/1: write grpc://, or give the service's HTTP port"
    elif not any(word in reason for word in _CONNECTION_CLOSED):
        hint = "is the service running there?"
    elif url.startswith(("grpcs:", "https:")):
        hint = "is the service running there? If it asks for a client certificate, give tls.cert and tls.key"
    elif url.startswith("unix:"):
        hint = "is the service running there?"
    else:
        hint = "is the service running there? If it speaks TLS, write grpcs:// or https://"
    return Unavailable(f"cannot be reached ({reason}): {hint}{_proxy_remedy(url)}", url=url)


def _proxy_remedy(url: str) -> str:
    remedy = proxy_remedy(url)
    return f" {remedy}" if remedy else ""


def _certificate_fault(reason: str) -> str:
    if "expired" in reason:
        return "it has expired; ask the operator to renew it"
    if "not yet valid" in reason:
        return "it is not valid yet; compare the clocks of both machines"
    if any(words in reason for words in (*_WRONG_HOST, "mismatch", "not valid for")):
        return "it is for another host; use a URL with a name that the certificate has"
    return "no CA that is trusted here has signed it; give the CA's file as tls.ca"


RETRYABLE = (Unavailable, ResourceExhausted)

_CLASS_BY_CODE: dict[str, type[VoldError]] = {
    error_class.code: error_class
    for error_class in (
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

# gRPC's own codes that are not codes of the wire contract.
_CLASS_BY_GRPC_CODE: dict[str, type[VoldError]] = {
    "OUT_OF_RANGE": InvalidArgument,
    "ABORTED": Unavailable,
    # A server that stops cancels its calls. The caller's own cancellation does not come here: asyncio raises
    # CancelledError for it.
    "CANCELLED": Unavailable,
}

_CLASS_BY_HTTP_STATUS: dict[int, type[VoldError]] = {
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
    """The error of a Status message, or None for OK."""
    if status.code == status_pb2.OK:
        return None
    name = status_pb2.Code.Name(status.code) if status.code in status_pb2.Code.values() else "INTERNAL"
    return _CLASS_BY_CODE[name](
        status.message, field=status.field, retry_seconds=status.retry_seconds, url=url, reason=status.reason
    )


def from_grpc(error: grpc.aio.AioRpcError, url: str) -> VoldError:
    """The error of a failed RPC: from the Status in its trailing metadata, else from gRPC's own code."""
    metadata: Any = error.trailing_metadata()  # None if the call did not reach a server
    for key, value in metadata or ():
        if key == STATUS_METADATA and isinstance(value, bytes):
            try:
                vold_error = from_status(status_pb2.Status.FromString(value), url)
            except DecodeError:
                vold_error = None
            if vold_error is not None:
                return vold_error
    code, details = error.code().name, error.details() or "no details"
    if code == "UNIMPLEMENTED":
        return NotFound(f"no such service here ({details}): is this the URL of a service of another kind?", url=url)
    if code == "UNAVAILABLE":
        return connection_error(details, url)
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        # gRPC's code for an oversized message, for which a retry does not help.
        return InvalidArgument(f"the request is too large for the service ({details}): send smaller batches", url=url)
    if code == "INTERNAL" and ("Internal error from Core" in details or "RST_STREAM" in details):
        # A write to a stream that has just broken. A failure of the service itself comes with a Status.
        return Unavailable(f"the connection broke off ({details})", url=url)
    if code == "DEADLINE_EXCEEDED":
        return deadline_exceeded(url)
    error_class = _CLASS_BY_GRPC_CODE.get(code) or _CLASS_BY_CODE.get(code, Internal)
    return error_class(f"{details} (gRPC {code})", url=url)


def from_http(status_code: int, content_type: str, body: bytes, url: str, retry_after: str = "") -> VoldError:
    """The error of an unsuccessful HTTP reply: from its body, else from its status code.

    The body is a Status in protobuf, or JSON if the service refused the request before it read the accepted type.
    retry_after: the header, which counts if the body is neither, because for example a proxy has refused.
    """
    if content_type.startswith("application/x-protobuf"):
        try:
            error = from_status(status_pb2.Status.FromString(body), url)
        except DecodeError:
            error = None
        if error is not None:
            return error
    if content_type.startswith("application/json") and (error := _from_json(body, url)) is not None:
        return error
    text = body[:200].decode("utf-8", "replace").strip()
    error_class = _CLASS_BY_HTTP_STATUS.get(status_code, InvalidArgument if 400 <= status_code < 500 else Internal)
    if error_class is NotFound:
        hint = f"is this the URL of a service of another kind?{_proxy_remedy(url)}"
        return NotFound(f"HTTP {status_code} ({text}): {hint}", url=url)
    # A date, the header's other form, would need clocks that agree.
    retry_seconds = float(retry_after) if re.fullmatch(r"[0-9]{1,6}", retry_after) else 0.0
    remedy = proxy_remedy(url)  # no service of vold has answered
    message = f"HTTP {status_code}: {text}" + (f": {remedy}" if remedy else "")
    return error_class(message, retry_seconds=retry_seconds, url=url)


def _from_json(body: bytes, url: str) -> VoldError | None:
    try:
        error = json.loads(body)["error"]
        error_class, message, field = _CLASS_BY_CODE[error["code"]], str(error["message"]), str(error.get("field", ""))
        delay, reason = float(error.get("retry_seconds", 0.0)), str(error.get("reason", ""))
        return error_class(message, field=field, retry_seconds=delay, url=url, reason=reason)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not the body of a vold service, but for example of a proxy
