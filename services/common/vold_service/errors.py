"""The list of error codes, and the gRPC code and HTTP status of each.

An engine raises `ServiceError`, and the faces translate it. No other code chooses a status.
"""

from collections.abc import Sequence
from typing import Any

import grpc
from vold_proto.v1 import status_pb2

Code = status_pb2.Code

HTTP_STATUS: dict[int, int] = {
    status_pb2.OK: 200,
    status_pb2.INVALID_ARGUMENT: 422,
    status_pb2.UNAUTHENTICATED: 401,
    status_pb2.PERMISSION_DENIED: 403,
    status_pb2.NOT_FOUND: 404,
    status_pb2.RESOURCE_EXHAUSTED: 429,
    status_pb2.DEADLINE_EXCEEDED: 504,
    status_pb2.UNAVAILABLE: 503,
    status_pb2.FAILED_PRECONDITION: 409,
    status_pb2.CANCELLED: 499,
    status_pb2.INTERNAL: 500,
}

GRPC_STATUS: dict[int, grpc.StatusCode] = {code: getattr(grpc.StatusCode, Code.Name(code)) for code in HTTP_STATUS}

STATUS_METADATA = "vold-status-bin"
"""Trailing metadata that carries the whole Status message beside gRPC's own code and text."""

REASONS: dict[int, str] = {
    status_pb2.INVALID_ARGUMENT: "invalid",
    status_pb2.UNAUTHENTICATED: "auth",
    status_pb2.PERMISSION_DENIED: "auth",
    status_pb2.NOT_FOUND: "not_found",
    status_pb2.RESOURCE_EXHAUSTED: "queue_full",
    status_pb2.DEADLINE_EXCEEDED: "deadline",
    status_pb2.UNAVAILABLE: "unavailable",
    status_pb2.FAILED_PRECONDITION: "identity",
}
"""The reason of a refusal, by code, if the error names no other reason. A code that is not here is no refusal."""

QUOTA = "quota"
"""The reason of a refusal by a limit of the caller's tenant. It is RESOURCE_EXHAUSTED, as a full queue is."""


class ServiceError(Exception):
    """A request, or one item of it, that cannot be served.

    message: what is wrong, with the value and the remedy. field: the path of the field at fault
    ("completions[3].ids"). retry_seconds: when to send the request again; 0 if a retry does not help. reason: which
    rule refused the request ("quota"), for the caller, the log and the metrics; if empty, the reason in REASONS.
    """

    def __init__(
        self,
        code: "status_pb2.Code",
        message: str,
        *,
        field: str = "",
        retry_seconds: float = 0.0,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_seconds = retry_seconds
        self.reason = reason or REASONS.get(code, "")

    def __reduce__(self) -> tuple[Any, ...]:
        """For errors that another process raises (vold_service.processes)."""
        return _service_error, (self.code, self.message, self.field, self.retry_seconds, self.reason)

    def status(self) -> status_pb2.Status:
        return status_pb2.Status(
            code=self.code,
            message=self.message,
            field=self.field,
            retry_seconds=self.retry_seconds,
            reason=self.reason,
        )


def _service_error(
    code: "status_pb2.Code", message: str, field: str, retry_seconds: float, reason: str
) -> ServiceError:
    return ServiceError(code, message, field=field, retry_seconds=retry_seconds, reason=reason)


MAX_SHOWN = 80
"""Characters of a value that an error quotes: the caller knows it, and chose its length."""

MAX_NAME = 200
"""Characters of an id or a name on the wire: they are kept, logged and sent back."""


def shown(value: object) -> str:
    """A value as an error quotes it: its repr, cut."""
    # Cut before repr too, which would write out all of a long text or list.
    text = repr(value[: MAX_SHOWN + 1] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def check_name(field: str, value: str) -> None:
    """Raise INVALID_ARGUMENT if an id or a name of a request is too long."""
    if len(value) > MAX_NAME:
        raise invalid(field, f"{field} has {len(value)} characters: an id or a name has at most {MAX_NAME}; shorten it")


def invalid(field: str, message: str) -> ServiceError:
    """An INVALID_ARGUMENT error about `field`."""
    return ServiceError(status_pb2.INVALID_ARGUMENT, message, field=field)


def describe_invalid(errors: Sequence[Any]) -> ServiceError:
    """INVALID_ARGUMENT for the first of pydantic's errors."""
    first = errors[0]
    # Both may hold a key of the body.
    field = ".".join(str(part) for part in first["loc"] if part != "body")[:MAX_NAME] or "body"
    return invalid(field, f"{field}: {first['msg'][:MAX_NAME]}; got {shown(first.get('input'))}")


def not_found(field: str, message: str) -> ServiceError:
    return ServiceError(status_pb2.NOT_FOUND, message, field=field)


DEADLINE_MESSAGE = "the deadline passed before the work was done: allow more time or send less"


def deadline_exceeded(message: str = DEADLINE_MESSAGE) -> ServiceError:
    return ServiceError(status_pb2.DEADLINE_EXCEEDED, message)


def unavailable(message: str, retry_seconds: float = 1.0) -> ServiceError:
    return ServiceError(status_pb2.UNAVAILABLE, message, retry_seconds=retry_seconds)


def internal(error: BaseException) -> ServiceError:
    """An INTERNAL error with the type of `error`, not its text, which may hold private data."""
    return ServiceError(
        status_pb2.INTERNAL, f"the server failed with {type(error).__name__}: its log has the whole story"
    )
