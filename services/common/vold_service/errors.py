"""The list of error codes, and the gRPC code and HTTP status of each.

An engine raises `ServiceError`, and the faces translate it. No other code chooses a status.
"""

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

    def status(self) -> status_pb2.Status:
        return status_pb2.Status(
            code=self.code,
            message=self.message,
            field=self.field,
            retry_seconds=self.retry_seconds,
            reason=self.reason,
        )


def invalid(field: str, message: str) -> ServiceError:
    """An INVALID_ARGUMENT error about `field`."""
    return ServiceError(status_pb2.INVALID_ARGUMENT, message, field=field)


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
